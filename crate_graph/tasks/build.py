"""From a recipe to its task, and to what the task asks of the model: here alone the kinds of training part."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from crate_graph.config.schema import Degradation, Recipe
from crate_graph.data import Dataset
from crate_graph.data.augment import TrainView, build_train_transform
from crate_graph.data.keyed import KeyedView
from crate_graph.data.patches import PatchView
from crate_graph.errors import UserError
from crate_graph.models.factory import is_autoencoder
from crate_graph.models.restorers import RESTORERS, is_restorer
from crate_graph.tasks.classification import ClassificationTask
from crate_graph.tasks.masked_autoencoding import MaskedAutoencodingTask
from crate_graph.tasks.restoration import RestorationTask


def build_task(
    recipe: Recipe, mean: Sequence[float], std: Sequence[float]
) -> ClassificationTask | RestorationTask | MaskedAutoencodingTask:
    """`mean`, `std`: of each channel, by which images are normalised; restoration's are not."""
    task = recipe.task
    if task.kind == "restoration":
        return RestorationTask(task.loss)
    if task.kind == "masked_autoencoding":
        return MaskedAutoencodingTask(task.mask_ratio, task.normalize_patches, mean, std)
    return ClassificationTask(task.label_smoothing)


def model_arguments(recipe: Recipe, dataset: Dataset) -> dict[str, Any]:
    """The keyword arguments of `create_model`: the recipe's, and what follows from task and data.

    Raises:
        UserError: a model that is not for the task, or for another number of channels.
    """
    name, kwargs = recipe.model.name, recipe.model.kwargs
    if (recipe.task.kind == "masked_autoencoding") != is_autoencoder(name):
        remedy = "set task.kind=masked_autoencoding, or choose another model"
        if not is_autoencoder(name):
            remedy = "choose one of crate_mae_{tiny,small,base,large}_patch16_224, or another task.kind"
        raise UserError(f"model.name={name} and task.kind={recipe.task.kind} do not fit; {remedy}")
    if is_autoencoder(name):
        return {"in_chans": dataset.channels, **kwargs}
    if recipe.task.kind != "restoration":
        if is_restorer(name):
            raise UserError(f"model.name={name} is for restoration; set task.kind=restoration, or choose another model")
        return {"num_classes": dataset.num_classes, **kwargs}
    if not is_restorer(name):
        raise UserError(
            f"model.name={name} is not for restoration; choose one of {', '.join(sorted(RESTORERS))}, or set "
            f"task.kind=classification"
        )
    channels = color_channels(recipe)
    if kwargs.get("in_chans", channels) != channels:
        raise UserError(
            f"model.kwargs.in_chans={kwargs['in_chans']}, but data.color={recipe.data.color} has {channels}; leave "
            f"in_chans out"
        )
    return {"in_chans": channels, **kwargs}


def train_transform(recipe: Recipe, dataset: Dataset) -> TrainView | PatchView | KeyedView:
    """What the loader makes of a training sample."""
    data = recipe.data
    if recipe.task.kind == "restoration":
        return PatchView(data.patch, data.degradation, data.color)
    view = build_train_transform(
        data.train_transform,
        mean=dataset.mean,
        std=dataset.std,
        channels=dataset.channels,
        num_classes=dataset.num_classes,
    )
    return KeyedView(view) if recipe.task.kind == "masked_autoencoding" else view


def color_channels(recipe: Recipe) -> int:
    """Channels of a picture that is restored."""
    return 1 if recipe.data.color == "y" else 3


def image_shapes(recipe: Recipe, dataset: Dataset) -> list[tuple[int, int, int]]:
    """(C, H, W) of the images that the model must take, those of training last. Restoration evaluates at any size."""
    data = recipe.data
    if recipe.task.kind == "restoration":
        return [(color_channels(recipe), data.patch, data.patch)]
    return [(dataset.channels, size, size) for size in (data.eval_transform.size, data.train_transform.size)]


def describe_task(recipe: Recipe) -> dict[str, Any]:
    """The task in the manifest of a checkpoint: what whoever uses the model must know of it."""
    task = recipe.task
    if task.kind == "masked_autoencoding":
        return {"kind": task.kind, "mask_ratio": task.mask_ratio, "normalize_patches": task.normalize_patches}
    if task.kind != "restoration":
        return {"kind": task.kind}
    degradation = json.loads(json.dumps(recipe.data.degradation.model_dump()))  # as a checkpoint gives it back
    return {"kind": task.kind, "degradation": degradation, "color": recipe.data.color}


def check_degradation(trained: Degradation, asked: Degradation, where: str) -> None:
    """Another noise level, or another share of known pixels, may be asked of a model; another problem may not.

    Args:
        where: names the model in the error.

    Raises:
        UserError: another kind, or a mosaic in a phase that the model was not trained for.
    """
    same_phase = trained.phase in (asked.phase, "any")
    if trained.kind != asked.kind or (asked.kind == "bayer" and not same_phase):
        raise UserError(
            f"{where}: was trained for {describe(trained)}, not for {describe(asked)}; use a model that was trained "
            f"for that, or leave data.degradation as it was"
        )


def describe(degradation: Degradation) -> str:
    """As users write it, for instance bayer:RGGB."""
    detail = {"bayer": f":{degradation.phase}", "random": f":{degradation.keep:g}"}
    return degradation.kind + detail.get(degradation.kind, "")
