"""What needs no training: demosaicking by colour-demosaicing, and bicubic interpolation, called like a model.

The estimates are floating point, neither clipped nor rounded.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crate_graph.data.degrade import PHASES, bayer_mask
from crate_graph.errors import UserError
from crate_graph.models.observation import check_observation

# The names in colour-demosaicing. Malvar, He, Cutler, ICASSP 2004; Menon, Andriani, Calvagno, IEEE TIP 16(1), 2007.
_DEMOSAICKING = {"bilinear": "bilinear", "malvar2004": "Malvar2004", "menon2007": "Menon2007"}
_CUBIC = -0.75  # Keys' parameter a, as PyTorch and OpenCV have it (IEEE TASSP 29(6), 1981)


class Classical(nn.Module):
    """A method of `METHODS` by name: (observed, mask, sigma) -> estimate, all (B, C, H, W); sigma is not used.

    Raises:
        UserError: a mask that the method is not for; a package that is not installed.
    """

    def __init__(self, name: str):
        super().__init__()
        self._name, self._restore = name, METHODS[name]

    def forward(self, observed: Tensor, mask: Tensor, sigma: Tensor | None = None) -> Tensor:
        return self._restore(self._name, observed, mask)


def _demosaic(name: str, observed: Tensor, mask: Tensor) -> Tensor:
    observed = check_observation(observed, mask, 3)
    demosaic = getattr(_package(name), f"demosaicing_CFA_Bayer_{_DEMOSAICKING[name]}")
    phase = _phase(name, mask[0])
    mosaics = observed.double().sum(dim=1).cpu().numpy()  # (B, H, W)
    estimates = np.stack([demosaic(mosaic, phase) for mosaic in mosaics])  # (B, H, W, 3)
    return torch.from_numpy(estimates).movedim(-1, 1).to(observed)


def _bicubic(name: str, observed: Tensor, mask: Tensor) -> Tensor:
    """From the pixels [::2, ::2]: the value at a pixel is interpolated where the pixel is. Borders are repeated."""
    height, width = observed.shape[-2:]
    columns = _between(_known_quarter(name, observed, mask))[..., :width]  # (B, C, H/2, W)
    return _between(columns.mT)[..., :height].mT


def _bicubic_misaligned(name: str, observed: Tensor, mask: Tensor) -> Tensor:
    """A resize that takes the known pixels for the centres of 2x2 blocks: half a pixel off in each direction.

    It is what the tables of arXiv 2406.04090 call bicubic.
    """
    return F.interpolate(_known_quarter(name, observed, mask), observed.shape[-2:], mode="bicubic")


METHODS: dict[str, Callable[[str, Tensor, Tensor], Tensor]] = {
    **dict.fromkeys(_DEMOSAICKING, _demosaic),
    "bicubic": _bicubic,
    "bicubic_misaligned": _bicubic_misaligned,
}


def degradation_of(name: str) -> dict[str, Any]:
    """The settings of `data` that a method is for, as a recipe has them; a mosaic for what is not of `METHODS`."""
    if METHODS.get(name, _demosaic) is _demosaic:
        return {"degradation": {"kind": "bayer"}, "color": "rgb"}
    return {"degradation": {"kind": "decimate"}, "color": "y"}


def _between(x: Tensor) -> Tensor:
    """Values half-way between neighbours along the last axis: (..., N) -> (..., 2N), the given ones at [::2]."""
    far, near = _CUBIC / 8, (4 - _CUBIC) / 8  # Keys' kernel at distance 3/2 and 1/2
    left, right, last = x[..., :1], x[..., -1:], x.shape[-1]
    padded = torch.cat((left, x, right, right), dim=-1)  # (..., N + 3)
    before, here, after, beyond = (padded[..., shift : shift + last] for shift in range(4))
    return torch.stack((x, far * (before + beyond) + near * (here + after)), dim=-1).flatten(-2)


def _known_quarter(name: str, observed: Tensor, mask: Tensor) -> Tensor:
    if not (mask[..., ::2, ::2].all() and mask.sum() == mask[..., ::2, ::2].sum()):
        raise UserError(
            f"{name} is for x2 interpolation, where the pixels [::2, ::2] are known; set data.degradation.kind=decimate"
        )
    return observed[..., ::2, ::2]


def _phase(name: str, mask: Tensor) -> str:
    """(3, H, W) -> RGGB or another."""
    if len(mask) == 3:
        found = mask.movedim(0, -1).cpu().numpy()
        for phase in PHASES:
            if np.array_equal(found, bayer_mask(*found.shape[:2], phase)):
                return phase
    raise UserError(f"{name} is for a Bayer mosaic; set data.degradation.kind=bayer and data.color=rgb")


def _package(name: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that it found no matplotlib
            import colour_demosaicing
    except ImportError as error:
        raise UserError(
            f"{name} needs the package colour-demosaicing ({error}); pip install 'crate-graph[restoration]'"
        ) from None
    return colour_demosaicing
