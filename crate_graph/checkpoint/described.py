"""Weights that travel with a description beside model.safetensors, and the checksum that binds it to them.

model.json describes a restoration network; config.json, in the layout of timm or of transformers, a classifier.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crate_graph.errors import UserError

DESCRIPTION, CONFIG, WEIGHTS = "model.json", "config.json", "model.safetensors"


def read_description(file: Path) -> dict[str, Any]:
    """The JSON object in a file that describes weights.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds no JSON object.
    """
    try:
        described = json.loads(file.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("brackets inside brackets without end") from None
    if not isinstance(described, dict):
        raise ValueError("no JSON object")
    return described


def checksum(described: dict[str, Any], weights: dict[str, Tensor]) -> str:
    """SHA-256 over a description and the bytes of all weights in the order of their names."""
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def check_described(file: Path, weights: dict[str, Tensor]) -> None:
    """Raise a UserError where a description with a checksum lies beside the weights' file and is not of them."""
    try:
        described = read_description(file.parent / DESCRIPTION)
        written = described.pop("sha256")
    except (OSError, ValueError, KeyError):
        return  # nothing of ours
    if written != checksum(described, weights):
        raise UserError(f"{file}: it or {DESCRIPTION} beside it was changed after it was written; export it again")


def check_finite(where: Path, weights: dict[str, Tensor]) -> None:
    """Raise a UserError that names the first weight that is no floating point number, or not finite."""
    for name, tensor in weights.items():
        if not tensor.is_floating_point():
            raise UserError(f"{where}: {name} holds {tensor.dtype} and not floating point numbers; export it again")
        if not tensor.isfinite().all():
            raise UserError(f"{where}: {name} holds values that are not finite; use weights of an earlier step")
