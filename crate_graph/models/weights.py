"""Fine-tuning: start from the weights of the same architecture, trained at another image size or on other classes.

CRATE also takes the encoder of a CRATE-MAE.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from torch import Tensor, nn

from crate_graph.errors import UserError
from crate_graph.models.crate import CRATE
from crate_graph.models.factory import architecture
from crate_graph.models.image_transformer import ConvPatchEmbed
from crate_graph.models.published import compare, from_published, summarize
from crate_graph.models.published_names import family_of


def load_pretrained(model: nn.Module, state_dict: Mapping[str, Tensor]) -> list[str]:
    """Load `state_dict` into `model` and say in words what had to change.

    Position embeddings (and a ViT's patch embedding) of another size are resampled as timm does for the architecture. A
    head for another number of classes is left at the model's initial values. Published names are accepted.

    Raises UserError, and leaves the model as it was, where anything else is missing, unknown or misshaped.
    """
    weights, changes = from_published(state_dict), []
    if isinstance(model, CRATE) and family_of(weights) == "crate_mae":
        weights = _encoder(weights, model)
        changes.append("the encoder of a masked autoencoder, without its decoder")
    resized = _resample(model, weights)
    for name, tensor in resized.items():
        if name in weights and weights[name].shape != tensor.shape:
            changes.append(f"{name} resampled from {tuple(weights[name].shape)} to {tuple(tensor.shape)}")

    own = model.state_dict()
    heads = _heads(model)
    kept = {name: own[name] for name in own if _in(name, heads) and _shape(resized.get(name)) != _shape(own[name])}
    dropped = [name for name in resized if _in(name, heads) and (name in kept or name not in own)]
    weights = {**{name: tensor for name, tensor in resized.items() if name not in dropped}, **kept}
    if kept or dropped:
        there = f"one for {len(resized[dropped[0]])} classes" if dropped else "none"
        here = f"a new head for {model.num_classes} classes" if kept else "no head"
        changes.append(f"{here} where the weights have {there}")

    misfits = compare(weights, own)
    if misfits:
        raise UserError(
            f"the weights do not fit {architecture(model)}: {summarize(misfits)}; check model.name and model.kwargs"
        )
    model.load_state_dict(weights)
    return changes


def _encoder(weights: Mapping[str, Tensor], model: CRATE) -> dict[str, Tensor]:
    """The part of CRATE-MAE that CRATE has, under CRATE's names."""
    if not isinstance(model.patch_embed, ConvPatchEmbed):
        raise UserError(
            f"the weights are those of a masked autoencoder, which embeds patches by a convolution, and "
            f"{architecture(model)} does not; set model.kwargs.patch_embed=conv, and model.kwargs.lambd as it was "
            f"trained (0.5 unless its recipe says otherwise)"
        )
    parts = ("cls_token", "pos_embed", "patch_embed.", "blocks.")
    encoder = {name: tensor for name, tensor in weights.items() if name.startswith(parts)}
    return encoder | {f"fc_norm.{kind}": weights[f"norm.{kind}"] for kind in ("weight", "bias")}


def _resample(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """What timm calls a checkpoint filter stands beside each architecture, ours included."""
    fit = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if fit is None:
        return weights
    try:
        return fit(dict(weights), model)
    except (AttributeError, KeyError, RuntimeError) as error:
        raise UserError(f"the weights cannot be resized for {architecture(model)}: {error}") from error


def _heads(model: nn.Module) -> tuple[str, ...]:
    heads = getattr(model, "pretrained_cfg", {}).get("classifier") or "head"
    return (heads,) if isinstance(heads, str) else tuple(heads)


def _in(name: str, modules: tuple[str, ...]) -> bool:
    return any(name.startswith(f"{module}.") for module in modules)


def _shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)
