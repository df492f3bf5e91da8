"""The verb `train`: set a run up, train, tear it down.

The order of initialisation: weights at random from the seed; over them `model.init_from`, where given; over both a
checkpoint to resume, which also sets optimizer, average, loss scale, guard and position.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from crate_graph.checkpoint.initial import Start, load_initial_weights
from crate_graph.checkpoint.manifest import read_manifest
from crate_graph.checkpoint.model import shapes
from crate_graph.checkpoint.store import CheckpointStore, resolve
from crate_graph.cluster.groups import agree, from_main, limit_collectives, naming_a_lost_peer, process_group
from crate_graph.cluster.journal import note
from crate_graph.cluster.ranks import Ranks, discover
from crate_graph.config.load import dump_recipe
from crate_graph.config.schema import Recipe
from crate_graph.data import Dataset, PlannedLoader, open_dataset
from crate_graph.data.index import sha256_of_shards
from crate_graph.data.remote.cache import ShardCache
from crate_graph.data.workers import naming_a_killed_worker
from crate_graph.engine.build import build_engine
from crate_graph.engine.objective import Objective, slow_precision
from crate_graph.errors import UserError
from crate_graph.evaluation.loaders import build_eval_loader
from crate_graph.models import create_model
from crate_graph.models.checkpointing import set_activation_checkpointing
from crate_graph.models.heads import freeze_backbone, trained_parameters
from crate_graph.resilience.guard import FiniteGuard
from crate_graph.resilience.requests import Requests
from crate_graph.resilience.watchdog import GRACE, Watchdog
from crate_graph.tasks import build_task
from crate_graph.tasks.build import describe_task, image_shapes, model_arguments, train_transform
from crate_graph.train.ema import Ema
from crate_graph.train.flops import forward_flops, passes_of_training, peak_flops
from crate_graph.train.loop import Loop
from crate_graph.train.metrics_log import MetricsLog
from crate_graph.train.optimizer import build_optimizer
from crate_graph.train.run_folder import RunFolder, write_json
from crate_graph.train.saving import Saver
from crate_graph.train.step import TrainStep
from crate_graph.train.telemetry import Display, StepClock, peak_memory_bytes
from crate_graph.train.white_box import WhiteBox, build_probe
from crate_graph.weights.names import shipped_weights
from crate_graph.whole_files import write_whole

logger = logging.getLogger(__name__)


def train(
    recipe: Recipe,
    run_dir: Path,
    resume: str = "auto",
    max_seconds: float | None = None,
    begun: float | None = None,
) -> dict[str, Any]:
    """Train as `recipe` says, writing into `run_dir`; returns the summary. Every process of the run calls it.

    The summary's `seconds` are those of this call, set-up included; `start_seconds` are those before it, to load
    Python's packages, since the command was `begun` (of time.monotonic). What earlier processes of the run took is in
    neither.

    `resume`: "auto" goes on from the newest checkpoint of the run folder, where there is one; "never" refuses a folder
    that holds checkpoints; anything else is a checkpoint to go on from. After `max_seconds` the run saves and stops.

    Raises:
        UserError: before anything is trained, for a mistake in recipe, data, checkpoint or folder; later for too many
            damaged samples or a checkpoint that could not be saved.
        RunFailed: the guard gave up.
    """
    started = time.monotonic()
    start_seconds = 0.0 if begun is None else started - begun
    ranks = discover()
    deadline = None if max_seconds is None else started + max_seconds
    with process_group(ranks), ExitStack() as stack:
        folder = RunFolder(run_dir)
        stack.callback(folder.release)
        with agree(ranks):
            if ranks.is_main:
                folder.claim()
        stack.enter_context(folder.discarded_if_refused())
        stack.enter_context(_log_to_file(folder, ranks))
        stack.enter_context(naming_a_lost_peer())
        stack.enter_context(naming_a_killed_worker())
        loop = _set_up(recipe, folder, resume, ranks, deadline, stack)
        first = loop.step
        note(f"start {first}")
        if first >= loop.last_step and folder.summary.exists():
            note("finished")
            return json.loads(folder.summary.read_text())  # nothing is left to train: what was written stands
        try:
            loop.run()
        finally:
            folder.worth_keeping = loop.step > 0 or loop.damaged > 0
        with loop.watchdog.patient(), agree(ranks):
            loop.saver.writer.wait()
        summary = _summarize(recipe, folder, loop, start_seconds, started, ranks)
        if ranks.is_main:
            write_json(folder.summary, summary)
        note(_outcome(loop, ranks))
    return summary


def _outcome(loop: Loop, ranks: Ranks) -> str:
    """What the launcher hears: a run that a signal stopped is to go on, one that its operator stopped is not."""
    if not loop.stopped:
        return "finished"
    return from_main(ranks, "stopped" if loop.requests.switched_off else "preempted")


def _set_up(
    recipe: Recipe, folder: RunFolder, resume: str, ranks: Ranks, deadline: float | None, stack: ExitStack
) -> Loop:
    """Everything that a loop needs; what must be closed again goes on the stack."""
    store = CheckpointStore(folder.checkpoints)
    with agree(ranks):
        resume_from = _checkpoint_to_resume(store, resume) if ranks.is_main else None
    resume_from = from_main(ranks, resume_from)
    with agree(ranks):
        micro_batch, accumulation = recipe.batch.resolve(ranks.world)
        dataset = open_dataset(recipe.data.dataset, recipe.data.root, ShardCache(recipe.data.cache, recipe.data.remote))
        loader = build_train_loader(recipe, dataset, ranks)
        stack.callback(loader.close)
        eval_loader = build_eval_loader(recipe, ranks, dataset=dataset, mean=dataset.mean, std=dataset.std)
        stack.callback(eval_loader.close)
        flops = check_model(recipe, dataset, micro_batch)
        model = build_model(recipe, dataset)
        start = initialize(recipe, dataset, model) if resume_from is None else None
        if not any(weight.requires_grad for weight in model.parameters()):
            raise UserError(
                f"model.name={recipe.model.name}: has no weights to learn; judge it as it is with: crate-graph "
                f"evaluate {recipe.model.name} --data {recipe.data.dataset}"
            )

        probe = build_probe(recipe, dataset, model, ranks)

    model_shapes, trained = shapes(model), trained_parameters(model)  # taken now: ZeRO-3 leaves empty shells
    engine = build_engine(
        recipe.engine,
        Objective(model, build_task(recipe, dataset.mean, dataset.std), recipe.precision),
        lambda bare: build_optimizer(recipe.optimizer, bare),
        ranks,
        micro_batch=micro_batch,
        accumulation=accumulation,
    )
    stack.callback(engine.close)
    ema = Ema(engine, recipe.ema.decay) if recipe.ema.decay is not None else None
    train_step = TrainStep(recipe, engine, accumulation, loader.steps(), ema)
    guard = FiniteGuard(recipe.guard.max_consecutive_skips, recipe.guard.max_rollbacks, recipe.precision)
    saver = Saver(
        recipe,
        dataset,
        store,
        engine=engine,
        ema=ema,
        loss_scale=train_step.loss_scale,
        guard=guard,
        stream=_stream(recipe, loader),
        shapes=model_shapes,
        trained=trained,
    )
    state, metrics = {"step": 0, "damaged": 0}, {}
    if resume_from is not None:
        state, metrics = saver.restore(resume_from), read_manifest(resume_from)["metrics"]
    stack.callback(saver.writer.join)

    last_step = _last_step(recipe, loader.steps())
    display = Display(last_step, state["step"], ranks.is_main)
    stack.callback(display.close)
    goes_on = state["step"] < last_step
    learning = f", {trained:,} of them trained" if recipe.model.freeze == "backbone" else ""
    display.say(
        f"{recipe.name}: {recipe.model.in_words()}; {saver.parameters:,} parameters{learning}; "
        f"{loader.split.samples:,} images of {dataset.name}; {ranks.world} x {ranks.device.type}; {recipe.precision}; "
        f"writing to {folder.path}"
    )
    if (slow := slow_precision(recipe.precision, ranks.device)) is not None:
        display.say(slow)
    if start is not None:
        display.say("\n".join(start.lines()))
    if resume_from is not None:
        display.say(f"going on from {resume_from}" if goes_on else f"{resume_from} is where the recipe ends")
    requests = Requests(folder.path, ranks.is_main, deadline)
    stack.callback(requests.close)
    watchdog = _start_watchdog(recipe, folder, ranks)
    stack.callback(watchdog.close)
    log = _open_records(recipe, folder, ranks, state["step"], stack) if ranks.is_main and goes_on else None
    if log is not None and start is not None:
        write_json(folder.initialization, start.record())
    clock = _clock(recipe, flops, ranks)
    return Loop(
        recipe=recipe,
        folder=folder,
        engine=engine,
        train_step=train_step,
        loader=loader,
        eval_loader=eval_loader,
        ema=ema,
        guard=guard,
        saver=saver,
        requests=requests,
        watchdog=watchdog,
        log=log,
        display=display,
        clock=clock,
        white_box=WhiteBox(recipe.telemetry.whitebox.every, probe, engine, clock, log, last_step),
        last_step=last_step,
        step=state["step"],
        damaged=state["damaged"],
        metrics=metrics,
    )


def _start_watchdog(recipe: Recipe, folder: RunFolder, ranks: Ranks) -> Watchdog:
    """It comes first; should it fail, collectives give up after twice its time."""
    seconds, first_seconds = recipe.watchdog.seconds, recipe.watchdog.first_seconds

    def settled() -> None:
        limit_collectives(ranks.device, 2 * seconds + GRACE)

    return Watchdog(folder.logs, ranks.rank, seconds, first_seconds, settled)


def _open_records(recipe: Recipe, folder: RunFolder, ranks: Ranks, step: int, stack: ExitStack) -> MetricsLog:
    """Write down what the run is, now that nothing stands in its way, and open its metrics."""
    folder.summary.unlink(missing_ok=True)  # it is written last: where it is, the run is over
    write_whole(folder.recipe, dump_recipe(recipe))
    folder.write_environment(ranks.world, ranks.device)
    log = MetricsLog(folder.metrics, folder.tensorboard if recipe.telemetry.tensorboard else None, step)
    stack.callback(log.close)
    return log


def build_model(recipe: Recipe, dataset: Dataset) -> nn.Module:
    """The recipe's model on the CPU with random weights, the same on every process and under every engine."""
    torch.manual_seed(recipe.seed)
    model = create_model(recipe.model.name, **model_arguments(recipe, dataset))
    if recipe.model.freeze == "backbone":
        freeze_backbone(model)
    checkpointing = recipe.activation_checkpointing
    if checkpointing.mode != "none":
        set_activation_checkpointing(model, checkpointing.mode, checkpointing.k)
    return model


