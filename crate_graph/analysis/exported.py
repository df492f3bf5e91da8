"""Models that are no checkpoint: what `crate-graph export` wrote, timm's folders, and published weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from safetensors import SafetensorError, safe_open
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from crate_graph.checkpoint.described import CONFIG, WEIGHTS, read_description
from crate_graph.checkpoint.initial import read_weights
from crate_graph.config.schema import EvalTransform
from crate_graph.errors import UserError
from crate_graph.export.safetensors_file import FORMAT, load_safetensors
from crate_graph.models import create_model, load_published
from crate_graph.models.published import create_published
from crate_graph.models.published_names import FAMILIES, bare_names, family_of, published_family_of
from crate_graph.models.published_sizes import published_configuration
from crate_graph.models.weights import load_pretrained

_PROCESSOR = "preprocessor_config.json"
_HUGGING_FACE = "crate_graph"  # the model type in it
_PICKLED = (".pt", ".pth", ".bin")


@dataclass(frozen=True)
class Exported:
    """A trained model, what makes one of random weights, and which pictures it takes."""

    architecture: str
    model: nn.Module
    create: Callable[[], nn.Module]
    mean: Sequence[float]
    std: Sequence[float]
    view: EvalTransform
    dataset: str
    facts: dict[str, Any]
    notes: tuple[str, ...] = ()
    classes: Sequence[str] = ()  # by number; empty where nothing names them


def read_exported(path: Path) -> Exported | None:
    """What `crate-graph export` wrote as safetensors, timm or hf; timm's own folder; a file of published weights.

    None where there is nothing of that kind.

    Raises:
        UserError: damaged, or nothing that says how the model is built.
    """
    if path.name == WEIGHTS and (path.parent / CONFIG).is_file():
        path = path.parent
    if (path / CONFIG).is_file():
        return _folder(path)
    if not path.is_file():
        return None
    metadata = _metadata(path)
    if metadata.get("format") == FORMAT:
        return _file(path, metadata)
    if path.suffix.lower() == ".onnx":
        raise UserError(f"{path}: ONNX is not taken; export as timm, hf or safetensors")
    if path.suffix in _PICKLED or _is_of_a_family(path):
        return _published(path, metadata)
    return None


def _file(path: Path, metadata: dict[str, str]) -> Exported:
    architecture, recipe, dataset = (metadata[key] for key in ("architecture", "recipe", "dataset"))
    arguments, mean, std, step, metrics = (
        json.loads(metadata[key]) for key in ("model_args", "mean", "std", "step", "metrics")
    )
    return Exported(
        architecture,
        load_safetensors(path),
        partial(create_model, architecture, **_without_pretrained(arguments)),
        mean,
        std,
        EvalTransform.model_validate_json(metadata["eval_transform"]),
        dataset,
        {"recipe": recipe, "trained on": dataset, "step": step, **metrics},
        classes=json.loads(metadata.get("classes", "[]")),
    )


def _folder(path: Path) -> Exported:
    file = path / CONFIG
    try:
        config = read_description(file)
        if config.get("model_type") == _HUGGING_FACE:
            return _hugging_face(path, config)
        return _timm(path, config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file}: does not describe a model as timm or crate-graph export does ({type(error).__name__}: {error}); "
            f"name a run folder, a checkpoint or what crate-graph export --format timm|hf|safetensors wrote"
        ) from None


def _hugging_face(path: Path, config: dict[str, Any]) -> Exported:
    """As `export.huggingface` writes it; read without transformers, whose start takes seconds."""
    seen = read_description(path / _PROCESSOR)
    view = EvalTransform(
        size=seen["size"]["height"], resize=seen.get("shortest_edge"), interpolation=seen["interpolation"]
    )
    labels = config["id2label"]
    arguments = {**config["model_args"], "num_classes": len(labels)}
    classes = [labels[str(number)] for number in range(len(labels))]
    return _built(path, config["architecture"], arguments, seen["image_mean"], seen["image_std"], view, {}, classes)


def _timm(path: Path, config: dict[str, Any]) -> Exported:
    """A folder in timm's layout: `crate-graph export --format timm` wrote it, or timm."""
    known = config["pretrained_cfg"]
    size = known["input_size"][1]
    crop = known.get("crop_pct") or 1.0
    squash = known.get("crop_mode") == "squash"
    interpolation = "bilinear" if known.get("interpolation") == "bilinear" else "bicubic"
    view = EvalTransform(size=size, resize=None if squash else int(size / crop), interpolation=interpolation)
    arguments = {**config.get("model_args", {}), "num_classes": config["num_classes"]}
    facts = {"recipe": known.get("tag") or "not recorded"}
    classes = config.get("label_names") or known.get("label_names") or ()
    return _built(path, config["architecture"], arguments, known["mean"], known["std"], view, facts, classes)


