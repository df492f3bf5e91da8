"""Where training starts from when it does not start from random weights."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from crate_graph.checkpoint.contents import read_tensors
from crate_graph.checkpoint.described import WEIGHTS, check_described, check_finite
from crate_graph.checkpoint.manifest import MANIFEST, read_manifest
from crate_graph.checkpoint.store import resolve
from crate_graph.errors import UserError
from crate_graph.models.weights import load_pretrained


def load_initial_weights(model: nn.Module, source: str | Path) -> list[str]:
    """Start `model` from the weights at `source`; returns what had to be changed, in words.

    `source`: a checkpoint or run folder (its moving average where there is one), an exported folder, a .safetensors
    file, or a .pt/.pth file with a state dict. No file can run code.

    Raises:
        UserError: nothing of that kind is there, it is damaged, or its architecture does not fit.
    """
    return load_pretrained(model, read_weights(source))


def read_weights(source: str | Path) -> dict[str, Tensor]:
    """The weights at `source`, under the names that they have there; see `load_initial_weights`."""
    source = Path(source).expanduser()
    if (source / MANIFEST).is_file() or (source / "checkpoints").is_dir():
        folder = resolve(source)
        manifest = read_manifest(folder)
        weights = read_tensors(folder, manifest, "model.safetensors")
        if "ema.safetensors" in manifest["files"]:
            weights |= read_tensors(folder, manifest, "ema.safetensors")
        return weights
    if source.is_dir():
        source = source / WEIGHTS
    if not source.is_file():
        raise UserError(f"{source} does not exist; name a checkpoint, an exported folder or a weights file")
    try:
        if source.suffix == ".safetensors":
            weights = load_file(source)
        else:
            weights = _state_dict(source, torch.load(source, map_location="cpu", weights_only=True))
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise UserError(
            f"{source} cannot be read as weights ({type(error).__name__}); name a file of tensors"
        ) from None
    check_described(source, weights)
    check_finite(source, {name: tensor for name, tensor in weights.items() if tensor.is_floating_point()})
    return weights


def _state_dict(source: Path, loaded: Any) -> dict[str, Tensor]:
    """The state dict in a .pt file, bare or under one of the usual keys."""
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise UserError(f"{source} holds no state dict; name a file that torch.save wrote of one")
    return loaded
