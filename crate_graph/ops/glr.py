"""Graph Laplacian regularisation, min x'Lx with x fixed where it is known (arXiv 2406.04090, section 3)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from crate_graph.ops.cg import cg_solver
from crate_graph.ops.graph import node_sums
from crate_graph.ops.window import Window


def glr(
    x: Tensor,
    mask: Tensor,
    weights: Tensor,
    alpha: Tensor,
    beta: Tensor,
    skip: Tensor,
    window: Window,
    recompute: bool = False,
    watch: Callable[..., None] | None = None,
) -> Tensor:
    """Layers of unrolled CG on L_UU x_U = -L_US x_S, with L = D^-1/2 (D - W) D^-1/2.

    Args:
        x, mask: (G, C, length) flat: the start, which holds the known values; 1 where known.
        weights: (G, E, length), zero outside the picture.
        alpha, beta: (layers, T, G).
        skip: (layers,); x <- skip * solution + (1 - skip) * x.
        recompute, watch: of each layer's CG steps, see `cg_solver`.

    Returns:
        (G, C, length).
    """
    normalized, diagonal = normalize_symmetric(weights, window)
    free, solve = 1 - mask, cg_solver(recompute, watch)
    for layer in range(len(skip)):
        solution = solve(normalized, diagonal, None, x, alpha[layer], beta[layer], window, free)
        x = x + skip[layer] * (solution - x)
    return x


def normalize_symmetric(weights: Tensor, window: Window) -> tuple[Tensor, Tensor]:
    """w_ij / sqrt(D_i D_j) and the diagonal of the normalised Laplacian, 1 at every pixel that has an edge.

    (G, E, length) -> (G, E, length), (G, 1, length).
    """
    degrees = node_sums(weights, window)  # (G, length)
    scale = torch.where(degrees > 0, degrees.clamp(min=1e-30).rsqrt(), 0)
    ahead = torch.stack([scale[:, place] for place in window.ahead], dim=1)  # (G, E, count)
    both = torch.nn.functional.pad(scale[:, None, window.core] * ahead, (window.start, window.start))
    return weights * both, (degrees > 0).to(weights.dtype)[:, None]
