"""Graph total variation by scaled ADMM with one array over undirected edges, known pixels eliminated.

min over x of ||Cx||_1 with x_S = y, where Cx is w_ij (x_i - x_j) once per undirected edge. A row-normalised directed
graph has the same objective with w = w_ij + w_ji, at half the edges. Splitting off e = Cx with the scaled multiplier u:

    p = Cx + u;  u <- clip(p, -lam, lam);  e = p - u;  x <- argmin ||Cx - e + u||^2: C'C x = C'(p - 2u) where unknown

(Boyd et al., "Distributed Optimization and Statistical Learning via ADMM", 2011, section 3.1.1, with z = e.)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from crate_graph.ops.cg import cg_solver
from crate_graph.ops.graph import node_sums
from crate_graph.ops.window import Window


def gtv_split(
    x: Tensor,
    free: Tensor,
    weights: Tensor,
    threshold: Tensor,
    alpha: Tensor,
    beta: Tensor,
    window: Window,
    fidelity: Tensor | None = None,
    y: Tensor | None = None,
    recompute: bool = False,
    watch: Callable[..., None] | None = None,
) -> Tensor:
    """ADMM layers, each with an unrolled CG solve under a diagonal preconditioner. Differentiable in all tensors but
    free and y.

    With `fidelity` the known values bind softly: the x-update minimises ||Cx - e + u||^2 + fidelity (x - y)^2.

    Args:
        x: (G, C, length) flat: the start; where free is 0 it holds the known values, and keeps them.
        free: (G, C, length): 1 where a pixel is to be found.
        weights: w, (G, E, length), zero outside the picture.
        threshold: lam, (layers, G).
        alpha, beta: (layers, T, G).
        fidelity, y: (G, C, length), or None.
        recompute, watch: of each layer's CG steps, see `cg_solver`.

    Returns:
        (G, C, length).
    """
    squared = weights.square()  # (G, E, length): the weights of the Laplacian C'C
    diagonal = node_sums(squared, window)[:, None]  # (G, 1, length)
    pull = None
    if fidelity is not None:
        diagonal, pull = diagonal + fidelity, fidelity * y  # (G, C, length)
    scale = free * torch.where(diagonal > 0, 1 / diagonal.clamp(min=1e-12), 0)  # (G, C, length)
    core, solve = weights[..., window.core], cg_solver(recompute, watch)
    u = x.new_zeros(window.edges, len(x), x.shape[1], window.count)
    for layer in range(len(threshold)):
        u, right = _Shrink.apply(x, core, u, threshold[layer], window)
        b = right if pull is None else right + pull
        x = solve(squared, diagonal, b, x, alpha[layer], beta[layer], window, scale)
    return x


class _Shrink(Function):
    """u <- clip(Cx + u, -lam, lam), and C'(Cx + u - 2 new u). u is (E, G, C, count): contiguous for each offset."""

    @staticmethod
    def forward(ctx, x: Tensor, weights: Tensor, u: Tensor, threshold: Tensor, window: Window):
        limit = threshold[:, None, None]  # (G, 1, 1)
        new, right = torch.empty_like(u), torch.zeros_like(x)
        for edge, ahead in enumerate(window.ahead):
            weight = weights[:, edge, None]  # (G, 1, count)
            p = torch.addcmul(u[edge], weight, x[..., window.core] - x[..., ahead])  # (G, C, count)
            torch.clamp(p, -limit, limit, out=new[edge])
            flow = p.sub_(new[edge], alpha=2).mul_(weight)
            right[..., window.core] += flow
            right[..., ahead] -= flow
        ctx.save_for_backward(x, weights, u, threshold)
        ctx.window = window
        return new, right

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_new: Tensor, grad_right: Tensor):
        x, weights, u, threshold = ctx.saved_tensors
        window, limit = ctx.window, threshold[:, None, None]
        grad_x, grad_u = torch.zeros_like(x), torch.empty_like(u)
        grad_weights, grad_threshold = torch.empty_like(weights), torch.zeros_like(threshold)
        for edge, ahead in enumerate(window.ahead):
            weight = weights[:, edge, None]
            difference = x[..., window.core] - x[..., ahead]
            p = torch.addcmul(u[edge], weight, difference)
            clipped = torch.clamp(p, -limit, limit)
            spread = grad_right[..., window.core] - grad_right[..., ahead]  # gradient of the flow
            grad_weight = (p - 2 * clipped).mul_(spread)
            grad_p = weight * spread
            grad_clipped = grad_new[edge] - 2 * grad_p
            outside = (p - clipped).sign_()  # +-1 where p was clipped
            grad_threshold += (grad_clipped * outside).sum(dim=(1, 2))
            grad_p += torch.where(outside == 0, grad_clipped, 0)
            grad_u[edge] = grad_p
            grad_weights[:, edge] = grad_weight.addcmul_(grad_p, difference).sum(dim=1)
            flow = grad_p.mul_(weight)
            grad_x[..., window.core] += flow
            grad_x[..., ahead] -= flow
        return grad_x, grad_weights, grad_u, grad_threshold, None
