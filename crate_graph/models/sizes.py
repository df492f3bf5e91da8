"""CRATE's published sizes, under timm's names: crate_{size}_patch{p}_224 and crate_in21k_{size}_patch{p}_224."""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from crate_graph.models.crate import CRATE, checkpoint_filter_fn

# arXiv 2306.01129, trained on ImageNet-1k.
IMAGENET_1K = {
    "tiny": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "small": {"embed_dim": 576, "depth": 12, "num_heads": 12},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
}
# arXiv 2308.16271, trained on ImageNet-21k: the same names for the widths of ViT. Its parameter counts, 5.74, 14.12 and
# 38.83 M, are those of 21,842 classes and patches of 8.
IMAGENET_21K = {
    "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
}
VARIANTS: dict[str, dict[str, Any]] = {
    **{
        f"crate_{size}_patch{p}_224": {**c, "patch_size": p} for size, c in IMAGENET_1K.items() for p in (8, 14, 16, 32)
    },
    **{f"crate_in21k_{size}_patch{p}_224": {**c, "patch_size": p} for size, c in IMAGENET_21K.items() for p in (8, 16)},
}

default_cfgs = generate_default_cfgs(
    {
        name: {
            "num_classes": 21842 if "in21k" in name else 1000,
            "input_size": (3, 224, 224),
            "fixed_input_size": True,
            "crop_pct": 224 / 256,
            "interpolation": "bilinear",
            "classifier": "head",
        }
        for name in VARIANTS
    }
)


def _register(name: str) -> None:
    def entrypoint(pretrained: bool = False, out_indices: Any = 3, **kwargs: Any) -> nn.Module:
        return build_model_with_cfg(
            CRATE,
            name,
            pretrained,
            pretrained_filter_fn=checkpoint_filter_fn,
            feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
            **{**VARIANTS[name], **kwargs},
        )

    entrypoint.__name__ = entrypoint.__qualname__ = name  # timm registers a function under its own name
    globals()[name] = register_model(entrypoint)


for _name in VARIANTS:
    _register(_name)
