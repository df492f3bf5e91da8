"""Where training starts from when it does not start from random weights."""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from crate_graph.checkpoint.contents import read_tensors
from crate_graph.checkpoint.described import (
    CONFIG,
    DESCRIPTION,
    WEIGHTS,
    check_described,
    check_finite,
    read_description,
)
from crate_graph.checkpoint.manifest import MANIFEST, read_manifest
from crate_graph.checkpoint.store import resolve
from crate_graph.errors import UserError
from crate_graph.models.published_flax import from_flax, is_flax
from crate_graph.models.weights import Transfer, load_pretrained
from crate_graph.paths import expanded

_HF_PREFIXES = {"crate_graph": "model.", "timm_wrapper": "timm_model."}  # before the names of the model inside
# What readers raise for a file of something else, be it text, or JSON or a pickle of another shape.
_UNREADABLE = (
    *(SafetensorError, pickle.UnpicklingError, BadZipFile, EOFError),
    *(RuntimeError, ValueError, LookupError, TypeError, AttributeError),
)


@dataclass(frozen=True)
class Origin:
    """Weights to start from, and what is known of them."""

    kind: str
    weights: dict[str, Tensor]
    architecture: str | None = None
    classes: tuple[str, ...] = ()  # by name; empty where they have none
    arguments: dict[str, Any] | None = None  # of `create_model`, but for the number of classes; None where not said
    mean: Sequence[float] = ()  # of the pixels, in [0, 1]; empty where not said
    std: Sequence[float] = ()
    metadata: dict[str, str] = field(default_factory=dict)  # of a safetensors file


@dataclass(frozen=True)
class Start:
    """Where the weights of a model came from, and what became of them."""

    source: str
    kind: str
    architecture: str | None
    transfer: Transfer

    def lines(self) -> list[str]:
        known = f", {self.architecture}" if self.architecture else ""
        return [f"starting from {self.source} ({self.kind}{known})", *(f"  {line}" for line in self.transfer.lines())]

    def record(self) -> dict[str, Any]:
        """The same as JSON, with every name."""
        about = {"source": self.source, "kind": self.kind, "architecture": self.architecture}
        resized = {name: {"from": old, "to": new} for name, (old, new) in self.transfer.resized.items()}
        return about | asdict(self.transfer) | {"resized": resized}


def load_initial_weights(
    model: nn.Module, source: str | Path, *, classes: Sequence[str] = (), new_head: bool = False
) -> Start:
    """Start `model` from the weights at `source`; says what had to be changed.

    Args:
        source: a checkpoint or run folder (its moving average where there is one), a folder that was exported for timm
            or Hugging Face transformers or written by these, a .safetensors file, a .pt/.pth file with a state dict,
            published or not, or an .npz file of CRATE-alpha's JAX code. No file can run code.
        classes: names of the model's. A head for others, though as many, is left at the model's initial values.
        new_head: so is any head.

    Raises:
        UserError: nothing of that kind is there, it is damaged, or its architecture does not fit.
    """
    origin = read_origin(source)
    why = "a new one was asked for" if new_head else None
    named = _names(classes)
    if origin.classes and named and origin.classes != named:
        why = why or f"the classes have other names, {origin.classes[0]} ... in the weights and {named[0]} ... here"
    try:
        transfer = load_pretrained(model, origin.weights, new_head=why)
    except UserError as error:
        known = f", {origin.kind} of {origin.architecture}" if origin.architecture else ""
        raise UserError(f"{source}{known}: {error}") from None
    return Start(str(source), origin.kind, origin.architecture, transfer)


def read_weights(source: str | Path) -> dict[str, Tensor]:
    """The weights at `source`, under the names that they have there; see `load_initial_weights`."""
    return read_origin(source).weights


def read_origin(source: str | Path) -> Origin:
    """The weights at `source` and what lies beside them; see `load_initial_weights`."""
    source = expanded(source)
    if (source / MANIFEST).is_file() or (source / "checkpoints").is_dir():
        return _checkpoint(resolve(source))
    if source.is_dir():
        source = source / WEIGHTS
    if not source.is_file():
        raise UserError(f"{source} does not exist; name a checkpoint, an exported folder or a weights file")
    try:
        origin = _file(source)
        _check_real(source, origin.weights)
        check_finite(source, {name: tensor for name, tensor in origin.weights.items() if tensor.is_floating_point()})
    except _UNREADABLE as error:
        raise UserError(
            f"{source} cannot be read as weights ({type(error).__name__}); name a file of tensors"
        ) from None
    return origin


