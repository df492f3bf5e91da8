"""The configuration of published weights, from their shapes and what metadata says of them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from crate_graph.errors import UserError
from crate_graph.models.crate import CRATE
from crate_graph.models.crate_alpha import CRATEAlpha
from crate_graph.models.published_names import FAMILIES, from_published, published_family_of
from crate_graph.models.sizes import AUTOENCODERS, VARIANTS

_SIZES = {"crate": VARIANTS[CRATE], "crate_alpha": VARIANTS[CRATEAlpha], "crate_mae": AUTOENCODERS}
_SIDE = 224  # pixels: ToST's weights fit any image
TOLD = ("heads", "channels", "patch_size", "image_size")  # that metadata may say; without the first two shapes say it


def published_configuration(state_dict: Mapping[str, Tensor], given: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    """Family and configuration for `crate_graph.models.load_published` of weights with published, bare names.

    `given` wins, where it has a key of a configuration: a safetensors file's metadata, say.

    Raises:
        UserError: weights of no published family, or of heads that neither `given` nor a published size tells.
    """
    family = published_family_of(state_dict)
    if family is None:
        raise UserError(f"its weights have the names of no published family; those are {', '.join(FAMILIES)}")
    weights = from_published(state_dict)
    config = {"dim": weights["cls_token"].shape[-1], "depth": _layers(weights, "blocks")}
    config["patch_size"] = patch = _patch_size(family, weights)
    side = _SIDE if family == "tost" else math.isqrt(weights["pos_embed"].shape[1] - 1) * patch
    config["image_size"] = side
    if family == "crate_mae":
        config["decoder_depth"] = _layers(weights, "decoder_blocks")
    elif "head.bias" in weights:
        config["num_classes"] = len(weights["head.bias"])
    if family == "tost":
        config["heads"] = len(weights["blocks.0.tssa.temperature"])
        config["qkv_bias"] = "blocks.0.tssa.subspaces.bias" in weights
    config |= {key: text for key, text in given.items() if key in config or key in TOLD}
    if "heads" not in config:
        config["heads"] = _heads(family, config)
    return family, config


def told_beside(model: nn.Module) -> dict[str, str]:
    """What shapes do not tell of a published family's model, as `published_configuration` may be given it."""
    patch, image = model.patch_embed.patch_size, model.img_size
    attention = getattr(model.blocks[0], "tssa", None) or model.blocks[0].mssa
    told = {"heads": str(attention.num_heads), "channels": str(model.in_chans)}
    if patch[0] != patch[1] or image[0] != image[1]:
        return told  # published weights have no others, and their configuration no words for them
    return {**told, "patch_size": str(patch[0]), "image_size": str(image[0])}


def _layers(weights: Mapping[str, Tensor], stack: str) -> int:
    numbers = (re.match(rf"{stack}\.(\d+)\.", name) for name in weights)
    return 1 + max((int(number[1]) for number in numbers if number), default=-1)


def _patch_size(family: str, weights: Mapping[str, Tensor]) -> int:
    if family == "crate":
        return math.isqrt(weights["patch_embed.proj.weight"].shape[1] // 3)
    if family == "tost":
        return 2 ** sum(tensor.ndim == 4 for name, tensor in weights.items() if name.startswith("patch_embed."))
    return weights["patch_embed.proj.weight"].shape[-1]


def _heads(family: str, config: Mapping[str, Any]) -> int:
    for size in _SIZES[family].values():
        if (size["embed_dim"], size["depth"]) == (config["dim"], config["depth"]):
            return size["num_heads"]
    raise UserError(
        f"{config['depth']} layers of width {config['dim']} are no published size of {family}, so nothing says how "
        f"many heads they have; save them as safetensors with heads in the metadata"
    )
