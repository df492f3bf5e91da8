"""What a few real training steps of a recipe hold, send, write and take on the machine at hand, on synthetic images.

Alone or under torchrun: `python -m crate_graph.planning.measure RECIPE.yaml OUTPUT.json`.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake
from torch.profiler import ProfilerActivity, profile

from crate_graph.checkpoint.model import shapes
from crate_graph.checkpoint.store import CheckpointStore
from crate_graph.cluster.groups import process_group
from crate_graph.cluster.ranks import Ranks, discover
from crate_graph.config import load_recipe
from crate_graph.config.schema import Recipe
from crate_graph.data import Batch, Dataset, open_dataset
from crate_graph.engine.base import Engine
from crate_graph.engine.build import build_engine
from crate_graph.engine.objective import Objective
from crate_graph.models.heads import trained_parameters
from crate_graph.ops.memory import saved_bytes
from crate_graph.planning.rates import device_rates, fastest
from crate_graph.planning.tally import Tally
from crate_graph.planning.trace import batch_of_training
from crate_graph.resilience.guard import FiniteGuard
from crate_graph.tasks import build_task
from crate_graph.train.ema import Ema
from crate_graph.train.optimizer import build_optimizer
from crate_graph.train.run import build_model
from crate_graph.train.saving import Saver
from crate_graph.train.step import TrainStep

_MOST_RECORDS = 20  # of the memory of a step, until one is whole
_FEW_BYTES = 4096  # that a step may leave behind: single numbers


def measure(recipe: Recipe, ranks: Ranks, *, steps: int = 3, rates: bool = True) -> dict[str, Any]:
    """Collective. Bytes, seconds and counts of this rank:

    held: bytes between two steps, whoever holds them, and state: by kind. gradients: when all are made. kept: for the
    backward pass of one micro batch. peak_of_step: most bytes beyond those that are held. flops: of a step. sent: bytes
    handed to collectives in a step, by their name. checkpoint: bytes by file. step_seconds: median. rates: of the
    device, where asked for, see `planning.rates`.
    """
    with process_group(ranks):
        return measure_in_group(recipe, ranks, steps=steps, rates=rates)


def measure_in_group(recipe: Recipe, ranks: Ranks, *, steps: int = 3, rates: bool = True) -> dict[str, Any]:
    """As `measure`, where the process group is there already."""
    dataset = open_dataset(recipe.data.dataset, recipe.data.root)
    with ExitStack() as stack:
        before = held_bytes(ranks.device)
        micro_batch, accumulation = recipe.batch.resolve(ranks.world)
        model = build_model(recipe, dataset)
        model_shapes, trained = shapes(model), trained_parameters(model)
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
        train_step = TrainStep(recipe, engine, accumulation, 1000, ema)
        batch = random_batch(recipe, dataset, micro_batch * accumulation)
        for step in range(2):  # the second one has what the first one made: buckets, moments, gradients of DDP
            train_step(step, batch)
        held = held_bytes(ranks.device) - before
        found: dict[str, Any] = {"world": ranks.world, "held": held, "state": state_bytes(engine, ema)}
        micro = [x[:micro_batch] for x in (batch.images, batch.targets, batch.weights)]
        if recipe.engine.zero_stage < 3:  # there a bare forward pass has no weights
            kept = saved_bytes(lambda: engine.objective(*micro)[0], [*engine.model.parameters(), *micro])
            found["kept"] = kept
        found["gradients"] = _gradient_bytes(engine, batch, accumulation)
        with Tally() as tally:
            train_step(2, batch)
        found["flops"] = sum(operation.flops for operation in tally.operations)
        found["sent"] = dict(tally.sent)
        found["peak_of_step"] = _peak(train_step, batch, ranks)
        found["step_seconds"] = _seconds(train_step, batch, steps)
        if rates:
            found["rates"] = device_rates(engine.device) | {"ring": _ring_rate(ranks)}
        found = _of_the_worst_rank(found, ranks)
        found["checkpoint"], found["checkpoint_seconds"] = _checkpoint(
            recipe, dataset, engine, ema, train_step, model_shapes, trained
        )
    return found


def held_bytes(device: torch.device) -> int:
    """Of all tensors that there are on the device. Fake ones, which an export may have left, have no memory."""
    gc.collect()
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    tensors = (x for x in gc.get_objects() if issubclass(type(x), Tensor))
    return _bytes((x for x in tensors if x.device == device and not is_fake(x)), set())


def state_bytes(engine: Engine, ema: Ema | None) -> dict[str, int]:
    """What a rank holds between two steps, by kind; storage that several tensors share counts once."""
    weights = list(engine.local_parameters().values())
    frozen = list(engine.frozen_parameters().values())
    moments = [x for state in engine.optimizer.state.values() for x in state.values() if isinstance(x, Tensor)]
    seen: set[int] = set()
    return {
        "weights": _bytes([*weights, *frozen], seen),
        "buffers": _bytes(engine.model.buffers(), seen),
        "master": _bytes(engine.masters(), seen),
        "moments": _bytes(moments, seen),
        "ema": _bytes(ema.tensors(), seen) if ema is not None else 0,
    }


def _bytes(tensors: Iterable[Tensor], seen: set[int]) -> int:
    total = 0
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            total += storage.nbytes()
    return total


def _gradient_bytes(engine: Engine, batch: Batch, accumulation: int) -> int:
    """What gradients take at the end of the backward pass."""
    pieces = [(b.images, b.targets, b.weights) for b in batch.to(engine.device).split(accumulation)]
    engine.backward(pieces, 1.0 / len(batch))
    total = _bytes(engine.gradients(), set())
    engine.apply(None, torch.zeros((), device=engine.device))
    return total


def _peak(train_step: TrainStep, batch: Batch, ranks: Ranks) -> int:
    """Most bytes that a step takes beyond what is held before it, by the allocator's own record. Collective.

    What a thread of gloo gives back after its collective has ended is missing from a record now and then, never what is
    taken. So records err upwards only; the least one counts, once every rank has had a whole one.
    """
    if ranks.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(ranks.device)
        before = torch.cuda.memory_allocated(ranks.device)
        train_step(3, batch)
        return torch.cuda.max_memory_allocated(ranks.device) - before
    peak, whole = None, False
    for _ in range(_MOST_RECORDS):
        highest, left = _record(train_step, batch)
        peak = highest if peak is None else min(peak, highest)
        whole = whole or left < _FEW_BYTES
        if _all_ranks(whole, ranks):
            break
    return peak


def _record(train_step: TrainStep, batch: Batch) -> tuple[int, int]:
    """Most bytes beyond those before a step, and what is left of them after it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        train_step(3, batch)
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak, held