def _checkpoint(folder: Path) -> Origin:
    manifest = read_manifest(folder)
    weights, average = read_tensors(folder, manifest, "model.safetensors"), ""
    if "ema.safetensors" in manifest["files"]:
        weights, average = weights | read_tensors(folder, manifest, "ema.safetensors"), ", moving average"
    model, data = manifest["model"], manifest["dataset"]
    named = data["classes"] if model["num_classes"] == len(data["classes"]) else ()
    kind = f"checkpoint of step {manifest['step']}{average}"
    return Origin(kind, weights, model["name"], _names(named), model["kwargs"], data["mean"], data["std"])


def _file(source: Path) -> Origin:
    if source.suffix == ".npz":
        return Origin("arrays of JAX", _arrays(source))
    if source.suffix != ".safetensors":
        with warnings.catch_warnings():  # of pickles by others than torch.save, which are refused in one line
            warnings.simplefilter("ignore")
            loaded = torch.load(source, map_location="cpu", weights_only=True)
        return Origin("state dict", _state_dict(source, loaded))
    weights = load_file(source)
    check_described(source, weights)
    beside = _beside(source.parent / CONFIG) if source.name == WEIGHTS else {}
    if prefix := _HF_PREFIXES.get(beside.get("model_type")):
        bare = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
        labels = beside.get("id2label", {})
        named = [labels.get(str(number)) for number in range(len(labels))]
        return Origin("Hugging Face folder", bare, beside.get("architecture"), _names(named), beside.get("model_args"))
    if "architecture" in beside:
        named, arguments = _names(beside.get("label_names")), beside.get("model_args", {})
        return Origin("timm folder", weights, beside["architecture"], named, arguments)
    if source.name == WEIGHTS and (source.parent / DESCRIPTION).is_file():
        return Origin("exported restorer", weights, _beside(source.parent / DESCRIPTION).get("architecture"))
    with safe_open(source, framework="pt") as file:
        said = file.metadata() or {}
    if "description" in said:  # of a restorer
        return Origin("exported restorer", weights, _parsed(said["description"]).get("architecture"))
    classes, arguments, mean, std = (
        _parsed(said.get(*each)) for each in (("classes", "[]"), ("model_args", "null"), ("mean", "[]"), ("std", "[]"))
    )
    return Origin("safetensors file", weights, said.get("architecture"), _names(classes), arguments, mean, std, said)


def _arrays(source: Path) -> dict[str, Tensor]:
    with np.load(source, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    arrays = {name: array for name, array in arrays.items() if name.startswith("params/")} or arrays
    if not is_flax(arrays):
        raise UserError(f"{source} holds no arrays as CRATE-alpha's JAX code names them; name a file of its params")
    return from_flax(arrays)


def _state_dict(source: Path, loaded: Any) -> dict[str, Tensor]:
    """The state dict in a .pt file, bare or under one of the usual keys."""
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    whole = isinstance(loaded, dict) and all(isinstance(name, str) for name in loaded)
    if not whole or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise UserError(f"{source} holds no state dict; name a file that torch.save wrote of one")
    return loaded


def _check_real(source: Path, weights: dict[str, Tensor]) -> None:
    """Whole numbers may be: counts and indices are. Which of them are weights, the model says."""
    for name, tensor in weights.items():
        if tensor.is_quantized or tensor.is_complex():
            raise UserError(f"{source}: {name} holds {tensor.dtype} and not real numbers; name weights as trained")


def _beside(file: Path) -> dict[str, Any]:
    """The description in a file, or nothing: weights are loaded without one, too."""
    try:
        return read_description(file)
    except (OSError, ValueError):
        return {}


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return {}


def _names(classes: Any) -> tuple[str, ...]:
    """Class names; none where they are only numbers, or where this is no list of names."""
    names = tuple(map(str, classes)) if isinstance(classes, list | tuple) else ()
    return () if names == tuple(map(str, range(len(names)))) else names
