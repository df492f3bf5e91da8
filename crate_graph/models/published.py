"""Published weights: models built from them. Their names: `crate_graph.models.published_names`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from crate_graph.errors import UserError
from crate_graph.models.crate import CRATE
from crate_graph.models.crate_alpha import CRATEAlpha
from crate_graph.models.factory import create_model
from crate_graph.models.published_flax import from_flax, is_flax
from crate_graph.models.published_names import bare_names, from_published, to_published
from crate_graph.models.sizes import AUTOENCODERS, VARIANTS, Variants
from crate_graph.models.tost import ToST

Config = Mapping[str, int | float | bool | str]
# LayerNorms that PyTorch's default is left to: the head's in CRATE-alpha's PyTorch code, and those behind CRATE-MAE's
# encoder and decoder where its class is used without a size's name. Weights were trained with 1e-6 there.
DEFAULT_NORM_EPS = 1e-5


def load_published(family: str, state_dict: Mapping[str, Any], **config: int | float | bool | str) -> nn.Module:
    """The model of a published state dict, in training mode, with exactly those weights.

    Args:
        family: "crate", "crate_alpha", "crate_mae" or "tost".
        state_dict: published names, with or without the prefix "module." of a data-parallel wrapper. crate_alpha: also
            the arrays of the JAX code, nested or flat, as flax names and lays them out.
        config: image_size, patch_size, dim, depth, heads, and num_classes but for crate_mae, which has none;
            crate_mae: also decoder_depth, and mask_ratio, which is the task's; tost: also eta (LayerScale's first
            value), qkv_bias, tokens_norm; all: also channels, 3 in the published code. Numbers and truth values, or
            strings of them.

    Raises UserError for an unknown family, a wrong configuration, a parameter that is missing, unknown or misshaped.
    """
    if family not in _FAMILIES:
        raise UserError(f"no published family is named {family!r}; choose from {', '.join(map(repr, _FAMILIES))}")
    flax = family == "crate_alpha" and is_flax(state_dict)
    state_dict = from_flax(state_dict) if flax else bare_names(state_dict)
    model = _FAMILIES[family](config)
    misfits = compare(state_dict, to_published(model.state_dict()))
    if misfits:
        raise UserError(f"not a published state dict of {family} with this configuration: {summarize(misfits)}")
    model.load_state_dict(from_published(state_dict))
    if family == "crate_alpha" and not flax:
        model.fc_norm.eps = DEFAULT_NORM_EPS
    return model


def create_published(family: str, config: Config) -> nn.Module:
    """The model of that family and configuration (see `load_published`), with random weights."""
    return _FAMILIES[family](config)


_SIZES = {"image_size": int, "patch_size": int, "dim": int, "depth": int, "heads": int}


def _crate(config: Config) -> nn.Module:
    values = _read(config, {**_SIZES, "num_classes": int})
    return _create("crate_tiny_patch16_224", VARIANTS[CRATE], values, num_classes=values["num_classes"])


def _crate_alpha(config: Config) -> nn.Module:
    values = _read(config, {**_SIZES, "num_classes": int})
    return _create("crate_alpha_base_patch16_224", VARIANTS[CRATEAlpha], values, num_classes=values["num_classes"])


def _crate_mae(config: Config) -> nn.Module:
    values = _read(config, {**_SIZES, "decoder_depth": int}, {"mask_ratio": float, "num_classes": int})
    eps = {} if _published_name(AUTOENCODERS, values) else {"norm_eps": DEFAULT_NORM_EPS}
    decoder_depth = values["decoder_depth"]
    return _create("crate_mae_tiny_patch16_224", AUTOENCODERS, values, decoder_depth=decoder_depth, **eps)


def _tost(config: Config) -> nn.Module:
    values = _read(config, {**_SIZES, "num_classes": int}, {"eta": float, "qkv_bias": _truth, "tokens_norm": _truth})
    if not values.get("tokens_norm", True):
        raise UserError("tokens_norm=False: the class attention here norms all tokens, as every published size does")
    return _create(
        "tost_tiny_patch16_224",
        VARIANTS[ToST],
        values,
        num_classes=values["num_classes"],
        layer_scale=values.get("eta", 1.0),
        qkv_bias=values.get("qkv_bias", True),
    )


_FAMILIES: dict[str, Callable[[Config], nn.Module]] = {
    "crate": _crate,
    "crate_alpha": _crate_alpha,
    "crate_mae": _crate_mae,
    "tost": _tost,
}


def _create(otherwise: str, variants: Variants, values: Mapping[str, Any], **kwargs: Any) -> nn.Module:
    """By the name of the published size where it is one."""
    name = _published_name(variants, values) or otherwise
    return create_model(
        name, **_size(values), img_size=values["image_size"], in_chans=values.get("channels", 3), **kwargs
    )


def _published_name(variants: Variants, values: Mapping[str, Any]) -> str | None:
    size = _size(values)
    return next((name for name, variant in variants.items() if variant.items() >= size.items()), None)


def _size(values: Mapping[str, Any]) -> dict[str, int]:
    names = {"embed_dim": "dim", "depth": "depth", "num_heads": "heads", "patch_size": "patch_size"}
    return {ours: values[theirs] for ours, theirs in names.items()}


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


def _truth(text: bool | str) -> bool:
    if str(text) not in ("True", "False"):
        raise ValueError(f"{text!r} is neither True nor False")
    return str(text) == "True"


def _read(
    config: Config,
    needed: Mapping[str, Callable[[Any], Any]],
    optional: Mapping[str, Callable[[Any], Any]] | None = None,
) -> dict[str, Any]:
    optional = {**(optional or {}), "channels": int}
    kinds = {**needed, **optional}
    if not needed.keys() <= config.keys() <= kinds.keys():
        given = ", ".join(sorted(config)) or "nothing"
        more = f" and may have {', '.join(optional)}"
        raise UserError(f"the published configuration needs exactly {', '.join(needed)}{more}; given: {given}")
    try:
        return {key: kinds[key](value) for key, value in config.items()}
    except ValueError as error:
        raise UserError(f"the published configuration takes numbers: {error}") from error