def initialize(recipe: Recipe, dataset: Dataset, model: nn.Module) -> Start | None:
    """Load what `model.init_from` names, where it names something.

    A run that goes on does not come here: it is filled from its checkpoint, and these weights need no longer exist.
    """
    if recipe.model.init_from is None:
        return None
    source = shipped_weights(recipe.model.init_from) or recipe.model.init_from
    try:
        start = load_initial_weights(model, source, classes=dataset.classes, new_head=recipe.model.new_head)
    except UserError as error:
        raise UserError(f"model.init_from: {error}") from None
    for line in start.lines():
        logger.info("model.init_from: %s", line)
    return start


def check_model(recipe: Recipe, dataset: Dataset, micro_batch: int) -> float:
    """FLOPs of the forward pass for each training image of a micro batch, counted before the model takes any memory.

    Raises:
        UserError: the model cannot be built, or does not take the images of training or evaluation.
    """
    arguments = model_arguments(recipe, dataset)
    images = image_shapes(recipe, dataset)
    return [forward_flops(recipe.model.name, arguments, shape, micro_batch) for shape in images][-1]


def build_train_loader(recipe: Recipe, dataset: Dataset, ranks: Ranks) -> PlannedLoader:
    data = recipe.data
    return PlannedLoader(
        data.train_split,
        dataset=dataset,
        transform=train_transform(recipe, dataset),
        seed=recipe.seed,
        slots=data.slots,
        global_batch=recipe.batch.global_batch,
        block=data.shuffle_block,
        rank=ranks.rank,
        world=ranks.world,
        workers=data.workers,
        prefetch=data.prefetch,
        pin_memory=ranks.device.type == "cuda",
    )


