"""Fine-tuning: start from the weights of the same architecture, trained at another image size or on other classes."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from torch import Tensor, nn

from crate_graph.errors import UserError
from crate_graph.models.factory import architecture
from crate_graph.models.published import bare_names, compare, from_published, summarize


def load_pretrained(model: nn.Module, state_dict: Mapping[str, Tensor]) -> list[str]:
    """Load `state_dict` into `model` and say in words what had to change.

    Position embeddings (and a ViT's patch embedding) of another size are resampled as timm does for the architecture. A
    head for another number of classes is left at the model's initial values. CRATE's published names are accepted.

    Raises UserError, and leaves the model as it was, where anything else is missing, unknown or misshaped.
    """
    weights = bare_names(state_dict)
    if "to_patch_embedding.1.weight" in weights:
        weights = from_published(weights)
    changes = []
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
