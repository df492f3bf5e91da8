"""The loader that an evaluation reads, by the recipe's task."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from crate_graph.cluster.ranks import Ranks
from crate_graph.config.schema import Recipe
from crate_graph.data import Dataset, PlannedLoader, open_dataset
from crate_graph.data.augment import build_eval_transform
from crate_graph.data.degrade import Observed, observe
from crate_graph.data.keyed import KeyedView
from crate_graph.data.photographs import WholeImages, open_pictures
from crate_graph.data.remote.cache import ShardCache
from crate_graph.evaluation.corruptions import CorruptedView
from crate_graph.evaluation.shifts import Shift, observe_moved


def build_eval_loader(
    recipe: Recipe,
    ranks: Ranks,
    *,
    dataset: Dataset | None = None,
    mean: Sequence[float],
    std: Sequence[float],
    shift: Shift | None = None,
) -> PlannedLoader | WholeImages:
    """Every sample of the evaluation split once; the last batches are padded with weight 0, so all ranks take equal
    steps.

    `dataset` is what `data.dataset` names, where it is open already; `mean` and `std` are those that the model was
    trained with. Restoration reads whole pictures, of a data set or of a plain folder, and uses none of the three. What
    is random of a sample (a mask, a noise) is the same in every evaluation, whatever the recipe's seed. `shift` changes
    what is seen; the recipe is one that it was applied to.

    Raises:
        UserError: no such data, or no such split.
    """
    data = recipe.data
    if recipe.task.kind == "restoration":
        return _whole_pictures(recipe, ranks, observe_moved if shift is not None and shift.moved else observe)
    dataset = dataset or open_dataset(data.dataset, data.root, ShardCache(data.cache, data.remote))
    readers = max(data.workers, 1)
    per_reader = -(-recipe.evaluation.batch_size // readers)
    view = build_eval_transform(
        data.eval_transform, mean=mean, std=std, channels=dataset.channels, num_classes=dataset.num_classes
    )
    if shift is not None and shift.corruption is not None:
        view = CorruptedView(view, shift.corruption)
    return PlannedLoader(
        data.eval_split,
        dataset=dataset,
        transform=KeyedView(view) if recipe.task.kind == "masked_autoencoding" else view,
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


def _whole_pictures(recipe: Recipe, ranks: Ranks, observed_by: Callable[..., Observed]) -> WholeImages:
    """The same masks and the same noise whatever the recipe's seed, so that all are judged on the same pictures."""
    data = recipe.data
    return WholeImages(
        open_pictures(data.dataset, data.eval_split, data.root, ShardCache(data.cache, data.remote)),
        data.degradation,
        data.color,
        observed_by,
        seed=0,
        rank=ranks.rank,
        world=ranks.world,
        pin_memory=ranks.device.type == "cuda",
    )
