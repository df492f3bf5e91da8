"""A folder for timm: `timm.create_model("local-dir:PATH", pretrained=True)` loads it.

timm's own architectures load anywhere; CRATE's names are in timm's registry after `import crate_graph`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
from safetensors.torch import save_file
from torch import Tensor

from crate_graph.checkpoint.described import CONFIG, WEIGHTS
from crate_graph.config.schema import EvalTransform
from crate_graph.export.model_card import write_model_card
from crate_graph.export.source import Source

TOLERANCE = 1e-5


def write(source: Source, path: Path) -> None:
    write_model(source, path)
    write_model_card(source, path, "timm", needs_crate_graph=not source.is_timms_own)


def write_model(source: Source, path: Path) -> None:
    """config.json and model.safetensors in timm's layout."""
    path.mkdir()
    (path / CONFIG).write_text(json.dumps(timm_config(source), indent=2) + "\n", encoding="utf-8")
    save_file(source.weights(), path / WEIGHTS, metadata={"format": "pt"})


def reload(path: Path) -> Callable[[Tensor], Tensor]:
    return timm.create_model(f"local-dir:{path}", pretrained=True).eval()


def timm_config(source: Source) -> dict[str, Any]:
    """The content of config.json. The number of classes stands at the top: timm and transformers both look there."""
    known = getattr(source.model, "pretrained_cfg", {})
    return {
        "architecture": source.architecture,
        "num_classes": source.num_classes,
        "num_features": source.model.num_features,
        "label_names": list(source.classes),
        "model_args": source.model_args,
        "pretrained_cfg": {
            "tag": source.recipe,
            "custom_load": False,
            "input_size": list(source.input_shape),
            "fixed_input_size": bool(known.get("fixed_input_size", True)),
            **timm_transform(source.transform),
            "mean": list(source.mean),
            "std": list(source.std),
            "num_classes": source.num_classes,
            "pool_size": None,
            "first_conv": known.get("first_conv"),
            "classifier": known.get("classifier"),
        },
    }


def timm_transform(transform: EvalTransform) -> dict[str, Any]:
    """Our evaluation transform in timm's words: it resizes to floor(size / crop_pct), then crops `size`."""
    if transform.resize is None:
        return {"interpolation": transform.interpolation, "crop_pct": 1.0, "crop_mode": "squash"}
    crop_pct = transform.size / transform.resize
    if math.floor(transform.size / crop_pct) != transform.resize:  # one rounding too many
        crop_pct = transform.size / (transform.resize + 0.5)
    return {"interpolation": transform.interpolation, "crop_pct": crop_pct, "crop_mode": "center"}
