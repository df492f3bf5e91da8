"""Restoration of pictures too large for the memory, piece by piece.

Tiles overlap, and each gives what lies up to the middle of the overlap: what it computed near its own border, where it
lacks its surroundings, is thrown away.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from crate_graph.errors import UserError

Restorer = Callable[[Tensor, Tensor, Tensor | None], Tensor]
OVERLAP = 64  # pixels that neighbouring tiles share


@torch.no_grad()
def restore_tiled(
    model: Restorer,
    observed: Tensor,
    mask: Tensor,
    sigma: Tensor | None = None,
    *,
    tile: int,
    overlap: int = OVERLAP,
) -> Tensor:
    """`model(observed, mask, sigma)`, computed on tiles of `tile` x `tile` pixels.

    The same as on the whole picture where a value depends on less than overlap / 2 pixels to each side. Tiles begin in
    even rows and columns, so that each sees the mosaic in the phase that the picture has.

    Args:
        observed, mask: (B, C, H, W); sigma: (B,) or None.
        tile: side of a tile, even.
        overlap: pixels that neighbouring tiles share, even, at most half a tile: with more, each pixel would be
            restored many times over.

    Raises:
        UserError: a tile or an overlap that is not as above.
    """
    if tile % 2 or overlap % 2 or not 0 <= 2 * overlap <= tile:
        raise UserError(
            f"tiles of {tile} pixels that share {overlap}: both should be even, and a tile at least twice what it "
            f"shares; choose an even number of {max(2 * overlap, 16)} pixels or more"
        )
    height, width = observed.shape[-2:]
    estimate = torch.empty_like(observed)
    for top, bottom, first_row, last_row in _spans(height, tile, overlap):
        for left, right, first_column, last_column in _spans(width, tile, overlap):
            part = (..., slice(top, bottom), slice(left, right))
            restored = model(observed[part], mask[part], sigma)  # (B, C, bottom - top, right - left)
            kept = restored[..., first_row - top : last_row - top, first_column - left : last_column - left]
            estimate[..., first_row:last_row, first_column:last_column] = kept
    return estimate


def _spans(length: int, tile: int, overlap: int) -> list[tuple[int, int, int, int]]:
    """(start, end, first, last) of the tiles along one axis: what each sees, and the part of it that is kept."""
    last_start = max(length - tile + 1, 0) // 2 * 2  # the least even start whose tile reaches the end
    starts = [*range(0, last_start, tile - overlap), last_start]
    ends = [min(start + tile, length) for start in starts]
    cuts = [0, *((start + end) // 2 for start, end in zip(starts[1:], ends, strict=False)), length]
    return list(zip(starts, ends, cuts[:-1], cuts[1:], strict=True))


class Tiled(nn.Module):
    """A restoration network that works tile by tile."""

    def __init__(self, model: nn.Module, tile: int, overlap: int = OVERLAP):
        super().__init__()
        self.model, self.tile, self.overlap = model, tile, overlap
        self.noise_aware = getattr(model, "noise_aware", False)

    def forward(self, observed: Tensor, mask: Tensor, sigma: Tensor | None = None) -> Tensor:
        return restore_tiled(self.model, observed, mask, sigma, tile=self.tile, overlap=self.overlap)
