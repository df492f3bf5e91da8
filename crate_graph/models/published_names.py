"""How the published implementations name their parameters, beside the names here.

Families: crate (Ma-Lab-Berkeley/CRATE), crate_alpha (UCSC-VLAA/CRATE-alpha, its PyTorch form), crate_mae
(Ma-Lab-Berkeley/CRATE, model/crate_ae), tost (RobinWu218/ToST). In the tables # stands for the number of a layer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from crate_graph.errors import UserError

_CRATE = {
    "cls_token": "cls_token",
    "pos_embed": "pos_embedding",
    "patch_embed.norm_in.weight": "to_patch_embedding.1.weight",
    "patch_embed.norm_in.bias": "to_patch_embedding.1.bias",
    "patch_embed.proj.weight": "to_patch_embedding.2.weight",
    "patch_embed.proj.bias": "to_patch_embedding.2.bias",
    "patch_embed.norm_out.weight": "to_patch_embedding.3.weight",
    "patch_embed.norm_out.bias": "to_patch_embedding.3.bias",
    "blocks.#.norm1.weight": "transformer.layers.#.0.norm.weight",
    "blocks.#.norm1.bias": "transformer.layers.#.0.norm.bias",
    "blocks.#.mssa.subspaces.weight": "transformer.layers.#.0.fn.qkv.weight",
    "blocks.#.mssa.proj.weight": "transformer.layers.#.0.fn.to_out.0.weight",
    "blocks.#.mssa.proj.bias": "transformer.layers.#.0.fn.to_out.0.bias",
    "blocks.#.norm2.weight": "transformer.layers.#.1.norm.weight",
    "blocks.#.norm2.bias": "transformer.layers.#.1.norm.bias",
    "blocks.#.ista.dictionary": "transformer.layers.#.1.fn.weight",
    "fc_norm.weight": "mlp_head.0.weight",
    "fc_norm.bias": "mlp_head.0.bias",
    "head.weight": "mlp_head.1.weight",
    "head.bias": "mlp_head.1.bias",
}
_ALPHA = {
    "cls_token": "cls_token",
    "pos_embed": "pos_embedding",
    "patch_embed.proj.weight": "conv1.weight",
    "patch_embed.proj.bias": "conv1.bias",
    "blocks.#.norm1.weight": "transformer.layers.#.0.norm.weight",
    "blocks.#.norm1.bias": "transformer.layers.#.0.norm.bias",
    "blocks.#.mssa.subspaces.weight": "transformer.layers.#.0.fn.qkv.weight",
    "blocks.#.mssa.proj.weight": "transformer.layers.#.0.fn.to_out.0.weight",
    "blocks.#.norm2.weight": "transformer.layers.#.1.norm.weight",
    "blocks.#.norm2.bias": "transformer.layers.#.1.norm.bias",
    "blocks.#.ista.dictionary": "transformer.layers.#.1.fn.D",
    "blocks.#.ista.decoder": "transformer.layers.#.1.fn.D1",
    "fc_norm.weight": "mlp_head.0.weight",
    "fc_norm.bias": "mlp_head.0.bias",
    "head.weight": "mlp_head.1.weight",
    "head.bias": "mlp_head.1.bias",
}
_MAE = {
    "pos_embed": "decoder_pos_embed",
    "blocks.#.norm1.weight": "blocks.#.layers.0.0.norm.weight",
    "blocks.#.norm1.bias": "blocks.#.layers.0.0.norm.bias",
    "blocks.#.mssa.subspaces.weight": "blocks.#.layers.0.0.fn.qkv.weight",
    "blocks.#.mssa.proj.weight": "blocks.#.layers.0.0.fn.to_out.0.weight",
    "blocks.#.mssa.proj.bias": "blocks.#.layers.0.0.fn.to_out.0.bias",
    "blocks.#.norm2.weight": "blocks.#.layers.0.1.norm.weight",
    "blocks.#.norm2.bias": "blocks.#.layers.0.1.norm.bias",
    "blocks.#.ista.dictionary": "blocks.#.layers.0.1.fn.weight",
    "decoder_blocks.#.norm1.weight": "decoder_blocks.#.layers.0.0.norm.weight",
    "decoder_blocks.#.norm1.bias": "decoder_blocks.#.layers.0.0.norm.bias",
    "decoder_blocks.#.dictionary": "decoder_blocks.#.layers.0.0.fn.weight",
    "decoder_blocks.#.norm2.weight": "decoder_blocks.#.layers.0.1.norm.weight",
    "decoder_blocks.#.norm2.bias": "decoder_blocks.#.layers.0.1.norm.bias",
    "decoder_blocks.#.mssa.subspaces.weight": "decoder_blocks.#.layers.0.1.fn.qkv.weight",
    "decoder_blocks.#.mssa.proj.weight": "decoder_blocks.#.layers.0.1.fn.to_out.0.weight",
    "decoder_blocks.#.mssa.proj.bias": "decoder_blocks.#.layers.0.1.fn.to_out.0.bias",
}
_TOST = {
    "positions.projection.weight": "pos_embeder.token_projection.weight",
    "positions.projection.bias": "pos_embeder.token_projection.bias",
    "blocks.#.tssa.temperature": "blocks.#.attn.temp",
    "blocks.#.tssa.subspaces.weight": "blocks.#.attn.qkv.weight",
    "blocks.#.tssa.subspaces.bias": "blocks.#.attn.qkv.bias",
    "blocks.#.tssa.proj.weight": "blocks.#.attn.to_out.0.weight",
    "blocks.#.tssa.proj.bias": "blocks.#.attn.to_out.0.bias",
    **{
        f"class_blocks.#.{name}.{kind}": f"cls_attn_blocks.#.{name}.{kind}"
        for name in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
        for kind in ("weight", "bias")
    },
    "class_blocks.#.gamma1": "cls_attn_blocks.#.gamma1",
    "class_blocks.#.gamma2": "cls_attn_blocks.#.gamma2",
    "fc_norm.weight": "norm.weight",
    "fc_norm.bias": "norm.bias",
}
_NAMES = {"crate": _CRATE, "crate_alpha": _ALPHA, "crate_mae": _MAE, "tost": _TOST}
# A parameter that no other family has, under our name.
_MARKS = {
    "crate": "patch_embed.norm_in.weight",
    "crate_alpha": "blocks.0.ista.decoder",
    "crate_mae": "decoder_blocks.0.dictionary",
    "tost": "positions.projection.weight",
}
# What the published CRATE-MAE keeps and does not use.
UNUSED = {"crate_mae": ("pos_embed", "decoder_embed.weight", "decoder_embed.bias")}
FAMILIES = tuple(_NAMES)
_LAYER = re.compile(r"^(blocks|transformer\.layers|decoder_blocks|class_blocks|cls_attn_blocks)\.(\d+)\.")


def to_published(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under their family's published names, with those that the published code keeps unused.

    Raises UserError for weights of no published family.
    """
    family = family_of(state_dict)
    if family is None:
        raise UserError(f"these weights are of no model with published names; those are {', '.join(_NAMES)}")
    renamed = _rename(state_dict, _NAMES[family])
    if "decoder_pos_embed" in renamed:
        width = renamed["cls_token"].shape[-1]
        renamed["pos_embed"] = renamed["decoder_pos_embed"].clone()
        renamed["decoder_embed.weight"] = torch.eye(width)
        renamed["decoder_embed.bias"] = torch.zeros(width)
    return renamed


