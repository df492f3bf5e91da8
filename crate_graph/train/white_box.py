"""What the white box shows while it trains: `telemetry.whitebox` in the recipe.

Every so many steps the main process looks at a few training samples with a shell of the model, which takes the weights
as they are for that moment. The model that trains is not run, not hooked and not switched to another mode, so nothing
of the training depends on it: the weights that result are the same, bit for bit. Other ranks only lend their part of
the weights, where ZeRO-3 has dealt them out, and wait at their next collective.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from crate_graph.analysis.layers import MEASURED, activations, has_measures, weights
from crate_graph.analysis.measured import Measured
from crate_graph.cluster.ranks import Ranks
from crate_graph.config.schema import Recipe
from crate_graph.data import Dataset, PlannedLoader
from crate_graph.data.augment import build_eval_transform
from crate_graph.data.degrade import unpack
from crate_graph.data.keyed import KeyedView
from crate_graph.engine.base import Engine
from crate_graph.errors import UserError
from crate_graph.models.restorers import is_restorer
from crate_graph.tasks.build import train_transform
from crate_graph.tasks.masked_autoencoding import random_masks
from crate_graph.train.metrics_log import MetricsLog
from crate_graph.train.telemetry import StepClock


@dataclass
class Probe:
    """Of the main process: the model without weights, and what it is given."""

    shell: nn.Module
    inputs: tuple[Tensor | None, ...]


def build_probe(recipe: Recipe, dataset: Dataset, model: nn.Module, ranks: Ranks) -> Probe | None:
    """None on other ranks than the main one, and where nothing is to be measured. Before an engine changes the model.

    Raises:
        UserError: a model whose layers have no measures, or fewer training samples than asked for.
    """
    settings = recipe.telemetry.whitebox
    if settings.every is None:
        return None
    if not has_measures(model):
        raise UserError(
            f"model.name={recipe.model.name}: has no layers that telemetry.whitebox measures (those of {MEASURED} have "
            f"some); leave telemetry.whitebox out"
        )
    samples = dataset.split(recipe.data.train_split).samples
    if settings.samples > samples:
        raise UserError(f"telemetry.whitebox.samples={settings.samples}: the training split has {samples}; choose less")
    return Probe(shell_of(model), _probe_batch(recipe, dataset, model, ranks)) if ranks.is_main else None


def shell_of(model: nn.Module) -> nn.Module:
    """A copy of the model whose parameters take no memory; buffers, and what is not trained, are copied."""
    memo = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=False)
        for p in model.parameters()
        if p.requires_grad
    }
    return copy.deepcopy(model, memo)


def _probe_batch(recipe: Recipe, dataset: Dataset, model: nn.Module, ranks: Ranks) -> tuple[Tensor | None, ...]:
    """Training samples that the seed alone chooses: as an evaluation sees images, or restoration its first patches.

    Of a masked autoencoder, which patches are hidden, too: as many as in training.
    """
    data, restores = recipe.data, is_restorer(recipe.model.name)
    masks = recipe.task.kind == "masked_autoencoding"
    as_evaluated = dict(mean=dataset.mean, std=dataset.std, channels=dataset.channels, num_classes=dataset.num_classes)
    view = train_transform(recipe, dataset) if restores else build_eval_transform(data.eval_transform, **as_evaluated)
    loader = PlannedLoader(
        data.train_split,
        dataset=dataset,
        transform=KeyedView(view) if masks else view,
        seed=recipe.seed,
        slots=1,
        global_batch=recipe.telemetry.whitebox.samples,
        block=data.shuffle_block,
    )
    try:
        batch = next(loader.epoch(0)).to(ranks.device)
    finally:
        loader.close()
    images = batch.images  # (n, C, H, W)
    if masks:
        patches = math.prod(model.grid_size(*images.shape[-2:]))
        return images, random_masks(batch.targets, patches, recipe.task.mask_ratio)
    if not restores:
        return (images,)
    observed, mask, sigma = unpack(images)
    return observed, mask, sigma if getattr(model, "noise_aware", False) else None


class WhiteBox:
    """Measures at step 0, every `every` steps and at the last one, and writes them down."""

    def __init__(
        self,
        every: int | None,
        probe: Probe | None,
        engine: Engine,
        clock: StepClock,
        log: MetricsLog | None,
        last_step: int,
    ):
        self._every, self._probe, self._engine = every, probe, engine
        self._clock, self._log, self._last_step = clock, log, last_step
        self._trained = 0.0  # seconds of training before the look before

    def look(self, step: int) -> None:
        """Measure the weights after `step` steps, if it is time. Collective; the clock of the steps leaves it out."""
        if self._every is None or (step % self._every and step != self._last_step):
            return
        if self._engine.device.type == "cuda":
            torch.cuda.synchronize(self._engine.device)  # what the step still computes is not ours
        started = time.perf_counter()
        values = self._weights()
        if self._probe is not None:
            measured = measure(self._probe, values)
            self._write(step, measured, time.perf_counter() - started)
        self._clock.restart()

    def _weights(self) -> dict[str, Tensor]:
        """All parameters and buffers on the main process, without a copy where it holds them whole; none elsewhere."""
        whole = {}
        for name, local in self._engine.local_parameters().items():
            full = self._engine.gather(name, local)
            if self._probe is not None:
                whole[name] = full
        return whole | dict(self._engine.model.named_buffers()) if self._probe is not None else {}

    def _write(self, step: int, measured: list[Measured], seconds: float) -> None:
        if self._log is None:
            return
        record: dict[str, Any] = {"white_box": [_as_json(m) for m in measured], "white_box_seconds": seconds}
        trained, self._trained = self._clock.trained_seconds - self._trained, self._clock.trained_seconds
        if trained:
            record["white_box_share"] = seconds / trained  # of the time that the steps since the last look took
        self._log.write(step, record)
        self._log.scalars({_tag(m): m.mean for m in measured}, step)


@torch.no_grad()
def measure(probe: Probe, values: dict[str, Tensor]) -> list[Measured]:
    """The probe's measures with these weights; afterwards its shell is empty again.

    Of weights, only the few scalars of a graph network: spectra take longer than many steps.
    """
    shell = probe.shell
    empty = shell.state_dict()
    shell.load_state_dict({**empty, **{name: values[name] for name in empty if name in values}}, assign=True)
    try:
        found = activations(shell, *probe.inputs)
        if hasattr(shell, "graph_flops"):
            found += [m for m in weights(shell) if len(m.layer) < 3]  # alpha and beta of each CG step are too many
    finally:
        shell.load_state_dict(empty, assign=True)
    return found


def _as_json(measured: Measured) -> dict[str, Any]:
    """JSON has no NaN."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(measured).items()}


def _tag(measured: Measured) -> str:
    """TensorBoard shows the layers of a measure side by side."""
    return f"white_box_{measured.name}/{'.'.join(f'{n:02d}' for n in measured.layer)}"
