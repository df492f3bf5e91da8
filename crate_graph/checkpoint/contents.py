"""What is inside a checkpoint, as bytes and as objects.

model.safetensors      weights by parameter name, fp32
ema.safetensors        their moving average, where one is kept
optimizer.safetensors  "<moment>/<parameter name>", fp32
state.json             step, updates, loss scale, guard, what the stream was
recipe.yaml            the resolved recipe
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from crate_graph.checkpoint.manifest import read_manifest, read_verified
from crate_graph.engine.base import Portable
from crate_graph.errors import UserError


@dataclass
class Contents:
    portable: Portable
    ema: dict[str, Tensor] | None
    state: dict[str, Any]
    recipe: str  # YAML

    def to_files(self) -> dict[str, bytes]:
        moments = {f"{key}/{name}": t for key, named in self.portable.moments.items() for name, t in named.items()}
        files = {
            "model.safetensors": save_tensors(self.portable.model),
            "optimizer.safetensors": save_tensors(moments),
            "state.json": json.dumps({**self.state, "updates": self.portable.updates}, indent=1).encode(),
            "recipe.yaml": self.recipe.encode(),
        }
        if self.ema is not None:
            files["ema.safetensors"] = save_tensors(self.ema)
        return files


def read_contents(folder: Path) -> Contents:
    """Read and verify a whole checkpoint. Nothing in it can run code: safetensors, JSON and YAML only.

    Raises:
        UserError: a file is missing or damaged.
    """
    manifest = read_manifest(folder)
    moments: dict[str, dict[str, Tensor]] = {}
    for key, tensor in read_tensors(folder, manifest, "optimizer.safetensors").items():
        moment, name = key.split("/", 1)
        moments.setdefault(moment, {})[name] = tensor
    state = json.loads(read_verified(folder, manifest, "state.json"))
    ema = read_tensors(folder, manifest, "ema.safetensors") if "ema.safetensors" in manifest["files"] else None
    return Contents(
        portable=Portable(read_tensors(folder, manifest, "model.safetensors"), moments, state["updates"]),
        ema=ema,
        state=state,
        recipe=read_verified(folder, manifest, "recipe.yaml").decode(),
    )


def read_tensors(folder: Path, manifest: dict[str, Any], name: str) -> dict[str, Tensor]:
    try:
        return load_tensors(read_verified(folder, manifest, name))
    except SafetensorError as error:
        raise UserError(f"{folder / name}: not a safetensors file ({error})") from None
