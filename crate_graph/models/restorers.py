"""Restoration networks by name. All are called alike: model(observed, mask, sigma=None) -> estimate.

observed, mask and estimate are (B, C, H, W); observed is in [0, 1] (noise may leave that) and zero where mask is 0;
sigma is the noise's standard deviation (B,) in the same units, or None. Without noise, known values are kept exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from crate_graph.errors import UserError
from crate_graph.models.conv_restorer import ConvRestorer
from crate_graph.models.graph_networks import UnrolledGraphNetwork, UntrainedGraphNetwork
from crate_graph.models.ugtv_fast import UGTVFast
from crate_graph.models.vit_restorer import ViTRestorer

RESTORERS: dict[str, Callable[..., nn.Module]] = {
    "uglr": partial(UnrolledGraphNetwork, "glr"),
    "ugtv": partial(UnrolledGraphNetwork, "gtv"),
    "iglr": partial(UntrainedGraphNetwork, "glr"),
    "igtv": partial(UntrainedGraphNetwork, "gtv"),
    "ugtv_fast": UGTVFast,
    "conv_restorer": ConvRestorer,
    "vit_restorer": ViTRestorer,
}


def is_restorer(name: str) -> bool:
    return name in RESTORERS


def create_restorer(name: str, in_chans: int = 3, **kwargs: Any) -> nn.Module:
    """A restoration network with random weights. `in_chans`: 3 for colour, 1 for luma.

    Raises:
        UserError: other channels, or an argument that the network does not take.
    """
    if type(in_chans) is not int or in_chans not in (1, 3):
        raise UserError(f"model {name}: in_chans={in_chans!r}; restoration is for 3 channels (colour) or 1 (luma)")
    for key, value in kwargs.items():
        _check_argument(name, key, value)
    try:
        return RESTORERS[name](in_chans=in_chans, **kwargs)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise UserError(f"model {name}: {error}; check model.kwargs") from error


# What the arguments of all networks may be; those of one name mean the same.
_SWITCHES = ("noise_aware", "plain")
_UNITS = ("color_unit", "position_unit")
_LARGEST = {"radius": 2}


def _check_argument(model: str, key: str, value: Any) -> None:
    """Raise UserError for a value that no network takes."""
    if key in _SWITCHES:
        good, wanted = isinstance(value, bool), "true or false"
    elif key in _UNITS:
        good, wanted = isinstance(value, int | float) and value > 0, "a number over 0"
    else:
        largest = _LARGEST.get(key)
        good = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= (largest or value)
        wanted = f"a whole number from 1 to {largest}" if largest else "a whole number, 1 or more"
    if not good:
        raise UserError(f"model {model}: {key}={value!r} should be {wanted}; check model.kwargs")
