"""Classification metrics over a whole split, on one process or on many."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from crate_graph.cluster.ranks import Ranks
from crate_graph.config.schema import Recipe
from crate_graph.data import Dataset, PlannedLoader
from crate_graph.data.augment import build_eval_transform
from crate_graph.engine.base import MicroBatch
from crate_graph.engine.objective import Task
from crate_graph.errors import UserError

logger = logging.getLogger(__name__)


def build_eval_loader(
    recipe: Recipe, dataset: Dataset, ranks: Ranks, *, mean: Sequence[float], std: Sequence[float]
) -> PlannedLoader:
    """Every sample of the evaluation split once; the last batches are padded with weight 0, so all ranks take equal
    steps.

    `mean` and `std` are those that the model was trained with.
    """
    data = recipe.data
    readers = max(data.workers, 1)
    per_reader = -(-recipe.evaluation.batch_size // readers)
    return PlannedLoader(
        data.eval_split,
        dataset=dataset,
        transform=build_eval_transform(
            data.eval_transform, mean=mean, std=std, channels=dataset.channels, num_classes=dataset.num_classes
        ),
        slots=ranks.world * readers,
        global_batch=ranks.world * readers * per_reader,
        shuffle=False,
        tail="pad",
        rank=ranks.rank,
        world=ranks.world,
        workers=data.workers,
        prefetch=data.prefetch,
        replace_damaged=False,
        pin_memory=ranks.device.type == "cuda",
    )


def evaluate_split(
    measure: Callable[[MicroBatch], Tensor], task: Task, loader: PlannedLoader, ranks: Ranks
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
