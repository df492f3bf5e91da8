"""Models by name: restoration networks, masked autoencoders, CRATE, and every other in timm's registry."""

from __future__ import annotations

import difflib
import fnmatch
from typing import Any

import timm
from torch import nn

from crate_graph.errors import UserError
from crate_graph.models.crate_mae import CRATEMAE
from crate_graph.models.restorers import RESTORERS, create_restorer, is_restorer
from crate_graph.models.sizes import AUTOENCODERS  # registers CRATE's names, too


def list_models(pattern: str = "") -> list[str]:
    """Names that `create_model` takes; `pattern` is a shell pattern such as "crate_*"."""
    own = [name for name in (*RESTORERS, *AUTOENCODERS) if fnmatch.fnmatch(name, pattern or "*")]
    return sorted([*timm.list_models(pattern), *own])


def create_model(name: str, **kwargs: Any) -> nn.Module:
    """A restoration network, a masked autoencoder, or `timm.create_model` over timm's models and CRATE's.

    Weights are random unless pretrained=True.

    Raises UserError for an unknown name, naming the nearest ones, for arguments that the model does not take, and for
    pretrained weights that do not exist.
    """
    if is_restorer(name):
        return create_restorer(name, **kwargs)
    if is_autoencoder(name):
        return _create_autoencoder(name, **kwargs)
    if ":" not in name and not timm.is_model(name):
        nearest = difflib.get_close_matches(name, list_models(), n=3)
        remedy = f"did you mean {', '.join(nearest)}?" if nearest else "see crate_graph.models.list_models()"
        raise UserError(f"no model is named {name!r}; {remedy}")
    try:
        return timm.create_model(name, **kwargs)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        # timm asserts on arguments; of the wider classes, only these messages speak of the user's call.
        hints = ("unexpected keyword argument", "pretrained")
        if isinstance(error, (RuntimeError, TypeError)) and not any(hint in str(error) for hint in hints):
            raise
        raise UserError(f"model {name}: {error}; check model.name and model.kwargs") from error


def is_autoencoder(name: str) -> bool:
    return name in AUTOENCODERS


def _create_autoencoder(name: str, **kwargs: Any) -> nn.Module:
    try:
        return CRATEMAE(**{**AUTOENCODERS[name], **kwargs})
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise UserError(f"model {name}: {error}; check model.kwargs") from error


def architecture(model: nn.Module) -> str:
    """The registered name of a model, or its class where it was not made by name; for messages."""
    return getattr(model, "pretrained_cfg", {}).get("architecture") or type(model).__name__
