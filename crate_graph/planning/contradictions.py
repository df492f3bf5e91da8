"""Where a recipe cannot run as asked, or would run badly: one line each, with the remedy."""

from __future__ import annotations

from typing import NamedTuple

from crate_graph.config.schema import Recipe
from crate_graph.errors import UserError
from crate_graph.paths import expanded
from crate_graph.planning.readers import (
    Shares,
    Split,
    readers,
    slots_that_fit,
    workers_that_fit,
    worlds_that_fit,
)
from crate_graph.planning.traffic import Cluster


class Finding(NamedTuple):
    """`stops`: the run would refuse to start, or end with an error; otherwise it would waste something."""

    stops: bool
    text: str


def of_batches(recipe: Recipe, world: int) -> list[Finding]:
    """Global batch, micro batch, slots and readers."""
    found = []
    batch, data = recipe.batch, recipe.data
    try:
        micro_batch, accumulation = batch.resolve(world)
    except UserError as error:
        below, above = worlds_that_fit(recipe, world)
        near = f"{below}" if above is None else f"{below} or {above}"
        found.append(Finding(True, f"{error} (the nearest that divide {batch.global_batch}: {near} processes)"))
    else:
        if micro_batch < 8 and batch.micro_batch is None and world > 1:
            found.append(
                Finding(
                    False,
                    f"batch.global_batch={batch.global_batch} leaves {micro_batch} samples to each of {world} "
                    f"processes, too few to keep a GPU busy; use fewer GPUs, or a larger global batch with another "
                    f"optimizer.lr",
                )
            )
        if recipe.engine.zero_stage == 2 and accumulation > 1:
            found.append(
                Finding(
                    False,
                    f"ZeRO-2 reduces gradients with each of {accumulation} micro batches; "
                    f"engine.zero_stage=1 does it once",
                )
            )
    count = readers(data, world)
    if data.slots % count:
        workers, slots = workers_that_fit(data, world), slots_that_fit(recipe, world)
        remedies = [f"data.workers={workers}"] if workers else []
        remedies += [f"data.slots={slots} (that changes the batches)"] if slots else []
        remedies = remedies or [f"a number of processes that divides {data.slots}"]
        found.append(
            Finding(
                True,
                f"data.slots={data.slots} do not divide among {world} processes x {max(data.workers, 1)} workers; "
                f"choose {' or '.join(remedies)}",
            )
        )
    if recipe.engine.zero_stage and world == 1:
        found.append(
            Finding(False, f"engine.zero_stage={recipe.engine.zero_stage} on one process shares nothing; set it to 0")
        )
    return found


def of_data(recipe: Recipe, split: Split, world: int, shares: Shares | None) -> list[Finding]:
    """Samples and shards."""
    found = []
    batch, count = recipe.batch, readers(recipe.data, world)
    if split.samples is not None and split.samples < batch.global_batch:
        found.append(
            Finding(
                True,
                f"data.dataset={recipe.data.dataset} has {split.samples:,} samples, fewer than one "
                f"batch.global_batch={batch.global_batch}; choose one of at most {split.samples} and slots that "
                f"divide it",
            )
        )
    elif split.samples is not None and split.samples % batch.global_batch > 0.1 * split.samples:
        left = split.samples % batch.global_batch
        found.append(
            Finding(
                False,
                f"{left:,} of {split.samples:,} samples do not fill a last batch of {batch.global_batch} and are left "
                f"out of each epoch; choose a smaller batch.global_batch",
            )
        )
    if split.shards is not None and split.shards < count:
        found.append(
            Finding(
                False,
                f"{count} readers share {split.shards} shards, so several read parts of one; make at least {count} "
                f"shards (crate-graph shards make --shards {count}), or lower data.workers",
            )
        )
    if shares is not None and shares.samples[0] < recipe.data.shuffle_block:
        slot = split.samples // recipe.data.slots if split.samples else 0
        if slot < batch.global_batch // recipe.data.slots * 2:
            found.append(
                Finding(
                    False, f"a slot has {slot} samples in an epoch, hardly anything to shuffle; use fewer data.slots"
                )
            )
    return found


def of_memory(recipe: Recipe, peak: int, limit: float, fits: int | None, other_modes: dict[str, int]) -> list[Finding]:
    """A micro batch that does not fit.

    Args:
        peak, limit: bytes.
        fits: the largest micro batch that does, or None.
        other_modes: peak by checkpointing mode.
    """
    if peak <= limit:
        return []
    remedies = [f"batch.micro_batch={fits}"] if fits else []
    remedies += [
        f"activation_checkpointing.mode={mode} ({_gib(bytes)})" for mode, bytes in other_modes.items() if bytes <= limit
    ]
    remedy = "set " + " or ".join(remedies[:3]) if remedies else "use a device with more memory, or a smaller model"
    return [
        Finding(True, f"a step needs {_gib(peak)} of the {_gib(limit)} that a GPU has for tensors; {remedy}"),
    ]


def of_device(recipe: Recipe, cluster: Cluster) -> list[Finding]:
    """Precision."""
    if recipe.precision == "bf16" and not cluster.device.bf16:
        return [Finding(False, "precision=bf16 has no tensor cores on this device; set precision=fp16")]
    if recipe.precision == "fp32" and cluster.device.half > 4 * cluster.device.single:
        factor = cluster.device.half / cluster.device.single
        return [
            Finding(
                False, f"precision=fp32 leaves the tensor cores idle, {factor:.0f} times faster; set precision=bf16"
            )
        ]
    return []


def of_run(recipe: Recipe, seconds_to_write: float, seconds_between: float | None) -> list[Finding]:
    """Checkpoints and where weights come from."""
    found = []
    if seconds_between is not None and seconds_to_write > seconds_between:
        found.append(
            Finding(
                False,
                f"a checkpoint takes {seconds_to_write:.0f} s to write and one is due each {seconds_between:.0f} s, so "
                f"training would wait for the disk; set checkpoint.every_epochs or checkpoint.every_steps higher",
            )
        )
    source = recipe.model.init_from
    if source is not None and not expanded(source).exists():
        found.append(
            Finding(False, f"model.init_from={source} is not on this machine; it must be where the run starts")
        )
    if source is None and recipe.model.freeze == "backbone":
        found.append(
            Finding(
                False,
                "model.freeze=backbone without model.init_from trains a head on features of random weights; name the "
                "checkpoint or exported folder whose features are to be judged",
            )
        )
    if recipe.schedule.warmup_epochs >= recipe.schedule.epochs:
        found.append(
            Finding(
                False,
                f"schedule.warmup_epochs={recipe.schedule.warmup_epochs:g} lasts all schedule.epochs="
                f"{recipe.schedule.epochs}, so the rate never falls; shorten the warm-up",
            )
        )
    return found


def _gib(number: float) -> str:
    return f"{number / 2**30:.1f} GiB"
