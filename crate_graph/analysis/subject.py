"""What is analysed, by the name that a user gives it: a model, the same model before training, and its pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from crate_graph.analysis.exported import Exported, read_exported
from crate_graph.checkpoint.described import DESCRIPTION, WEIGHTS
from crate_graph.checkpoint.manifest import read_manifest, read_verified, task_of
from crate_graph.checkpoint.model import arguments_of, load_model
from crate_graph.checkpoint.store import resolve
from crate_graph.config.load import load_recipe
from crate_graph.config.schema import Degradation, EvalTransform, Recipe
from crate_graph.models import create_model
from crate_graph.models.crate_mae import CRATEMAE
from crate_graph.paths import expanded
from crate_graph.weights.names import list_weights, load_restorer

Task = Literal["classification", "restoration", "masked_autoencoding"]


@dataclass(frozen=True)
class Subject:
    """A trained model, as it was initialised, and what says which pictures it takes."""

    name: str  # as the user wrote it
    task: Task
    architecture: str
    model: nn.Module
    initial: nn.Module  # the same architecture with random weights
    start: str  # which random weights, in words
    facts: dict[str, Any]
    dataset: str  # that its recipe names
    recipe: Recipe | None = None  # of a checkpoint: where the data set lies
    split: str = "test"
    view: EvalTransform | None = None  # of a classifier and of a masked autoencoder, as are the next two
    mean: Sequence[float] = ()
    std: Sequence[float] = ()
    classes: Sequence[str] = ()  # of a classifier, by number; empty where nothing names them
    degradation: Degradation | None = None  # of a restoration network, as is the next
    color: str = "rgb"
    mask_ratio: float = 0.75  # of a masked autoencoder, as is the next
    normalize_patches: bool = False
    notes: tuple[str, ...] = field(default=())


def open_subject(name: str) -> Subject:
    """A run folder, a checkpoint, an exported folder or file, published weights, or the name of shipped weights.

    Raises:
        UserError: nothing of that kind, a damaged one, or one that does not say how its model is built.
    """
    path = expanded(name)
    if path.name == WEIGHTS and (path.parent / DESCRIPTION).is_file():
        path = path.parent
    if name in list_weights() or (path / DESCRIPTION).is_file():
        return _restorer(name, path if (path / DESCRIPTION).is_file() else name)
    if (exported := read_exported(path)) is not None:
        return _exported(name, exported)
    if path.is_file() or not path.exists():
        return _restorer(name, path if path.is_file() else name)  # says what is near
    return _checkpoint(name, path)


def _checkpoint(name: str, path: Path) -> Subject:
    folder = resolve(path)
    manifest = read_manifest(folder)
    read_verified(folder, manifest, "recipe.yaml")
    recipe = load_recipe(folder / "recipe.yaml")
    model, manifest = load_model(folder, use_ema=None if recipe.evaluation.use_ema else False)
    task, described = task_of(manifest), manifest["model"]
    start = f"before training (seed {recipe.seed})"
    notes = ()
    if recipe.model.init_from is not None:
        start = _RANDOM.format(recipe.seed)
        notes = ("The run began from weights that were trained before; what is shown beside them is random weights.",)
    common = {
        "name": name,
        "architecture": described["name"],
        "model": model,
        "initial": _random(described["name"], arguments_of(manifest), recipe.seed),
        "start": start,
        "facts": _facts(recipe.name, manifest["dataset"]["name"], manifest["step"], manifest["metrics"]),
        "dataset": recipe.data.dataset,
        "recipe": recipe,
        "split": recipe.data.eval_split,
        "notes": notes,
    }
    if task["kind"] == "restoration":
        degradation = Degradation.model_validate(task["degradation"])
        return Subject(task="restoration", degradation=degradation, color=task["color"], **common)
    data = manifest["dataset"]
    common |= {"view": recipe.data.eval_transform, "mean": data["mean"], "std": data["std"]}
    if task["kind"] == "masked_autoencoding":
        asked = {key: task[key] for key in ("mask_ratio", "normalize_patches")}
        return Subject(task="masked_autoencoding", **asked, **common)
    return Subject(task="classification", classes=named_classes(data["classes"]), **common)


def _restorer(name: str, where: str | Path) -> Subject:
    restorer = load_restorer(where)
    return Subject(
        name=name,
        task="restoration",
        architecture=restorer.architecture,
        model=restorer.model,
        initial=_random(restorer.architecture, restorer.model_args, 0),
        start=_RANDOM.format(0),
        facts=_facts(restorer.recipe, restorer.dataset, restorer.step, restorer.metrics),
        dataset=restorer.dataset,
        degradation=restorer.degradation,
        color=restorer.color,
        notes=(_NO_SEED,),
    )


def _exported(name: str, found: Exported) -> Subject:
    return Subject(
        name=name,
        task="masked_autoencoding" if isinstance(found.model, CRATEMAE) else "classification",
        architecture=found.architecture,
        model=found.model,
        initial=_from_seed(found.create, 0),
        start=_RANDOM.format(0),
        facts=found.facts,
        dataset=found.dataset,
        view=found.view,
        mean=found.mean,
        std=found.std,
        classes=named_classes(found.classes),
        notes=(_NO_SEED, *found.notes),
    )


def named_classes(names: Sequence[str]) -> tuple[str, ...]:
    """Classes that are only numbers, in words."""
    return tuple(f"class {name}" if name == str(number) else str(name) for number, name in enumerate(names))


_RANDOM = "with random weights (seed {})"
_NO_SEED = "Exported weights do not say from which seed they began; what is shown beside them is random weights."


def _random(architecture: str, arguments: dict[str, Any], seed: int) -> nn.Module:
    """The model as training with that seed begins, if it begins from random weights."""
    if "pretrained" in arguments:
        arguments = {**arguments, "pretrained": False}
    return _from_seed(lambda: create_model(architecture, **arguments), seed)


def _from_seed(create: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Random numbers go on as before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return create().eval()


def _facts(recipe: str, dataset: str, step: int, metrics: dict[str, float]) -> dict[str, Any]:
    return {"recipe": recipe, "trained on": dataset, "step": step, **metrics}