def _checkpoint_to_resume(store: CheckpointStore, resume: str) -> Path | None:
    store.clean()
    newest = store.newest()
    if resume == "auto":
        return newest.path if newest else None
    if resume == "never":
        if newest is not None:
            raise UserError(
                f"{store.folder.parent}: holds a run at step {newest.step}; choose another --run-dir, or go on "
                f"with --resume auto"
            )
        return None
    chosen = resolve(resume)
    if newest is not None and newest.path.resolve() != chosen.resolve():
        raise UserError(
            f"{store.folder.parent}: holds a run at step {newest.step}, which training from {chosen} would overwrite; "
            f"choose another --run-dir, or remove the later checkpoints"
        )
    return chosen


def _stream(recipe: Recipe, loader: PlannedLoader) -> dict[str, Any]:
    """What fixes the sequence of global batches, and what is learned from them; a resumed run must agree."""
    task = describe_task(recipe)
    section = "data" if recipe.task.kind == "restoration" else "task"
    return {
        **{f"{section}.{key}": value for key, value in task.items() if key != "kind"},
        **({"data.patch": recipe.data.patch} if recipe.task.kind == "restoration" else {}),
        "model.freeze": recipe.model.freeze,
        "seed": recipe.seed,
        "data.train_split": recipe.data.train_split,
        "data.slots": recipe.data.slots,
        "data.shuffle_block": recipe.data.shuffle_block,
        "batch.global_batch": recipe.batch.global_batch,
        "shards": sha256_of_shards(loader.split.shards),
    }


