"""From a picture and a request to what a network takes, and from its estimate back to a picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from crate_graph.config.schema import Degradation
from crate_graph.data.degrade import PHASES, bayer_mask, observe
from crate_graph.evaluation.classical import Classical
from crate_graph.models.observation import interpolate_known
from crate_graph.restore.color import chroma, from_luma, to_channels
from crate_graph.restore.request import Request

KEY = (0, 0, 0)  # seed, epoch and sample of what is random: the same whatever other pictures are restored beside it


@dataclass(frozen=True)
class Scene:
    """One picture, observed.

    observed, mask: (1, C, H, W)
    clean: (1, C, H, W) what the estimate is to be compared with, where that is known
    picture_of: an estimate (1, C, H, W) as pixels (H, W, 1 or 3), not clipped
    original: the full picture (H, W, 1 or 3), where it is known
    """

    observed: Tensor
    mask: Tensor
    picture_of: Callable[[Tensor], np.ndarray]
    clean: Tensor | None = None
    original: np.ndarray | None = None


def observe_scene(pixels: np.ndarray, request: Request, color: str) -> Scene:
    """The scene of a picture (H, W, 1 or 3) in [0, 1], for a network that was trained on `color`."""
    if request.mosaic is not None:
        return _mosaic(pixels, request.mosaic)
    if request.scale is not None:
        return _enlarged(pixels, color)
    return _full(pixels, request.degrade or Degradation(kind="none"), color, judged=request.degrade is not None)


def _mosaic(pixels: np.ndarray, phase: str) -> Scene:
    mask = bayer_mask(*pixels.shape[:2], phase)  # (H, W, 3)
    return Scene(as_tensor(pixels * mask), as_tensor(mask), as_pixels)


def _enlarged(pixels: np.ndarray, color: str) -> Scene:
    """The pixels become those at [::2, ::2] of a picture with twice the sides."""
    channels = as_tensor(to_channels(pixels, color))  # (1, C, H, W)
    observed, mask = spread(channels), spread(torch.ones_like(channels))  # (1, C, 2H, 2W)
    cb_cr = None
    if color == "y" and pixels.shape[2] == 3:
        small = as_tensor(chroma(pixels))
        cb_cr = bicubic(spread(small), spread(torch.ones_like(small)))  # (1, 2, 2H, 2W)
    return Scene(observed, mask, _composer(color, cb_cr))


def _full(pixels: np.ndarray, degradation: Degradation, color: str, *, judged: bool) -> Scene:
    channels = to_channels(pixels, color)  # (H, W, C)
    observed, mask, _ = observe(channels, degradation, KEY)
    cb_cr = None
    if color == "y" and pixels.shape[2] == 3:
        known = np.repeat(mask, 2, axis=2)  # (H, W, 2)
        interpolate = bicubic if degradation.kind == "decimate" else interpolate_known
        cb_cr = interpolate(as_tensor(chroma(pixels) * known), as_tensor(known))
    return Scene(
        as_tensor(observed),
        as_tensor(mask),
        _composer(color, cb_cr),
        as_tensor(channels) if judged else None,
        pixels if judged else None,
    )


def _composer(color: str, cb_cr: Tensor | None) -> Callable[[Tensor], np.ndarray]:
    if color == "rgb":
        return as_pixels
    return lambda estimate: from_luma(as_pixels(estimate), None if cb_cr is None else as_pixels(cb_cr))


def bring_to_phase(observed: Tensor, mask: Tensor, phase: str, wanted: str) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """A mosaic of one phase as one of another: a mirrored row above, a mirrored column to the left, or both.

    A mirror image that repeats no pixel has the mosaic's own phase one pixel farther.

    Returns observed and mask (B, C, H + rows, W + columns), and (rows, columns), to be cropped from the estimate.
    """
    (row, column), (wanted_row, wanted_column) = PHASES[phase], PHASES[wanted]
    rows, columns = (wanted_row - row) % 2, (wanted_column - column) % 2
    border = (columns, 0, rows, 0)
    return F.pad(observed, border, mode="reflect"), F.pad(mask, border, mode="reflect"), (rows, columns)


def spread(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, 2H, 2W), with zeros between."""
    batch, channels, height, width = x.shape
    wide = x.new_zeros(batch, channels, 2 * height, 2 * width)
    wide[..., ::2, ::2] = x
    return wide


def bicubic(observed: Tensor, mask: Tensor) -> Tensor:
    """From the pixels [::2, ::2], each where it is: (B, C, H, W)."""
    return Classical("bicubic")(observed, mask)


def as_tensor(pixels: np.ndarray) -> Tensor:
    """(H, W, C) -> (1, C, H, W) float32."""
    return torch.from_numpy(np.array(pixels.transpose(2, 0, 1), dtype=np.float32, order="C"))[None]


def as_pixels(estimate: Tensor) -> np.ndarray:
    """(1, C, H, W) -> (H, W, C)."""
    return estimate[0].permute(1, 2, 0).cpu().numpy()
