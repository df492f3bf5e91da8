"""What is analysed, by the name that a user gives it: a model, the same model before training, and its pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from crate_graph.checkpoint.described import DESCRIPTION, WEIGHTS
from crate_graph.checkpoint.initial import read_weights
from crate_graph.checkpoint.manifest import read_manifest, read_verified, task_of
from crate_graph.checkpoint.model import arguments_of, load_model
from crate_graph.checkpoint.store import resolve
from crate_graph.config.load import load_recipe
from crate_graph.config.schema import Degradation, EvalTransform, Recipe
from crate_graph.errors import UserError
from crate_graph.export.safetensors_file import FORMAT, load_safetensors
from crate_graph.models import create_model
from crate_graph.models.weights import load_pretrained
from crate_graph.weights.names import list_weights, load_restorer

TIMMS = "config.json"  # describes a folder in timm's layout
Task = Literal["classification", "restoration"]


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
    view: EvalTransform | None = None  # of a classifier, as are the next two
    mean: Sequence[float] = ()
    std: Sequence[float] = ()
    degradation: Degradation | None = None  # of a restoration network, as is the next
    color: str = "rgb"
    notes: tuple[str, ...] = field(default=())


def open_subject(name: str) -> Subject:
    """A run folder, a checkpoint, an exported folder or file, or the name of shipped weights.

    Raises:
        UserError: nothing of that kind, a damaged one, or one that does not say how its model is built.
    """
    path = Path(name).expanduser()
    if path.name == WEIGHTS and any((path.parent / beside).is_file() for beside in (DESCRIPTION, TIMMS)):
        path = path.parent
    if name in list_weights() or (path / DESCRIPTION).is_file():
        return _restorer(name, path if (path / DESCRIPTION).is_file() else name)
    if path.is_file():
        metadata = _metadata(path)
        return _exported_file(name, path, metadata) if metadata.get("format") == FORMAT else _restorer(name, path)
    if (path / TIMMS).is_file():
        return _timm_folder(name, path)
    if not path.exists():
        _restorer(name, name)  # says what is near
    return _checkpoint(name, path)


def _checkpoint(name: str, path: Path) -> Subject:
    folder = resolve(path)
    manifest = read_manifest(folder)
    read_verified(folder, manifest, "recipe.yaml")
    recipe = load_recipe(folder / "recipe.yaml")
    model, manifest = load_model(folder, use_ema=None if recipe.evaluation.use_ema else False)
    task, described = task_of(manifest), manifest["model"]
    start = f"initialisation, seed {recipe.seed}"
    notes = ()
    if recipe.model.init_from is not None:
        start = f"random weights, seed {recipe.seed}"
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
    return Subject(task="classification", view=recipe.data.eval_transform, mean=data["mean"], std=data["std"], **common)


def _restorer(name: str, where: str | Path) -> Subject:
    restorer = load_restorer(where)
    return Subject(
        name=name,
        task="restoration",
        architecture=restorer.architecture,
        model=restorer.model,
        initial=_random(restorer.architecture, restorer.model_args, 0),
        start="random weights, seed 0",
        facts=_facts(restorer.recipe, restorer.dataset, restorer.step, restorer.metrics),
        dataset=restorer.dataset,
        degradation=restorer.degradation,
        color=restorer.color,
        notes=(_NO_SEED,),
    )


def _exported_file(name: str, path: Path, metadata: dict[str, str]) -> Subject:
    model = load_safetensors(path)
    return _exported(
        name,
        metadata["architecture"],
        json.loads(metadata["model_args"]),
        model,
        json.loads(metadata["mean"]),
        json.loads(metadata["std"]),
        EvalTransform.model_validate_json(metadata["eval_transform"]),
        metadata["dataset"],
        _facts(metadata["recipe"], metadata["dataset"], json.loads(metadata["step"]), json.loads(metadata["metrics"])),
    )


def _timm_folder(name: str, path: Path) -> Subject:
    """A folder in timm's layout: `crate-graph export --format timm` wrote it, or timm."""
    try:
        config = json.loads((path / TIMMS).read_text(encoding="utf-8"))
        architecture, known = config["architecture"], config["pretrained_cfg"]
        size = known["input_size"][1]
        crop = known.get("crop_pct") or 1.0
        squash = known.get("crop_mode") == "squash"
        interpolation = "bilinear" if known.get("interpolation") == "bilinear" else "bicubic"
        view = EvalTransform(size=size, resize=None if squash else int(size / crop), interpolation=interpolation)
        arguments = {**config.get("model_args", {}), "num_classes": config["num_classes"]}
        mean, std = known["mean"], known["std"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path / TIMMS}: does not describe a model as timm does ({type(error).__name__}: {error}); name a "
            f"run folder, a checkpoint or what crate-graph export --format timm|safetensors wrote"
        ) from None
    model = create_model(architecture, **arguments)
    load_pretrained(model, read_weights(path))
    facts = {"recipe": known.get("tag") or "not recorded"}
    return _exported(name, architecture, arguments, model.eval(), mean, std, view, "", facts)


def _exported(name, architecture, arguments, model, mean, std, view, dataset, facts) -> Subject:
    return Subject(
        name=name,
        task="classification",
        architecture=architecture,
        model=model,
        initial=_random(architecture, arguments, 0),
        start="random weights, seed 0",
        facts=facts,
        dataset=dataset,
        view=view,
        mean=mean,
        std=std,
        notes=(_NO_SEED,),
    )


_NO_SEED = "Exported weights do not say from which seed they began; what is shown beside them is random weights."


def _random(architecture: str, arguments: dict[str, Any], seed: int) -> nn.Module:
    """The model as training with that seed begins, if it begins from random weights. Random numbers go on as before."""
    if "pretrained" in arguments:
        arguments = {**arguments, "pretrained": False}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return create_model(architecture, **arguments).eval()


def _facts(recipe: str, dataset: str, step: int, metrics: dict[str, float]) -> dict[str, Any]:
    return {"recipe": recipe, "trained on": dataset, "step": step, **metrics}


def _metadata(file: Path) -> dict[str, str]:
    try:
        with safe_open(file, framework="pt") as opened:
            return opened.metadata() or {}
    except (OSError, SafetensorError):
        return {}