def _last_step(recipe: Recipe, steps_per_epoch: int) -> int:
    planned = recipe.schedule.epochs * steps_per_epoch
    return min(planned, recipe.schedule.max_steps or planned)


def _clock(recipe: Recipe, flops: float, ranks: Ranks) -> StepClock:
    peak = peak_flops(ranks.device, recipe.precision, recipe.telemetry.peak_tflops)
    return StepClock(
        recipe.batch.global_batch,
        flops_per_image=passes_of_training(recipe.model.freeze) * flops,
        peak_flops=None if peak is None else peak * ranks.world,
    )


def _summarize(
    recipe: Recipe, folder: RunFolder, loop: Loop, start_seconds: float, started: float, ranks: Ranks
) -> dict[str, Any]:
    newest = loop.saver.store.newest() if ranks.is_main else None
    return {
        "recipe": recipe.name,
        "run_dir": str(folder.path),
        "finished": not loop.stopped,
        "stopped_by": loop.stopped_by,
        "step": loop.step,
        "epochs": loop.step / loop.steps_per_epoch,
        "metrics": loop.metrics,
        "parameters": loop.saver.parameters,
        "trained_parameters": loop.saver.trained,
        "images_trained": loop.step * recipe.batch.global_batch,
        "start_seconds": round(start_seconds, 1),
        "seconds": round(time.monotonic() - started, 1),
        "skipped_steps": loop.guard.skipped,
        "rollbacks": loop.guard.rollbacks,
        "damaged_samples": loop.damaged,
        "peak_memory_bytes": peak_memory_bytes(ranks.device),
        "world_size": ranks.world,
        "checkpoint": str(newest.path) if newest else None,
    }


@contextmanager
def _log_to_file(folder: RunFolder, ranks: Ranks) -> Iterator[None]:
    handler = folder.log_to_file(ranks.rank)
    logger.info("rank %d of %d: process %d on %s", ranks.rank, ranks.world, os.getpid(), platform.node())
    try:
        yield
    except Exception:
        logger.exception("the run ends with an error")
        raise
    finally:
        logging.getLogger("crate_graph").removeHandler(handler)
        with suppress(OSError):  # a full disk: the run ends with its own message
            handler.close()
