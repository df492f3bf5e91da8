"""Floating-point operations of the graph operators, per pixel; a multiply-add counts as two.

Counted from the loops of `graph`, `cg`, `gtv_admm` and `gtv_split`, where profilers that look for matrix products see
nothing. `edges` are undirected ones per pixel (12 in a window of 5 x 5), `channels` those of one graph.
"""

from __future__ import annotations


def edge_weights(edges: int, features: int) -> int:
    """Distances (difference, square, sum), then clamp, exponential and mask."""
    return edges * (3 * features + 4)


def cg(edges: int, channels: int, steps: int) -> int:
    """A stencil for the first residual and for each step but the last, and three updates of a signal per step."""
    stencil = 2 + 4 * edges
    return channels * (steps * stencil + steps * 6)


def glr(edges: int, channels: int, layers: int, steps: int) -> int:
    """CG and the skip of each layer."""
    return layers * (cg(edges, channels, steps) + 3 * channels)


def gtv_admm(edges: int, channels: int, layers: int, steps: int) -> int:
    """CG, right side and skip of each layer; between layers, 20 operations on both directions of every edge."""
    return layers * (cg(edges, channels, steps) + 8 * channels) + (layers - 1) * channels * edges * (2 * 20 + 1)


def gtv_split(edges: int, channels: int, layers: int, steps: int) -> int:
    """CG and, on every edge, difference, sum, clip and flow."""
    return layers * (cg(edges, channels, steps) + channels * edges * 10)
