"""What a restoration model sees of a training picture: a random square of it, turned or mirrored, then degraded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from PIL import Image

from crate_graph.config.schema import Degradation
from crate_graph.data.augment import Key, as_array, keyed_number
from crate_graph.data.degrade import luma, observe, pack
from crate_graph.errors import UserError


class PatchView:
    """Random patches, the training transform of restoration for `PlannedLoader`.

    A patch is one of the 8 flips and rotations of a square of the picture. It is degraded after that, so that a mosaic
    keeps its phase. Everything is keyed by (seed, epoch, sample).

    Args:
        patch: side of the square, pixels.
        degradation: what is lost of it.
        color: "rgb", or "y" for luma.
    """

    mixes = False

    def __init__(self, patch: int, degradation: Degradation, color: Literal["rgb", "y"] = "rgb"):
        self.shape = (patch, patch, 3)
        self._patch = patch
        self._degradation = degradation
        self._color = color

    def view(self, image: Image.Image, key: Key) -> np.ndarray:
        """The patch that belongs to `key`: (patch, patch, 3) uint8.

        Raises:
            UserError: the picture is smaller than a patch.
        """
        width, height = image.size
        side = self._patch
        if min(width, height) < side:
            raise UserError(
                f"a picture of {width} x {height} pixels is smaller than data.patch={side}; set data.patch to at most "
                f"{min(width, height)}, or leave the picture out of the shards"
            )
        number = keyed_number(key)
        number, turn = divmod(number, 8)
        number, left = divmod(number, width - side + 1)
        top = number % (height - side + 1)
        crop = image.crop((left, top, left + side, top + side))
        return turned(as_array(crop if crop.mode == "RGB" else crop.convert("RGB")), turn)

    def batch(
        self, pixels: np.ndarray, labels: np.ndarray, keys: Sequence[Key], slots: Sequence[Key]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Patches (n, H, W, 3) uint8 -> images (n, 2C + 1, H, W) as `degrade.pack` lays them, targets (n, C, H, W)."""
        clean = pixels.astype(np.float32) / 255  # (n, H, W, 3)
        if self._color == "y":
            clean = luma(clean)  # (n, H, W, 1)
        images = pack([observe(x, self._degradation, key) for x, key in zip(clean, keys, strict=True)])
        return images, torch.from_numpy(np.ascontiguousarray(clean.transpose(0, 3, 1, 2)))


def turned(pixels: np.ndarray, turn: int) -> np.ndarray:
    """One of the 8 symmetries of a square, (S, S, C): `turn` quarter turns, mirrored from 4 on."""
    pixels = np.rot90(pixels, turn % 4)
    return pixels[:, ::-1] if turn >= 4 else pixels
