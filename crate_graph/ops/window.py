"""Pixels and their neighbours in a square window, laid out so that every neighbour is a plain offset in memory.

Flat layout: a picture of H x W pixels becomes one line of `length` numbers. Rows are `pitch` = W + radius apart, so a
step over the right border meets `radius` empty places and not the next row; empty rows lie above and below. Then the
neighbour of all pixels at offset (dy, dx) is the slice that starts dy * pitch + dx later: contiguous, without a gather,
without a copy. Empty places hold zeros, and edges into them have weight zero.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.autograd import Function


class Window:
    """The (2 radius + 1)^2 window over pictures of height x width.

    Undirected edges: one per pixel and offset in `offsets`, the half of the window that comes later in memory; edge e
    of pixel i joins i and i + offsets[e]. A directed graph has two weights per such edge.
    """

    def __init__(self, height: int, width: int, radius: int = 2):
        self.height, self.width, self.radius = height, width, radius
        reach = range(-radius, radius + 1)
        self.offsets = [(dy, dx) for dy in range(radius + 1) for dx in reach if dy > 0 or dx > 0]
        self.edges = len(self.offsets)
        self.pitch = width + radius
        self.steps = [dy * self.pitch + dx for dy, dx in self.offsets]
        self.start = radius * self.pitch + radius  # place of pixel (0, 0)
        self.count = height * self.pitch  # places from the first pixel on, empty ones at the row ends included
        self.length = self.count + 2 * self.start
        self.core = slice(self.start, self.start + self.count)
        self.ahead = [slice(self.start + step, self.start + step + self.count) for step in self.steps]
        self.behind = [slice(self.start - step, self.start - step + self.count) for step in self.steps]

    def flatten(self, x: Tensor) -> Tensor:
        """(..., H, W) -> (..., length)."""
        return _Flatten.apply(x, self)

    def unflatten(self, x: Tensor) -> Tensor:
        """(..., length) -> (..., H, W)."""
        return _Unflatten.apply(x, self)

    def pixels(self, x: Tensor) -> Tensor:
        """The same as a view, without autograd."""
        return x[..., self.core].unflatten(-1, (self.height, self.pitch))[..., : self.width]

    def inside(self, device: torch.device) -> Tensor:
        """(edges, length) float32: 1 where both ends of an edge are pixels, else 0."""
        return _inside(self.height, self.width, self.radius, device)


class _Flatten(Function):
    """One copy, where padding twice would make two; so too in the backward pass of `_Unflatten`."""

    @staticmethod
    def forward(ctx, x: Tensor, window: Window) -> Tensor:
        ctx.window = window
        flat = x.new_zeros(*x.shape[:-2], window.length)
        window.pixels(flat).copy_(x)
        return flat

    @staticmethod
    def backward(ctx, grad: Tensor):
        return _Unflatten.apply(grad, ctx.window), None


class _Unflatten(Function):
    @staticmethod
    def forward(ctx, flat: Tensor, window: Window) -> Tensor:
        ctx.window = window
        return window.pixels(flat)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return _Flatten.apply(grad, ctx.window), None


@lru_cache(maxsize=64)
def window(height: int, width: int, radius: int = 2) -> Window:
    """The window over pictures of one size; the same object each time."""
    return Window(height, width, radius)


@lru_cache(maxsize=16)
def _inside(height: int, width: int, radius: int, device: torch.device) -> Tensor:
    grid = window(height, width, radius)
    with torch.inference_mode(False):
        pixels = grid.flatten(torch.ones(height, width, device=device))
        both = torch.zeros(grid.edges, grid.length, device=device)
        for edge, ahead in enumerate(grid.ahead):
            both[edge, grid.core] = pixels[grid.core] * pixels[ahead]
    return both


def forget_masks() -> None:
    """Drop the masks kept by `Window.inside`: made of fake tensors, they would serve real ones."""
    _inside.cache_clear()