def from_published(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `to_published`, with or without the prefix "module."; weights of no family stay as they are."""
    state_dict = bare_names(state_dict)
    family = published_family_of(state_dict)
    if family is None:
        return state_dict
    used = {name: tensor for name, tensor in state_dict.items() if name not in UNUSED.get(family, ())}
    return _rename(used, {theirs: ours for ours, theirs in _NAMES[family].items()})


def family_of(state_dict: Mapping[str, Tensor]) -> str | None:
    """The family whose names here `state_dict` has."""
    return next((family for family, mark in _MARKS.items() if mark in state_dict), None)


def published_family_of(state_dict: Mapping[str, Tensor]) -> str | None:
    """The family whose published names, without prefixes, `state_dict` has."""
    marks = {family: _published_mark(family) for family in _MARKS}
    return next((family for family, mark in marks.items() if mark in state_dict), None)


def bare_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without the prefixes that data-parallel and compiled wrappers put before them."""
    return {re.sub(r"^(module\.|_orig_mod\.)+", "", name): tensor for name, tensor in state_dict.items()}


def _published_mark(family: str) -> str:
    return _renamed(_MARKS[family], _NAMES[family])


def _rename(state_dict: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    return {_renamed(name, names): tensor for name, tensor in state_dict.items()}


def _renamed(name: str, names: Mapping[str, str]) -> str:
    layer = _LAYER.match(name)
    pattern = _LAYER.sub(r"\1.#.", name)
    return names.get(pattern, pattern).replace("#", layer[2] if layer else "#")
