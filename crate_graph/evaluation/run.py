"""The verb `evaluate`: a checkpoint, judged on a data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from crate_graph.checkpoint.manifest import read_manifest, read_verified
from crate_graph.checkpoint.model import load_model
from crate_graph.checkpoint.store import resolve
from crate_graph.cluster.groups import process_group
from crate_graph.cluster.ranks import discover
from crate_graph.config.load import load_recipe
from crate_graph.data import open_dataset
from crate_graph.engine.base import MicroBatch
from crate_graph.engine.objective import Objective
from crate_graph.errors import UserError
from crate_graph.evaluation.classification import build_eval_loader, evaluate_split
from crate_graph.tasks import ClassificationTask


def evaluate(checkpoint: str, data: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Metrics of `checkpoint` on the data set `data`, in the precision and with the view that its recipe evaluates
    with.

    `overrides` change that recipe (`data.eval_split=train`, `evaluation.use_ema=false`).

    Raises:
        UserError: no or a damaged checkpoint, an unknown data set, or one that does not fit the model.
    """
    folder = resolve(checkpoint)
    read_verified(folder, read_manifest(folder), "recipe.yaml")
    recipe = load_recipe(folder / "recipe.yaml", [f"data.dataset={data}", "data.root=null", *overrides])
    model, manifest = load_model(folder, use_ema=None if recipe.evaluation.use_ema else False)
    dataset = open_dataset(recipe.data.dataset, recipe.data.root)
    _check_fit(data, dataset, manifest)
    ranks = discover()
    objective = (
        Objective(model, ClassificationTask(recipe.task.label_smoothing), recipe.precision).to(ranks.device).eval()
    )

    def measure(batch: MicroBatch) -> Tensor:
        with torch.inference_mode():
            return objective(*batch)

    with process_group(ranks):
        trained = manifest["dataset"]
        loader = build_eval_loader(recipe, dataset, ranks, mean=trained["mean"], std=trained["std"])
        try:
            metrics, damaged = evaluate_split(measure, objective.task, loader, ranks)
        finally:
            loader.close()
    samples = loader.split.samples
    return {
        "checkpoint": str(folder),
        "step": manifest["step"],
        "dataset": dataset.name,
        "split": recipe.data.eval_split,
        "samples": samples,
        "damaged": damaged,
        **metrics,
    }


def _check_fit(data: str, dataset: Any, manifest: dict[str, Any]) -> None:
    trained = manifest["dataset"]
    if dataset.num_classes != manifest["model"]["num_classes"]:
        raise UserError(
            f"{data}: has {dataset.num_classes} classes, the model tells {manifest['model']['num_classes']} apart "
            f"({trained['name']}); choose a data set with the same classes, or fine-tune with model.init_from"
        )
    if dataset.channels != len(trained["mean"]):
        raise UserError(
            f"{data}: images have {dataset.channels} channels, the model was trained on {len(trained['mean'])} "
            f"({trained['name']}); choose a data set of the same kind"
        )
