"""Between the pixels of a file and the channels that a network restores.

A network for colour restores R, G and B. One for luma restores Y of Y'CbCr (BT.601, studio range, as a share of 255);
the two chroma channels of a colour picture are then interpolated by a classical method.
"""

from __future__ import annotations

import numpy as np

from crate_graph.data.degrade import luma

# rows: Cb and Cr of (R, G, B), each in [0, 1]; BT.601 in studio range
_CHROMA = np.array([[-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]]) / 255
_LUMA = np.array([65.481, 128.553, 24.966]) / 255
_TO_RGB = np.linalg.inv(np.vstack((_LUMA, _CHROMA)))
_BLACK, _MIDDLE = 16 / 255, 128 / 255


def to_channels(pixels: np.ndarray, color: str) -> np.ndarray:
    """Pixels (H, W, 1 or 3) as the channels of a network: (H, W, 3) for "rgb", (H, W, 1) for "y". Grey is R = G = B."""
    rgb = np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels
    return luma(rgb) if color == "y" else rgb


def chroma(pixels: np.ndarray) -> np.ndarray:
    """Cb and Cr of a colour picture: (H, W, 3) -> (H, W, 2) float32."""
    return (pixels @ _CHROMA.T + _MIDDLE).astype(np.float32)


def from_luma(y: np.ndarray, cb_cr: np.ndarray | None) -> np.ndarray:
    """Y (H, W, 1) and chroma (H, W, 2) to R, G, B, not clipped; without chroma to grey, (H, W, 1)."""
    if cb_cr is None:
        return ((y - _BLACK) * (255 / 219)).astype(np.float32)
    return (np.concatenate((y - _BLACK, cb_cr - _MIDDLE), axis=2) @ _TO_RGB.T).astype(np.float32)
