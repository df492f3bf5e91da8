"""What uGLR and uGTV minimise, and how far an iterate is from the constraints (arXiv 2406.04090, sections 3 and 4).

Signals (G, C, length) and undirected edge weights (G, E, length) are flat, see `crate_graph.ops.window`; the weights
are w_ij = exp(-d_ij), zero outside the picture. Values are for each of the G graphs, summed over channels.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from crate_graph.ops.glr import normalize_symmetric
from crate_graph.ops.graph import add_stencil_, node_sums
from crate_graph.ops.window import Window


def glr_value(weights: Tensor, x: Tensor, window: Window) -> Tensor:
    """x'Lx with L = D^-1/2 (D - W) D^-1/2: the graph Laplacian regulariser.

    weights (G, E, length), x (G, C, length) -> (G,).
    """
    normalized, diagonal = normalize_symmetric(weights, window)
    return (x * add_stencil_(torch.zeros_like(x), normalized, diagonal, x, window)).sum(dim=(1, 2))


def gtv_value(weights: Tensor, x: Tensor, window: Window) -> Tensor:
    """||Cx||_1 = sum over i, j of wbar_ij |x_i - x_j| with wbar_ij = w_ij / sum over l of w_il: graph total variation.

    Each undirected edge counts with wbar_ij + wbar_ji. weights (G, E, length), x (G, C, length) -> (G,).
    """
    sums = node_sums(weights, window)  # (G, length)
    inverse = torch.where(sums > 0, 1 / sums.clamp(min=1e-30), 0)
    total = x.new_zeros(len(x))
    for edge, ahead in enumerate(window.ahead):
        weight = weights[:, edge, window.core] * (inverse[:, window.core] + inverse[:, ahead])  # (G, count)
        total += (weight[:, None] * (x[..., window.core] - x[..., ahead]).abs()).sum(dim=(1, 2))
    return total


def edge_entropy(weights: Tensor, window: Window) -> Tensor:
    """The mean over the pixels of -sum over j of wbar_ij ln wbar_ij, in nats.

    exp of it is a number of neighbours: from 0 nats, where one neighbour has all the weight, to ln of the window's
    neighbours. With wbar = w / s it is ln s - (sum over j of w ln w) / s. weights (G, E, length) -> (G,).
    """
    sums = window.pixels(node_sums(weights, window))  # (G, H, W)
    products = window.pixels(node_sums(torch.special.entr(weights), window))  # (G, H, W), of -w ln w
    entropy = torch.where(sums > 0, sums.clamp(min=1e-30).log() + products / sums.clamp(min=1e-30), 0)
    return entropy.mean(dim=(1, 2))


def data_residual(x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """||Hx - y||_2 / sqrt(K): root mean square over the K known values. All (G, C, length) -> (G,)."""
    known = mask.sum(dim=(1, 2)).clamp(min=1)
    return ((mask * (x - y)).square().sum(dim=(1, 2)) / known).sqrt()


def constraint_violation(x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """||Hx - y||_inf, the most by which a known value is missed. All (G, C, length) -> (G,)."""
    return (mask * (x - y)).abs().amax(dim=(1, 2))


def cg_iterates(
    weights: Tensor,
    diagonal: Tensor,
    b: Tensor | None,
    x: Tensor,
    alpha: Tensor,
    beta: Tensor,
    window: Window,
    scale: Tensor | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Every iterate of `crate_graph.ops.cg.unrolled_cg`, the start first, with what is left of its system, A x - b.

    Arguments as there. Yields T + 1 pairs of (G, C, length), without autograd. Where `scale` is 0 there is no equation
    and the residual is 0.
    """
    solved = 1 if scale is None else (scale > 0).to(x.dtype)
    residual = torch.zeros_like(x) if b is None else -b
    add_stencil_(residual, weights, diagonal, x, window)
    yield x, solved * residual
    direction = torch.zeros_like(x)
    for step, momentum in zip(alpha[:, :, None, None], beta[:, :, None, None], strict=True):  # (G, 1, 1)
        direction = (residual if scale is None else scale * residual) + momentum * direction
        x = x - step * direction
        residual = add_stencil_(residual.clone(), weights, diagonal, step * direction, window, sign=-1)
        yield x, solved * residual


def relative_norms(residuals: list[Tensor]) -> Tensor:
    """||r_t||_2 / ||r_0||_2 for each graph: T tensors (G, C, length) -> (T, G). 0 where the first is 0."""
    norms = torch.stack([r.square().sum(dim=(1, 2)).sqrt() for r in residuals])  # (T, G)
    return torch.where(norms[:1] > 0, norms / norms[:1].clamp(min=1e-30), 0)
