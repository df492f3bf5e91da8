"""Checkpoints: their files to the byte, without a weight at hand."""

from __future__ import annotations

import json
from collections.abc import Mapping

from crate_graph.config.load import dump_recipe
from crate_graph.config.schema import Recipe
from crate_graph.planning.state import FP32

_REST = 2048  # bytes: about what manifest.json and state.json take beyond the names of classes


def checkpoint_files(
    recipe: Recipe, shapes: Mapping[str, tuple[int, ...]], trained: list[str], moments: tuple[str, ...], classes: int
) -> dict[str, int]:
    """Bytes by file of a checkpoint of `checkpoint.contents`.

    Args:
        shapes: of everything in the model's state dict.
        trained: names of the parameters that the optimizer has.
        classes: bytes of the class names that the manifest repeats.
    """
    weights = {name: shapes[name] for name in trained}
    files = {
        "model.safetensors": safetensors_bytes(shapes),
        "optimizer.safetensors": safetensors_bytes(
            {f"{moment}/{name}": shape for moment in moments for name, shape in weights.items()}
        ),
        "recipe.yaml": len(dump_recipe(recipe).encode()),
        "manifest.json, state.json": _REST + classes,
    }
    if recipe.ema.decay is not None:
        files["ema.safetensors"] = safetensors_bytes(weights)
    return files


def safetensors_bytes(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Size of a safetensors file of float32 tensors: length, header padded to 8 bytes, data."""
    header, offset = {}, 0
    for name in sorted(shapes):
        end = offset + FP32 * _elements(shapes[name])
        header[name] = {"dtype": "F32", "shape": list(shapes[name]), "data_offsets": [offset, end]}
        offset = end
    length = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + -(-length // 8) * 8 + offset


def kept_checkpoints(recipe: Recipe, steps: int | None) -> int:
    """How many a run has on disk at its end, at most."""
    rule = recipe.checkpoint
    every = steps // rule.keep_every if steps and rule.keep_every else 0
    return rule.keep_last + rule.keep_best + every


def _elements(shape: tuple[int, ...]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count
