"""Published sizes under timm's names: CRATE's, CRATE-alpha's, ToST's; and those of CRATE-MAE, for `create_model` only.

crate_{size}_patch{p}_224, crate_in21k_{size}_patch{p}_224, crate_alpha_{size}_patch{p}_224, tost_{size}_patch16_224
crate_mae_{size}_patch16_224
"""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from crate_graph.models.crate import CRATE
from crate_graph.models.crate_alpha import CRATEAlpha
from crate_graph.models.image_transformer import checkpoint_filter_fn
from crate_graph.models.tost import ToST

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
# arXiv 2405.20299.
ALPHA = {
    "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "small": {"embed_dim": 576, "depth": 12, "num_heads": 12},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "huge": {"embed_dim": 1280, "depth": 32, "num_heads": 16},
}
# arXiv 2412.17810; LayerScale begins small where layers are many, as in XCiT.
TOST = {
    "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 4},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 8},
    "medium": {"embed_dim": 512, "depth": 24, "num_heads": 8, "layer_scale": 1e-5},
    "large": {"embed_dim": 768, "depth": 24, "num_heads": 16, "layer_scale": 1e-5},
}
Variants = dict[str, dict[str, Any]]


def _with_patches(prefix: str, sizes: Variants, patches: tuple[int, ...]) -> Variants:
    return {f"{prefix}_{size}_patch{p}_224": {**c, "patch_size": p} for size, c in sizes.items() for p in patches}


VARIANTS: dict[type[nn.Module], Variants] = {
    CRATE: {
        **_with_patches("crate", IMAGENET_1K, (8, 14, 16, 32)),
        **_with_patches("crate_in21k", IMAGENET_21K, (8, 16)),
    },
    CRATEAlpha: _with_patches("crate_alpha", ALPHA, (8, 14, 16, 32)),
    ToST: _with_patches("tost", TOST, (8, 16)),
}
# arXiv 2404.02446; the decoder is as wide and as deep as the encoder. No classifier, so none of timm's registry.
AUTOENCODERS: Variants = _with_patches("crate_mae", IMAGENET_1K, (8, 14, 16, 32))

default_cfgs = generate_default_cfgs(
    {
        name: {
            "num_classes": 21842 if "in21k" in name else 1000,
            "input_size": (3, 224, 224),
            "fixed_input_size": True,
            "crop_pct": 224 / 256,
            "interpolation": "bicubic" if architecture is ToST else "bilinear",
            "classifier": "head",
        }
        for architecture, variants in VARIANTS.items()
        for name in variants
    }
)


def _register(architecture: type[nn.Module], name: str, arguments: dict[str, Any]) -> None:
    def entrypoint(pretrained: bool = False, out_indices: Any = 3, **kwargs: Any) -> nn.Module:
        return build_model_with_cfg(
            architecture,
            name,
            pretrained,
            pretrained_filter_fn=checkpoint_filter_fn,
            feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
            **{**arguments, **kwargs},
        )

    entrypoint.__name__ = entrypoint.__qualname__ = name  # timm registers a function under its own name
    globals()[name] = register_model(entrypoint)


for _architecture, _variants in VARIANTS.items():
    for _name, _arguments in _variants.items():
        _register(_architecture, _name, _arguments)
