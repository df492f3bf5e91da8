"""Who reads what: batch arithmetic, slots and shards of each reader, by the code that plans the real stream."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from crate_graph.config.schema import Data, Recipe
from crate_graph.data import Dataset, open_dataset
from crate_graph.data.dataset import shard_paths
from crate_graph.data.plan import plan_epoch
from crate_graph.data.remote.cache import ShardCache
from crate_graph.data.remote.file import RemoteFile
from crate_graph.errors import RunFailed, UserError


@dataclass(frozen=True)
class Split:
    """What is known of a split without its shards at hand; None is unknown."""

    samples: int | None
    shards: int | None
    bytes: int | None
    source: str
    shard_samples: tuple[int, ...] | None  # of each shard
    shard_bytes: tuple[int, ...] | None = None  # likewise, where the shards are at hand
    remote: str | None = None  # the address of the shards, without credentials, where they are not in a folder
    unread: str = ""  # why what is at the address could not be read

    @property
    def bytes_per_sample(self) -> float | None:
        return self.bytes / self.samples if self.bytes and self.samples else None


@dataclass(frozen=True)
class Shares:
    """What one reader has in an epoch: the least and the most over all readers."""

    samples: tuple[int, int]
    shards: tuple[int, int]


def open_data(recipe: Recipe) -> Dataset:
    """The recipe's data set, described; what is at an address comes by the recipe's cache. Raises as `open_dataset`."""
    return open_dataset(recipe.data.dataset, recipe.data.root, ShardCache(recipe.data.cache, recipe.data.remote))


def know_split(dataset: Dataset, name: str, *, samples: int | None = None, shards: int | None = None) -> Split:
    """The split from its shards where they are at hand, else from `dataset.yaml`, else from what the caller assumes.

    At an address only the indexes of the shards are read.

    Raises:
        UserError: the data set has no such split.
    """
    if name not in dataset.description.splits:
        raise UserError(f"{dataset.file}: data set {dataset.name} has no split {name!r}")
    said = dataset.description.splits[name]
    remote = str(dataset.root) if isinstance(dataset.root, RemoteFile) else None
    unread = ""
    if samples is None and shards is None:
        try:
            split = dataset.split(name)
        except (UserError, RunFailed) as error:  # its shards are somewhere else, or not made yet
            unread = str(error) if remote else ""
        else:
            sizes = tuple(shard.bytes for shard in split.shards)
            source = f"indexes at {remote}" if remote else f"shards in {dataset.root}"
            return Split(
                *(split.samples, len(split.shards), sum(sizes), source, tuple(split.shard_samples)),
                shard_bytes=sizes,
                remote=remote,
            )
    if shards is None and "*" not in said.shards:
        shards = len(shard_paths(dataset.root, said.shards))
    count = samples or said.samples
    equal = None
    if count and shards:
        equal = tuple(count * (n + 1) // shards - count * n // shards for n in range(shards))
    described = str(dataset.file) if isinstance(dataset.file, RemoteFile) else f"{dataset.name}/dataset.yaml"
    source = "assumed on the command line" if samples else described
    return Split(count, shards, said.bytes, source, equal, remote=remote, unread=unread)


def readers(data: Data, world: int) -> int:
    """Processes that read: one per rank, or its workers."""
    return world * max(data.workers, 1)


def shares(recipe: Recipe, shard_samples: Sequence[int], count: int, epoch: int = 0) -> Shares:
    """What `count` readers have of an epoch. They must divide the slots."""
    data, batch = recipe.data, recipe.batch
    plan = plan_epoch(
        shard_samples,
        seed=recipe.seed,
        epoch=epoch,
        slots=data.slots,
        global_batch=batch.global_batch,
        block=data.shuffle_block,
    )
    ends = np.cumsum(np.asarray(shard_samples))
    samples, shards = [], []
    each = data.slots // count
    for reader in range(count):
        numbers = np.concatenate([plan.slot(slot) for slot in range(reader * each, (reader + 1) * each)])
        samples.append(len(numbers))
        shards.append(len(np.unique(np.searchsorted(ends, numbers, side="right"))))
    return Shares((min(samples), max(samples)), (min(shards), max(shards)))


def workers_that_fit(data: Data, world: int) -> int | None:
    """The most workers of a rank, not over those of the recipe, with which the readers divide the slots."""
    if data.slots % world:
        return None
    per_rank = data.slots // world
    return max((n for n in range(1, max(data.workers, 1) + 1) if per_rank % n == 0), default=None)


def slots_that_fit(recipe: Recipe, world: int) -> int | None:
    """The fewest slots, not below the recipe's, that the readers divide and that divide the global batch."""
    count = readers(recipe.data, world)
    batch = recipe.batch.global_batch
    fitting = (n for n in range(count, batch + 1, count) if batch % n == 0 and n >= recipe.data.slots)
    return next(fitting, None) or (count if batch % count == 0 else None)


def worlds_that_fit(recipe: Recipe, world: int) -> tuple[int, int | None]:
    """The nearest numbers of processes, below and above, that divide the global batch."""
    batch = recipe.batch.global_batch
    below = next(n for n in range(min(world, batch), 0, -1) if batch % n == 0)
    above = next((n for n in range(world, batch + 1) if batch % n == 0), None)
    return below, above


def micro_batch_of(recipe: Recipe, world: int) -> tuple[int, int]:
    """(micro batch, accumulation), or the nearest where the recipe cannot be met; `contradictions` says so."""
    try:
        return recipe.batch.resolve(world)
    except UserError:
        share = max(1, math.ceil(recipe.batch.global_batch / world))
        micro = min(recipe.batch.micro_batch or share, share)
        return micro, max(1, share // micro)
