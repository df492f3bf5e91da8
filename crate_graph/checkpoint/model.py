"""From a checkpoint to a model that predicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from crate_graph.checkpoint.contents import read_tensors
from crate_graph.checkpoint.manifest import read_manifest
from crate_graph.checkpoint.store import resolve
from crate_graph.errors import UserError
from crate_graph.models import create_model


def load_model(path: str | Path, use_ema: bool | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """The model of a checkpoint in evaluation mode, and the checkpoint's manifest.

    `path` is a checkpoint, or a run folder (its newest checkpoint). `use_ema`: True for the moving average, False for
    the raw weights, None for the average where there is one.

    Raises:
        UserError: no checkpoint, a damaged one, no average although asked for, or weights of another architecture.
    """
    folder = resolve(path)
    manifest = read_manifest(folder)
    has_ema = "ema.safetensors" in manifest["files"]
    if use_ema and not has_ema:
        raise UserError(f"{folder}: keeps no moving average; train with ema.decay, or use the raw weights")
    wanted = has_ema if use_ema is None else use_ema
    weights = read_tensors(folder, manifest, "model.safetensors")
    if wanted:
        weights |= read_tensors(folder, manifest, "ema.safetensors")
    described = manifest["model"]
    model = create_model(described["name"], **arguments_of(manifest))
    check_fit(folder, described["name"], shapes(model), weights)
    model.load_state_dict(weights)
    return model.eval(), manifest


def arguments_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of `create_model` for the model of a checkpoint; a restoration network has no classes."""
    described = manifest["model"]
    classes = {} if described["num_classes"] is None else {"num_classes": described["num_classes"]}
    return {**classes, **described["kwargs"]}


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shape of each weight by name."""
    return {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}


def check_fit(folder: Path, name: str, expected: dict[str, tuple[int, ...]], weights: dict[str, Tensor]) -> None:
    """Raise a UserError that names the first weight that is not as `expected`."""
    found = {key: tuple(tensor.shape) for key, tensor in weights.items()}
    for key in sorted(expected.keys() | found.keys()):
        if expected.get(key) != found.get(key):
            raise UserError(
                f"{folder}: a checkpoint of another architecture than {name}: {key} is {found.get(key, 'absent')}, "
                f"{name} wants {expected.get(key, 'no such weight')}; use the recipe that it was trained with"
            )