def _built(path, architecture, arguments, mean, std, view, facts, classes) -> Exported:
    create = partial(create_model, architecture, **_without_pretrained(arguments))
    model = create()
    load_pretrained(model, read_weights(path))
    return Exported(architecture, model.eval(), create, mean, std, view, "", facts, classes=classes)


def _published(path: Path, metadata: dict[str, str]) -> Exported:
    """Weights as the authors of CRATE, CRATE-alpha, CRATE-MAE or ToST saved them; shapes say how they are built."""
    weights = bare_names(read_weights(path))
    if published_family_of(weights) is None:
        raise UserError(
            f"{path}: weights alone, under the names of no published family ({', '.join(FAMILIES)}), do not say how "
            f"their model is built; name the run that they are of, what crate-graph export --format "
            f"timm|hf|safetensors wrote of it, or a run that was trained from them with model.init_from"
        )
    try:
        family, config = published_configuration(weights, metadata)
        model = load_published(family, weights, **config).eval()
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    size = int(config["image_size"])
    view = EvalTransform(
        size=size, resize=round(size * 256 / 224), interpolation="bicubic" if family == "tost" else "bilinear"
    )
    mean, std, notes = _normalisation(metadata, model.in_chans)
    return Exported(
        family,
        model,
        partial(create_published, family, config),
        mean,
        std,
        view,
        "",
        {"weights": "published", "layers": config["depth"], "width": config["dim"], "patch": config["patch_size"]},
        notes,
        _listed(metadata, "classes"),
    )


def _normalisation(metadata: dict[str, str], channels: int) -> tuple[Sequence[float], Sequence[float], tuple[str, ...]]:
    """Mean and deviation that a file of published weights says, or ImageNet's and a note on them."""
    mean, std = _listed(metadata, "mean"), _listed(metadata, "std")
    if len(mean) == len(std) == channels:
        return mean, std, ()
    note = "Published weights do not say how pictures were normalised; here it is by ImageNet's mean and deviation."
    own = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    mean, std = own if channels == len(IMAGENET_DEFAULT_MEAN) else ([fmean(values)] * channels for values in own)
    return mean, std, (note,)


def _listed(metadata: dict[str, str], key: str) -> list[Any]:
    """The list that a file's metadata has under a key; empty where it has none."""
    try:
        found = json.loads(metadata.get(key, "[]"))
    except (ValueError, RecursionError):
        return []
    return found if isinstance(found, list) else []


def _without_pretrained(arguments: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in arguments.items() if key != "pretrained"}


def _is_of_a_family(file: Path) -> bool:
    """Whether a safetensors file holds weights of a published family, under published names or ours."""
    try:
        with safe_open(file, framework="pt") as opened:
            names = bare_names(dict.fromkeys(opened.keys()))  # noqa: SIM118 (no mapping)
            return published_family_of(names) is not None or family_of(names) is not None
    except (OSError, SafetensorError):
        return False


def _metadata(file: Path) -> dict[str, str]:
    try:
        with safe_open(file, framework="pt") as opened:
            return opened.metadata() or {}
    except (OSError, SafetensorError):
        return {}
