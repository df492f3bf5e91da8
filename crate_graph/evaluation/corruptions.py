"""Common corruptions of images: what a classifier bears that it was not trained for.

Six of those of Hendrycks and Dietterich, ICLR 2019 (arXiv 1903.12261), with the constants c of their CIFAR-10-C (images
up to 32 pixels), Tiny ImageNet-C (up to 64) and ImageNet-C (larger). Of an image x in [0, 1]:

    gaussian_noise      x + c n, n standard normal
    shot_noise          Poisson(c x) / c
    gaussian_blur       convolution with a Gaussian of standard deviation c pixels, cut off at 4 c, borders repeated
    contrast            c (x - mean) + mean, mean of each channel over the image
    brightness          the value of HSV, which is the largest channel, + c; hue and saturation stay
    jpeg_compression    a JPEG file of quality c (4:2:0 where there are colours)

Results are clipped to [0, 1] and rounded to 8 bits. The published sets differ from that: they are truncated to 8 bits,
and ImageNet-C is stored as JPEG. So numbers compare with each other, and only roughly with published ones.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from crate_graph.data.augment import EvalView, Key, as_array, keyed_generator
from crate_graph.errors import UserError

SEVERITIES = (1, 2, 3, 4, 5)
NOISE = 5  # the last part of a key: what it is drawn for; augmentation and degradations have those below
_CUT = 4.0  # standard deviations after which a blur ends


@dataclass(frozen=True)
class Corruption:
    """One of `CORRUPTIONS` at a severity from 1 to 5.

    Raises:
        UserError: there is no such corruption, or no such severity.
    """

    name: str
    severity: int

    def __post_init__(self):
        if self.name not in CORRUPTIONS:
            raise UserError(f"corruption {self.name!r}: unknown; choose one of {', '.join(CORRUPTIONS)}")
        if self.severity not in SEVERITIES:
            raise UserError(f"severity {self.severity}: choose a whole number from 1 to 5")

    def constant(self, side: int) -> float:
        """c of images of `side` pixels."""
        size = 32 if side <= 32 else 64 if side <= 64 else 224
        return _CONSTANTS[self.name][size][self.severity - 1]

    def __call__(self, pixels: np.ndarray, key: Key) -> np.ndarray:
        """(H, W, C) uint8 of one or three channels -> the same, corrupted. What is random is keyed, whatever c is."""
        c = self.constant(min(pixels.shape[:2]))
        if self.name == "jpeg_compression":
            return _jpeg(pixels, int(c))
        x = CORRUPTIONS[self.name](pixels / 255.0, c, keyed_generator((*key, NOISE)))  # (H, W, C) float64
        return (x.clip(0, 1) * 255).round().astype(np.uint8)


class CorruptedView:
    """The view of an evaluation, corrupted as the model is to see it; the key is (seed, epoch, sample)."""

    mixes = False

    def __init__(self, view: EvalView, corruption: Corruption):
        self.shape, self.finish = view.shape, view.finish
        self._view, self._corruption = view, corruption

    def view(self, image: Image.Image, key: Key) -> np.ndarray:
        """(size, size, C) uint8."""
        return self._corruption(self._view.view(image, key), key)

    def batch(
        self, pixels: np.ndarray, labels: np.ndarray, keys: Sequence[Key], slots: Sequence[Key]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As that of the view."""
        return self._view.batch(pixels, labels, keys, slots)


def _gaussian_noise(x: np.ndarray, c: float, generator: np.random.Generator) -> np.ndarray:
    return x + c * generator.standard_normal(x.shape)


def _shot_noise(x: np.ndarray, c: float, generator: np.random.Generator) -> np.ndarray:
    return generator.poisson(c * x) / c


def _gaussian_blur(x: np.ndarray, c: float, _: np.random.Generator) -> np.ndarray:
    radius = int(_CUT * c + 0.5)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / c) ** 2)
    weights /= weights.sum()
    for axis in (0, 1):
        margin = [(radius, radius) if axis == along else (0, 0) for along in range(3)]
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, margin, mode="edge"), len(weights), axis=axis)
        x = windows @ weights  # (H, W, C, 2 radius + 1) -> (H, W, C)
    return x


def _contrast(x: np.ndarray, c: float, _: np.random.Generator) -> np.ndarray:
    mean = x.mean(axis=(0, 1), keepdims=True)
    return c * (x - mean) + mean


def _brightness(x: np.ndarray, c: float, _: np.random.Generator) -> np.ndarray:
    value = x.max(axis=-1, keepdims=True)  # (H, W, 1)
    brighter = (value + c).clip(0, 1)
    black = np.broadcast_to(brighter, x.shape)  # it has no hue
    return np.divide(x * brighter, value, out=black.copy(), where=value > 0)


def _jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, format="JPEG", quality=quality)
    return as_array(Image.open(file))


CORRUPTIONS: dict[str, Callable | None] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "gaussian_blur": _gaussian_blur,
    "contrast": _contrast,
    "brightness": _brightness,
    "jpeg_compression": None,  # whose result is in 8 bits as it comes
}

_CONSTANTS = {
    "gaussian_noise": {
        32: (0.04, 0.06, 0.08, 0.09, 0.10),
        64: (0.04, 0.08, 0.12, 0.15, 0.18),
        224: (0.08, 0.12, 0.18, 0.26, 0.38),
    },
    "shot_noise": {32: (500, 250, 100, 75, 50), 64: (250, 100, 50, 30, 15), 224: (60, 25, 12, 5, 3)},
    "gaussian_blur": {32: (0.4, 0.6, 0.7, 0.8, 1), 64: (0.5, 0.75, 1, 1.25, 1.5), 224: (1, 2, 3, 4, 6)},
    "contrast": {32: (0.75, 0.5, 0.4, 0.3, 0.15), 64: (0.4, 0.3, 0.2, 0.1, 0.05), 224: (0.4, 0.3, 0.2, 0.1, 0.05)},
    "brightness": {32: (0.05, 0.1, 0.15, 0.2, 0.3), 64: (0.1, 0.2, 0.3, 0.4, 0.5), 224: (0.1, 0.2, 0.3, 0.4, 0.5)},
    "jpeg_compression": {32: (80, 65, 58, 50, 40), 64: (65, 58, 50, 40, 25), 224: (25, 18, 15, 10, 7)},
}
