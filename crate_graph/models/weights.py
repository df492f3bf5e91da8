"""Fine-tuning: start from the weights of the same architecture, trained at another image size or on other classes.

CRATE also takes the encoder of a CRATE-MAE.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from crate_graph.errors import UserError
from crate_graph.models.crate import CRATE
from crate_graph.models.crate_alpha import CRATEAlpha
from crate_graph.models.crate_mae import CRATEMAE
from crate_graph.models.factory import architecture
from crate_graph.models.heads import head_names, in_modules
from crate_graph.models.image_transformer import ConvPatchEmbed
from crate_graph.models.published import compare, from_published, summarize
from crate_graph.models.published_names import bare_names, family_of
from crate_graph.models.tost import ToST

_FAMILIES = {CRATE: "crate", CRATEAlpha: "crate_alpha", CRATEMAE: "crate_mae", ToST: "tost"}


@dataclass(frozen=True)
class Transfer:
    """What became of a model's weights, and of those that it was started from. Names are the model's."""

    loaded: tuple[str, ...]
    elements: int  # of the loaded ones
    resized: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]  # of the loaded ones: from and to, see `_extent`
    replaced: dict[str, str]  # module of the head -> why it is new, or not there
    initial: tuple[str, ...]  # left as the model was initialised
    ignored: tuple[str, ...]  # of what was given, under the name that it had there

    def lines(self) -> list[str]:
        """For people, one thing a line."""
        found = [
            f"loaded {len(self.loaded)} of {len(self.loaded) + len(self.initial)} tensors, {self.elements:,} weights"
        ]
        found += [f"resized {name} from {_by(old)} to {_by(new)}" for name, (old, new) in self.resized.items()]
        found += [f"replaced {module}: {why}" for module, why in self.replaced.items()]
        if self.initial:
            found.append(f"left at initialisation: {_some(self.initial)}")
        if self.ignored:
            found.append(f"ignored: {_some(self.ignored)}")
        return found


def load_pretrained(model: nn.Module, state_dict: Mapping[str, Tensor], *, new_head: str | None = None) -> Transfer:
    """Load `state_dict` into `model` and say what had to change.

    Position embeddings (and a ViT's patch embedding) of another size are resampled as timm does for the architecture. A
    head for another number of classes is left at the model's initial values, and any head where `new_head` says why it
    is to be. Published names are accepted.

    Raises UserError, and leaves the model as it was, where anything else is missing, unknown or misshaped, or where
    what was given for a floating point weight holds no such numbers.
    """
    given = from_published(state_dict)
    weights = _of_the_encoder(given, model) if _is_encoder(given, model) else given
    own, heads = model.state_dict(), head_names(model)
    _check_floating(weights, own)
    resized = _resample(model, weights)
    kept, dropped, replaced = _other_heads(own, resized, heads, new_head)
    fitted = {name: tensor for name, tensor in resized.items() if name not in dropped}
    misfits = compare({**fitted, **{name: own[name] for name in kept}}, own)
    if misfits:
        raise UserError(
            f"the weights do not fit {architecture(model)}: {_other_family(given, model)}{summarize(misfits)}; check "
            f"model.name and model.kwargs"
        )
    model.load_state_dict({**fitted, **{name: own[name] for name in kept}})
    used = {id(tensor) for tensor in fitted.values()} | {id(weights[name]) for name in fitted if name in weights}
    return Transfer(
        loaded=tuple(name for name in own if name in fitted),
        elements=sum(tensor.numel() for tensor in fitted.values()),
        resized={
            name: (_extent(name, weights[name], model), _extent(name, tensor, model))
            for name, tensor in sorted(fitted.items())
            if name in weights and weights[name].shape != tensor.shape
        },
        replaced=replaced,
        initial=tuple(kept),
        ignored=tuple(sorted(name for name, tensor in bare_names(state_dict).items() if id(tensor) not in used)),
    )


def _other_heads(
    own: Mapping[str, Tensor], given: Mapping[str, Tensor], heads: tuple[str, ...], new_head: str | None
) -> tuple[list[str], list[str], dict[str, str]]:
    """Weights of the head that stay as they are, given ones that are left out, and the modules of both with why."""
    kept, dropped, replaced = [], [], {}
    for head in heads:
        here = {name: own[name] for name in own if in_modules(name, (head,))}
        there = {name: given[name] for name in given if in_modules(name, (head,))}
        fits = here.keys() == there.keys() and all(here[name].shape == there[name].shape for name in here)
        if not (here or there) or (fits and new_head is None):
            continue
        why = f"{_classes(there)} in the weights, {_classes(here)} here" if not fits else new_head
        kept, dropped, replaced[head] = [*kept, *here], [*dropped, *there], why
    return kept, dropped, replaced


def _classes(head: Mapping[str, Tensor]) -> str:
    return f"{len(next(iter(head.values())))} classes" if head else "no head"


def _is_encoder(weights: Mapping[str, Tensor], model: nn.Module) -> bool:
    return isinstance(model, CRATE) and family_of(weights) == "crate_mae"


def _of_the_encoder(weights: Mapping[str, Tensor], model: CRATE) -> dict[str, Tensor]:
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


def _other_family(weights: Mapping[str, Tensor], model: nn.Module) -> str:
    """What to say before all else where the weights are of another white-box family than the model."""
    theirs, ours = family_of(weights), _FAMILIES.get(type(model))
    if _is_encoder(weights, model):
        return ""
    return f"they are of the family {theirs}, use model.name={theirs}_...: " if theirs and theirs != ours else ""


def _check_floating(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    for name, tensor in weights.items():
        if name in own and own[name].is_floating_point() and not tensor.is_floating_point():
            raise UserError(f"{name} holds {tensor.dtype} and not floating point numbers; name weights as trained")


def _resample(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """What timm calls a checkpoint filter stands beside each architecture, ours included."""
    fit = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if fit is None:
        return weights
    try:
        return fit(dict(weights), model)
    except (AttributeError, KeyError, RuntimeError) as error:
        raise UserError(f"the weights cannot be resized for {architecture(model)}: {error}") from error


def _extent(name: str, tensor: Tensor, model: nn.Module) -> tuple[int, ...]:
    """The grid of a position embedding, square unless it is the model's own; of other weights their shape."""
    if name != "pos_embed" or tensor.ndim != 3:
        return tuple(tensor.shape)
    if tensor.shape == model.pos_embed.shape and hasattr(model, "grid_size"):
        return model.grid_size(*model.img_size)
    if tensor.shape == model.pos_embed.shape and hasattr(model.patch_embed, "grid_size"):
        return tuple(model.patch_embed.grid_size)
    side = math.isqrt(tensor.shape[1])  # the class token, where there is one, does not complete another row
    return side, side


def _by(extent: tuple[int, ...]) -> str:
    return " x ".join(map(str, extent))


def _some(names: tuple[str, ...], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
