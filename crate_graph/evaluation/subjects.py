"""What can be evaluated, by the name that a user gives it: a model, and the recipe that says on which data and how."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from crate_graph.checkpoint.manifest import read_manifest, read_verified
from crate_graph.checkpoint.model import load_model
from crate_graph.checkpoint.store import resolve
from crate_graph.config.load import load_recipe, make_recipe
from crate_graph.config.schema import Degradation, Recipe
from crate_graph.data import Dataset, open_dataset
from crate_graph.data.class_folders import are_named, folder_name, match_classes
from crate_graph.data.photographs import is_folder_of_pictures
from crate_graph.data.remote.cache import ShardCache
from crate_graph.errors import UserError
from crate_graph.evaluation.classical import METHODS, Classical, degradation_of
from crate_graph.models import create_model
from crate_graph.redaction import redact
from crate_graph.tasks.build import check_degradation, color_channels
from crate_graph.weights.names import DESCRIPTION, list_weights, load_restorer

UNTRAINED = ("iglr", "igtv")  # networks without weights to learn
# settings of a recipe, and sections of it, that an evaluation can depend on
JUDGED = (
    "data.degradation",
    "data.color",
    "data.eval_split",
    "data.root",
    "data.eval_transform",
    "data.workers",
    "data.prefetch",
    "data.cache",
    "data.remote",
    "task",
    "precision",
    "evaluation",
)


@dataclass(frozen=True)
class Subject:
    """What is judged."""

    model: nn.Module
    recipe: Recipe
    described: dict[str, Any]  # begins the result
    dataset: Dataset | None = None  # opened, but for restoration
    mean: Sequence[float] = ()  # of the data that the model was trained on, likewise
    std: Sequence[float] = ()
    labels: tuple[int, ...] = ()  # the model's number of each class of the data set, where they differ


def open_subject(name: str, data: str, overrides: Sequence[str] = ()) -> Subject:
    """A checkpoint, shipped or exported weights, or a method, on `data`.

    Args:
        name: a checkpoint, a run folder for its newest one, shipped or exported weights of a restoration network, or
            what needs no training: one of `classical.METHODS`, or of `UNTRAINED`.
        data: a data set; for restoration a folder of pictures, too.
        overrides: settings of the recipe to change.

    Raises:
        UserError: nothing of that name, a damaged checkpoint, a problem that the model was not trained for, or an
            override that could change nothing.
    """
    if not data.strip():
        raise UserError(f"--data {data!r}: is empty; name a data set, its folder or its address")
    _check_overrides(data, overrides)
    if name in METHODS or name in UNTRAINED:
        return _open_method(name, data, overrides)
    if name in list_weights() or Path(name).is_file() or (Path(name) / DESCRIPTION).is_file():
        return _open_weights(name, data, overrides)
    return _open_checkpoint(name, data, overrides)


def _check_overrides(data: str, overrides: Sequence[str]) -> None:
    for override in overrides:
        key = override.partition("=")[0]
        if key == "data.dataset":
            raise UserError(f"{override}: an evaluation is on --data {data}; leave it out, or name it there")
        if not any(key == judged or key.startswith(f"{judged}.") for judged in JUDGED):
            raise UserError(f"{override}: is for training and changes nothing in an evaluation; leave it out")
        if key in ("data.eval_split", "data.root") and is_folder_of_pictures(data):
            raise UserError(f"{override}: {data} is a folder of pictures and has no splits or shards; leave it out")


def _open_method(name: str, data: str, overrides: Sequence[str]) -> Subject:
    recipe = _recipe_on(data, name, degradation_of(name), overrides)
    model = Classical(name) if name in METHODS else create_model(name, in_chans=color_channels(recipe))
    return Subject(model, recipe, {"method": name})


def _open_weights(name: str, data: str, overrides: Sequence[str]) -> Subject:
    restorer = load_restorer(name)
    settings = {"degradation": restorer.degradation.model_dump(), "color": restorer.color}
    recipe = _recipe_on(data, restorer.architecture, settings, overrides)
    _check_problem(name, restorer.degradation, restorer.color, recipe)
    return Subject(restorer.model, recipe, {"weights": name, "step": restorer.step})


def _recipe_on(data: str, model: str, settings: dict[str, Any], overrides: Sequence[str]) -> Recipe:
    """A recipe that evaluates as `settings` of its `data` section say. Raises UserError for a wrong override."""
    values = {
        "name": model,
        "task": {"kind": "restoration"},
        "model": {"name": model},
        "data": {"dataset": data, **settings},
    }
    return make_recipe(values, model, overrides)


def _open_checkpoint(checkpoint: str, data: str, overrides: Sequence[str]) -> Subject:
    """With its recipe, on other data."""
    folder = resolve(checkpoint)
    read_verified(folder, read_manifest(folder), "recipe.yaml")
    trained = load_recipe(folder / "recipe.yaml")
    moved = [f"data.dataset={json.dumps(data)}", "data.root=null"]
    recipe = load_recipe(folder / "recipe.yaml", [*moved, *overrides])
    if recipe.task.kind != trained.task.kind:
        raise UserError(f"{folder}: was trained for {trained.task.kind}; leave task.kind as it was")
    model, manifest = load_model(folder, use_ema=None if recipe.evaluation.use_ema else False)
    described = {"checkpoint": str(folder), "step": manifest["step"]}
    if recipe.task.kind == "restoration":
        _check_problem(str(folder), trained.data.degradation, trained.data.color, recipe)
        return Subject(model, recipe, described)
    dataset = open_dataset(recipe.data.dataset, recipe.data.root, ShardCache(recipe.data.cache, recipe.data.remote))
    _check_kind(data, dataset, manifest)
    before = manifest["dataset"]
    labels = _labels(data, dataset, manifest)
    return Subject(model, recipe, described, dataset, before["mean"], before["std"], labels)


def _check_problem(where: str, degradation: Degradation, color: str, recipe: Recipe) -> None:
    """Raise UserError where `recipe` asks for something else than what the model `where` was trained for."""
    check_degradation(degradation, recipe.data.degradation, where)
    if recipe.data.color != color:
        raise UserError(f"{where}: was trained with data.color={color}; leave data.color as it was")


def _check_kind(data: str, dataset: Dataset, manifest: dict[str, Any]) -> None:
    trained, data = manifest["dataset"], redact(data)
    if manifest["model"]["num_classes"] not in (None, dataset.num_classes):
        raise UserError(
            f"{data}: has {dataset.num_classes} classes, the model tells {manifest['model']['num_classes']} apart "
            f"({trained['name']}); choose a data set with the same classes, or fine-tune with model.init_from"
        )
    if dataset.channels != len(trained["mean"]):
        raise UserError(
            f"{data}: images have {dataset.channels} channels, the model was trained on {len(trained['mean'])} "
            f"({trained['name']}); choose a data set of the same kind"
        )


def _labels(data: str, dataset: Dataset, manifest: dict[str, Any]) -> tuple[int, ...]:
    """The model's number of each class of the data set, by name; empty where it is the same, or one has no names.

    Raises:
        UserError: both have names, and not those of the same classes.
    """
    trained, found = manifest["dataset"]["classes"], dataset.classes
    if manifest["model"]["num_classes"] != len(trained) or not (are_named(trained) and are_named(found)):
        return ()
    labels = match_classes(trained, found)
    if labels is None:
        raise UserError(
            f"{redact(data)}: its classes are not those that the model was trained on ({manifest['dataset']['name']}): "
            f"{_some_of(found, trained)} here, {_some_of(trained, found)} there; choose a data set with the same "
            f"classes, rename those in its dataset.yaml, or fine-tune with model.init_from"
        )
    return () if labels == tuple(range(len(labels))) else labels


def _some_of(names: Sequence[str], others: Sequence[str]) -> str:
    """The first names that are not among the others, which the others may have as names of folders."""
    own = [name for name in names if not {name, folder_name(name)} & {*others, *map(folder_name, others)}] or names
    return ", ".join(map(repr, own[:3])) + (" ..." if len(own) > 3 else "")
