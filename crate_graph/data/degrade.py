"""What is left of a picture: a Bayer mosaic, every second pixel, some pixels, with or without Gaussian noise.

A degraded picture is its known values, a mask of them, and the noise level. All that is random is keyed by (seed,
epoch, sample), so runs repeat; the mask and the pattern of the noise do not depend on the noise level.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, get_args

import numpy as np
import torch

from crate_graph.config.schema import Degradation
from crate_graph.data.augment import Key, keyed_generator, keyed_number
from crate_graph.errors import UserError

PHASES = {"RGGB": (0, 0), "GRBG": (0, 1), "GBRG": (1, 0), "BGGR": (1, 1)}  # row and column of the first red pixel
KINDS = get_args(Degradation.model_fields["kind"].annotation)
PHASE, LEVEL, MASK, NOISE = range(1, 5)  # the last part of a key: what it is drawn for


class Observed(NamedTuple):
    """What is known of a picture."""

    observed: np.ndarray  # (H, W, C) float32, zero where unknown; noise may leave [0, 1]
    mask: np.ndarray  # (H, W, C) float32, 1 where known, else 0
    sigma: float  # standard deviation of the noise, where white is 1


def observe(clean: np.ndarray, degradation: Degradation, key: Key) -> Observed:
    """Degrade a picture, (H, W, C) float32 in [0, 1]. Noise is added to the known values and not clipped.

    Raises:
        UserError: a Bayer mosaic of a picture that has not three channels.
    """
    height, width, channels = clean.shape
    if degradation.kind == "bayer":
        if channels != 3:
            raise UserError(f"a Bayer mosaic needs 3 channels, the picture has {channels}; use a colour picture")
        phase = degradation.phase
        if phase == "any":
            phase = list(PHASES)[keyed_number((*key, PHASE)) % len(PHASES)]
        mask = bayer_mask(height, width, phase)
    else:
        mask = np.broadcast_to(_pixel_mask(degradation, height, width, key), clean.shape)
    observed, sigma = clean * mask, _level(degradation, key) / 255
    if sigma:
        noise = keyed_generator((*key, NOISE)).standard_normal(clean.shape, dtype=np.float32)  # (H, W, C)
        observed += np.float32(sigma) * noise * mask
    return Observed(observed, mask, sigma)


def bayer_mask(height: int, width: int, phase: str) -> np.ndarray:
    """Which colour each pixel of a Bayer sensor sees: (H, W, 3) float32 of 0 and 1.

    `phase` names the colours of the 2x2 pixels at the top left, row by row, for instance RGGB.
    """
    row, column = PHASES[phase]
    mask = np.zeros((height, width, 3), dtype=np.float32)
    mask[row::2, column::2, 0] = 1
    mask[row::2, 1 - column :: 2, 1] = mask[1 - row :: 2, column::2, 1] = 1
    mask[1 - row :: 2, 1 - column :: 2, 2] = 1
    return mask


def parse_degradation(text: str, sigma: float | tuple[float, float] = 0.0) -> Degradation:
    """A degradation as users write it: bayer:RGGB, decimate, random:0.25 or none. `sigma`: noise, of 255.

    Raises:
        UserError: unknown.
    """
    kind, colon, detail = text.partition(":")
    fields: dict[str, str] = {}
    if kind == "bayer" and colon:
        fields["phase"] = detail if detail == "any" else detail.upper()
    elif kind == "random" and colon:
        fields["keep"] = detail
    known = kind in KINDS and bool(fields) == bool(colon)
    try:
        if not known:
            raise ValueError(text)
        return Degradation(kind=kind, sigma=sigma, **fields)
    except ValueError:  # pydantic's ValidationError is one
        noise = f" with sigma={sigma}" if sigma else ""
        raise UserError(
            f"degradation {text!r}{noise}: unknown; write bayer:RGGB (or GRBG, GBRG, BGGR, any), decimate, random:0.25 "
            f"(the share of known pixels) or none, and a sigma between 0 and 255"
        ) from None


def luma(rgb: np.ndarray) -> np.ndarray:
    """Y of Y'CbCr by BT.601 in studio range, where 16/255 is black and 235/255 white: (..., 3) -> (..., 1)."""
    weights = np.array([65.481, 128.553, 24.966], dtype=rgb.dtype) / 255
    return (rgb @ weights + rgb.dtype.type(16 / 255))[..., None]


def pack(observations: Sequence[Observed]) -> torch.Tensor:
    """Observations of equal size as the images of a batch: (n, 2C + 1, H, W), observed, mask, plane of sigma."""
    height, width, channels = observations[0].observed.shape
    images = np.empty((len(observations), 2 * channels + 1, height, width), dtype=np.float32)
    for image, (observed, mask, sigma) in zip(images, observations, strict=True):
        image[:channels] = observed.transpose(2, 0, 1)
        image[channels:-1] = mask.transpose(2, 0, 1)
        image[-1] = sigma
    return torch.from_numpy(images)


def unpack(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The inverse of `pack`: observed and mask (n, C, H, W), sigma (n,) where white is 1."""
    channels = (images.shape[1] - 1) // 2
    return images[:, :channels], images[:, channels:-1], images[:, -1, 0, 0]


def _pixel_mask(degradation: Degradation, height: int, width: int, key: Key) -> np.ndarray:
    """(H, W, 1) float32 of 0 and 1."""
    if degradation.kind == "random":
        drawn = keyed_generator((*key, MASK)).random((height, width, 1), dtype=np.float32)
        return (drawn < degradation.keep).astype(np.float32)
    mask = np.zeros((height, width, 1), dtype=np.float32)
    step = 2 if degradation.kind == "decimate" else 1
    mask[::step, ::step] = 1
    return mask


def _level(degradation: Degradation, key: Key) -> float:
    """Standard deviation of the noise, of 255."""
    if not isinstance(degradation.sigma, tuple):
        return degradation.sigma
    low, high = degradation.sigma
    return low + (high - low) * keyed_number((*key, LEVEL)) / 2**64
