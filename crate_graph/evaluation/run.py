"""The verb `evaluate`: metrics of a checkpoint, of shipped weights or of a method on a data set or a folder."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crate_graph.cluster.groups import agree, naming_a_lost_peer, process_group
from crate_graph.cluster.ranks import Ranks, discover
from crate_graph.engine.base import MicroBatch
from crate_graph.engine.objective import Objective, slow_precision
from crate_graph.errors import UserError
from crate_graph.evaluation.gallery import check_gallery, write_gallery
from crate_graph.evaluation.loaders import build_eval_loader
from crate_graph.evaluation.shifts import Shift
from crate_graph.evaluation.split import evaluate_split
from crate_graph.evaluation.subjects import Subject, open_subject
from crate_graph.models.tiles import Tiled
from crate_graph.redaction import redact
from crate_graph.tasks import build_task
from crate_graph.tasks.masked_autoencoding import PANELS

logger = logging.getLogger(__name__)


def evaluate(
    name: str, data: str, overrides: Sequence[str] = (), tile: int | None = None, pictures: Path | None = None
) -> dict[str, Any]:
    """Metrics of `name` on `data`, in the precision and with the view that its recipe evaluates with.

    Args:
        name: see `subjects.open_subject`.
        data: a data set; for restoration a folder of pictures, too.
        overrides: settings of the recipe to change (`data.eval_split=train`, `data.degradation.sigma=10`).
        tile: side of the tiles in which a picture is restored; None restores it whole.
        pictures: a PNG file to write: of the first images what a masked autoencoder sees, its completion, the original.

    Raises:
        UserError: no or a damaged checkpoint, an unknown data set, or one that does not fit the model; `pictures` is
            not to be written, see `gallery.check_gallery`.
    """
    ranks = discover()
    with process_group(ranks):  # first, since opening may take one host longer than another
        with agree(ranks):
            if pictures is not None and ranks.is_main:
                check_gallery(pictures)
            subject = open_subject(name, data, overrides)
        return _judge(subject, tile, pictures, ranks)


def judge(
    subject: Subject, tile: int | None = None, pictures: Path | None = None, shift: Shift | None = None
) -> dict[str, Any]:
    """Metrics of `subject`, after what it is and what it was judged on; under `shift`, where one is given."""
    ranks = discover()
    with process_group(ranks):
        return _judge(subject, tile, pictures, ranks, shift)


def _judge(
    subject: Subject, tile: int | None, pictures: Path | None, ranks: Ranks, shift: Shift | None = None
) -> dict[str, Any]:
    recipe, model = subject.recipe, subject.model
    if shift is not None:
        recipe = shift.applied(recipe)
    if tile is not None:
        if recipe.task.kind != "restoration":
            raise UserError(f"--tile {tile}: only pictures that are restored can be cut into tiles; leave it out")
        model = Tiled(model, tile)
    if pictures is not None and recipe.task.kind != "masked_autoencoding":
        raise UserError(f"--pictures {pictures}: only what a masked autoencoder completes can be shown; leave it out")
    if ranks.is_main and (slow := slow_precision(recipe.precision, ranks.device)) is not None:
        logger.warning(slow)
    objective = (
        Objective(model, build_task(recipe, subject.mean, subject.std), recipe.precision).to(ranks.device).eval()
    )

    if subject.labels and ranks.is_main:
        logger.warning(
            "%s: has its classes in another order than the model, or under names of folders; they are matched by name",
            subject.dataset.name,
        )
    numbers = torch.tensor(subject.labels, device=ranks.device)

    def measure(batch: MicroBatch) -> Tensor:
        images, targets, weights = batch
        with torch.inference_mode():
            return objective(images, numbers[targets] if subject.labels else targets, weights)

    with naming_a_lost_peer():
        loader = build_eval_loader(
            recipe, ranks, dataset=subject.dataset, mean=subject.mean, std=subject.std, shift=shift
        )
        try:
            metrics, damaged = evaluate_split(measure, objective.task, loader, ranks)
        finally:
            loader.close()
    if pictures is not None and ranks.is_main:
        write_gallery(pictures, objective.task.take_gallery(), PANELS)
    return {
        **subject.described,
        "dataset": subject.dataset.name if subject.dataset else redact(recipe.data.dataset),
        "split": loader.split.name,
        "samples": loader.split.samples,
        "damaged": damaged,
        **metrics,
    }
