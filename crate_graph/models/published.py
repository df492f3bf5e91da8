"""Published weights: their parameter names, and models built from them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import Tensor, nn

from crate_graph.errors import UserError
from crate_graph.models.factory import create_model
from crate_graph.models.sizes import VARIANTS

_CRATE_NAMES = {
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
_LAYER = re.compile(r"^(blocks|transformer\.layers)\.(\d+)\.")


def load_published(family: str, state_dict: Mapping[str, Tensor], **config: int | str) -> nn.Module:
    """The model of a published state dict, in training mode, with exactly those weights.

    Args:
        family: "crate".
        state_dict: published names, with or without the prefix "module." of a data-parallel wrapper.
        config: crate: image_size, patch_size, dim, depth, heads, num_classes; numbers, or strings of them.

    Raises UserError for an unknown family, a wrong configuration, a parameter that is missing, unknown or misshaped.
    """
    if family not in _FAMILIES:
        raise UserError(f"no published family is named {family!r}; choose from {', '.join(map(repr, _FAMILIES))}")
    return _FAMILIES[family](bare_names(state_dict), config)


def _load_crate(state_dict: Mapping[str, Tensor], config: Mapping[str, int | str]) -> nn.Module:
    image_size, patch_size, dim, depth, heads, num_classes = _integers(
        config, ("image_size", "patch_size", "dim", "depth", "heads", "num_classes")
    )
    size = {"embed_dim": dim, "depth": depth, "num_heads": heads, "patch_size": patch_size}
    name = next((name for name, variant in VARIANTS.items() if variant == size), "crate_tiny_patch16_224")
    model = create_model(name, **size, img_size=image_size, num_classes=num_classes)
    expected = to_published(model.state_dict())
    misfits = compare(state_dict, expected)
    if misfits:
        raise UserError(f"not a published state dict of CRATE with this configuration: {summarize(misfits)}")
    model.load_state_dict(from_published(state_dict))
    return model


_FAMILIES: dict[str, Callable[[Mapping[str, Tensor], Mapping[str, int | str]], nn.Module]] = {"crate": _load_crate}


def to_published(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CRATE's weights under the published names. Names that have no counterpart stay as they are."""
    return _rename(state_dict, _CRATE_NAMES)


def from_published(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `to_published`, with or without the prefix "module."."""
    return _rename(bare_names(state_dict), {theirs: ours for ours, theirs in _CRATE_NAMES.items()})


def bare_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without the prefixes that data-parallel and compiled wrappers put before them."""
    return {re.sub(r"^(module\.|_orig_mod\.)+", "", name): tensor for name, tensor in state_dict.items()}


def compare(given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """In words: each parameter of `given` that `expected` lacks, or the other way round, or of another shape."""
    return [
        *(f"{name} is missing" for name in expected if name not in given),
        *(f"{name} is not known" for name in given if name not in expected),
        *(
            f"{name} has shape {tuple(given[name].shape)} instead of {tuple(tensor.shape)}"
            for name, tensor in expected.items()
            if name in given and given[name].shape != tensor.shape
        ),
    ]


def summarize(misfits: list[str]) -> str:
    """The first misfits on one line, and the number of the others."""
    return "; ".join(misfits[:3]) + (f"; and {len(misfits) - 3} more" if len(misfits) > 3 else "")


def _rename(state_dict: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in state_dict.items():
        layer = _LAYER.match(name)
        pattern = _LAYER.sub(r"\1.#.", name)
        number = layer[2] if layer else "#"
        renamed[names.get(pattern, pattern).replace("#", number)] = tensor
    return renamed


def _integers(config: Mapping[str, int | str], keys: tuple[str, ...]) -> list[int]:
    if set(config) != set(keys):
        given = ", ".join(sorted(config)) or "nothing"
        raise UserError(f"the published configuration needs exactly {', '.join(keys)}; given: {given}")
    try:
        return [int(config[key]) for key in keys]
    except ValueError as error:
        raise UserError(f"the published configuration takes whole numbers: {error}") from error
