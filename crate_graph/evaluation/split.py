"""Metrics over a whole split, on one process or on many."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from crate_graph.cluster.ranks import Ranks
from crate_graph.data import Batch
from crate_graph.data.index import Shard
from crate_graph.engine.base import MicroBatch
from crate_graph.engine.objective import Task
from crate_graph.errors import UserError

logger = logging.getLogger(__name__)


class Samples(Protocol):
    """What a loader reads: a split of a data set, or the pictures of a folder."""

    name: str
    samples: int
    shards: tuple[Shard, ...]  # none in a folder


class EvalLoader(Protocol):
    """`PlannedLoader` or `WholeImages`: equally many batches on each rank, each sample with weight 1 on one of them."""

    split: Samples

    def epoch(self, epoch: int) -> Iterator[Batch]: ...

    def close(self) -> None: ...


def evaluate_split(
    measure: Callable[[MicroBatch], Tensor], task: Task, loader: EvalLoader, ranks: Ranks
) -> tuple[dict[str, float], int]:
    """Metrics over all good samples, and how many damaged ones were left out; alike on all ranks. Collective.

    Raises:
        UserError: every sample is damaged.
    """
    sums, damaged = None, 0
    for batch in loader.epoch(0):
        for sample in batch.damaged:
            logger.warning("damaged evaluation sample left out: %s", sample)
        damaged += len(batch.damaged)
        batch = batch.to(ranks.device, non_blocking=True)
        part = measure((batch.images, batch.targets, batch.weights))
        sums = part if sums is None else sums + part
    assert sums is not None, "a split holds at least one sample"
    sums = torch.cat((sums, sums.new_tensor([damaged])))
    if ranks.world > 1:
        dist.all_reduce(sums)
    damaged = int(sums[-1].item())
    if damaged >= loader.split.samples:
        raise UserError(
            f"{loader.split.shards[0].path.parent}: all samples of the split {loader.split.name} are damaged; "
            f"check it with: crate-graph shards verify --decode"
        )
    return task.summarize(sums[:-1]), damaged