def _all_ranks(yes: bool, ranks: Ranks) -> bool:
    if ranks.world == 1:
        return yes
    answer = torch.tensor(int(yes))
    dist.all_reduce(answer, dist.ReduceOp.MIN)
    return bool(answer)


def _seconds(train_step: TrainStep, batch: Batch, steps: int) -> float:
    taken = []
    for step in range(steps):
        start = time.perf_counter()
        word = train_step(4 + step, batch)
        word.read()
        if batch.images.device.type == "cuda" or torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def _checkpoint(recipe, dataset, engine, ema, train_step, model_shapes, trained) -> tuple[dict[str, int], float]:
    """Bytes of each file of a checkpoint, and the seconds from the call until it is on disk."""
    with tempfile.TemporaryDirectory() as folder:
        saver = Saver(
            recipe,
            dataset,
            CheckpointStore(Path(folder)),
            engine=engine,
            ema=ema,
            loss_scale=train_step.loss_scale,
            guard=FiniteGuard(recipe.guard.max_consecutive_skips, recipe.guard.max_rollbacks, recipe.precision),
            stream={"seed": recipe.seed},
            shapes=model_shapes,
            trained=trained,
        )
        start = time.perf_counter()
        saver.save(1, 0, {})
        saver.writer.wait()
        seconds = time.perf_counter() - start
        files = {path.name: path.stat().st_size for path in Path(folder).glob("step-*/*")}
    return files, seconds


def _of_the_worst_rank(found: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    """Gradients and the step of the rank that has most; ranks differ in what of ZeRO's shares they hold."""
    if ranks.world == 1:
        return found
    worst = torch.tensor([float(found["gradients"]), found["step_seconds"]], device=ranks.device)
    dist.all_reduce(worst, dist.ReduceOp.MAX)
    return {**found, "gradients": int(worst[0]), "step_seconds": worst[1].item()}


def _ring_rate(ranks: Ranks) -> float:
    """Bytes/s that an all-reduce of 16 MiB moves through each link."""
    if ranks.world == 1:
        return float("inf")
    tensor = torch.ones(2**22, device=ranks.device)
    seconds = fastest(lambda: dist.all_reduce(tensor), ranks.device)
    return 2 * (ranks.world - 1) / ranks.world * tensor.nbytes / seconds


def random_batch(recipe: Recipe, dataset: Dataset, samples: int) -> Batch:
    """Noise in the place of images, or of pictures of which half the values are known."""
    images, targets, weights = batch_of_training(recipe, dataset, samples)
    generator = torch.Generator().manual_seed(0)
    images.uniform_(0, 1, generator=generator)
    if recipe.task.kind == "restoration":
        images[:, -1] = 0
        channels = (images.shape[1] - 1) // 2
        images[:, channels:-1] = (images[:, channels:-1] > 0.5).float()
        images[:, :channels] *= images[:, channels:-1]
    return Batch(images, targets, weights, torch.arange(samples))


def main(recipe: str, output: str) -> None:
    """One rank's figures; the main one writes them as JSON."""
    ranks = discover()
    found = measure(load_recipe(recipe), ranks)
    if ranks.is_main:
        Path(output).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
