"""Graph total variation, min ||Cx||_1 subject to Hx = y, by the ADMM of arXiv 2406.04090, section 4.

The paper keeps nine arrays over the directed edges: z, q1, q2, t1, t2 and the multipliers a, b, d, e. Here are three.
Write s1 = a + d, s2 = b + e and u = Cx. Substituting the updates into each other, after one iteration everything
depends on t1, t2 and delta = (s1 - s2) / gamma alone:

    r1 = (delta/2 - u + (t1 + t2)/2 - 1/gamma + t1) / 2        t1 <- max(0, r1)
    r2 = (u - delta/2 + (t1 + t2)/2 - 1/gamma + t2) / 2        t2 <- max(0, r2)
    delta <- (gamma / next gamma) (delta - 2u - t1 + t2)       with the new t1, t2
    (C'C + H'H) x = C'(delta - t1 + t2) / 2 + H'(y - c / gamma)

The sum s1 + s2 cancels, so the initial value of the edge multipliers has no influence at all. C'C is itself a
Laplacian, with the weight w_ij^2 + w_ji^2 on edge ij. The plain form is in `crate_graph.ops.reference`.

Both directions of an edge share the difference d = x_i - x_j: its two values in Cx are pair * d with
pair = (w_ij, -w_ji). Edge arrays are (E, G, C, 2, count): contiguous for each offset, small enough for a cache.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from crate_graph.ops.cg import cg_solver
from crate_graph.ops.graph import laplacian, node_sums
from crate_graph.ops.window import Window

MULTIPLIER = 0.1  # the initial value of c (section 5 of the paper)


def gtv_admm(
    x: Tensor,
    y: Tensor,
    mask: Tensor,
    pair: Tensor,
    gamma: Tensor,
    alpha: Tensor,
    beta: Tensor,
    skip: Tensor,
    window: Window,
    recompute: bool = False,
    watch: Callable[..., None] | None = None,
) -> Tensor:
    """ADMM layers, each with an unrolled CG solve. Differentiable in everything but y and mask.

    t1 and t2 start where z = |Cx| puts them, so the first solve starts from x and not from a flat picture.

    Args:
        x, y, mask: (G, C, length) flat: the start, the known values (0 elsewhere), 1 where known.
        pair: (G, E, 2, count) from `directed_pair`.
        gamma, skip: (layers,); x <- skip * solution + (1 - skip) * x.
        alpha, beta: (layers, T, G) of the CG steps.
        recompute, watch: of each layer's CG steps, see `cg_solver`.

    Returns:
        (G, C, length).
    """
    squared = undirected(pair.square().sum(dim=2), window)  # (G, E, length): the weights of C'C
    diagonal = node_sums(squared, window)[:, None] + mask  # (G, C, length)
    right = laplacian(squared, x, window)
    delta, t1, t2 = _Start.apply(x, pair, window)
    c = MULTIPLIER * mask
    layers, solve = len(gamma), cg_solver(recompute, watch)
    for layer in range(layers):
        b = right + mask * (y - c / gamma[layer])
        solution = solve(squared, diagonal, b, x, alpha[layer], beta[layer], window)
        x = x + skip[layer] * (solution - x)
        if layer + 1 < layers:
            inverse, ratio = 1 / gamma[layer], gamma[layer] / gamma[layer + 1]
            delta, t1, t2, right = _EdgeUpdate.apply(x, pair, delta, t1, t2, inverse, ratio, window)
            c = c + gamma[layer] * (mask * x - y)
    return x


def directed_pair(weights: Tensor, window: Window) -> Tensor:
    """(w_ij, -w_ji) of row-normalised directed weights, w_ij = p_ij / sum over j of p_ij.

    Args:
        weights: p, (G, E, length), undirected, zero outside the picture.

    Returns:
        (G, E, 2, count).
    """
    sums = node_sums(weights, window)  # (G, length)
    inverse = torch.where(sums > 0, 1 / sums.clamp(min=1e-30), 0)
    inside = weights[..., window.core]  # (G, E, count)
    ahead = torch.stack([inverse[:, place] for place in window.ahead], dim=1)  # (G, E, count)
    return torch.stack((inside * inverse[:, None, window.core], -inside * ahead), dim=2)


def undirected(core: Tensor, window: Window) -> Tensor:
    """Edge values on the core, (G, E, count) -> (G, E, length)."""
    return torch.nn.functional.pad(core, (window.start, window.start))


class _Start(Function):
    """delta = 0, t1 = |u| - u, t2 = |u| + u with u = Cx."""

    @staticmethod
    def forward(ctx, x: Tensor, pair: Tensor, window: Window):
        shape = (window.edges, len(x), x.shape[1], 2, window.count)
        delta, t1, t2 = x.new_zeros(shape), x.new_empty(shape), x.new_empty(shape)
        for edge in range(window.edges):
            u = pair[:, edge, None] * _difference(x, window, edge)  # (G, C, 2, count)
            torch.abs(u, out=t2[edge])
            torch.sub(t2[edge], u, out=t1[edge])
            t2[edge] += u
        ctx.save_for_backward(x, pair)
        ctx.window = window
        ctx.mark_non_differentiable(delta)
        return delta, t1, t2

    @staticmethod
    @once_differentiable
    def backward(ctx, _, grad_t1: Tensor, grad_t2: Tensor):
        x, pair = ctx.saved_tensors
        grad_x, grad_pair = torch.zeros_like(x), torch.zeros_like(pair)
        for edge in range(ctx.window.edges):
            difference = _difference(x, ctx.window, edge)
            weight = pair[:, edge, None]
            sign = torch.sign(weight * difference)
            grad_u = (grad_t1[edge] + grad_t2[edge]).mul_(sign).sub_(grad_t1[edge]).add_(grad_t2[edge])
            _back_from_edge(grad_u, difference, weight, grad_x, grad_pair, ctx.window, edge)
        return grad_x, grad_pair, None


class _EdgeUpdate(Function):
    """One step of delta, t1, t2 for a new x, and C'(delta - t1 + t2) / 2 of the result.

    The signs of r1 and r2 can be read off the new t1 and t2, so what came in need not be kept.
    """

    @staticmethod
    def forward(ctx, x, pair, delta, t1, t2, inverse, ratio, window: Window):
        new_delta, new_t1, new_t2 = torch.empty_like(delta), torch.empty_like(t1), torch.empty_like(t2)
        right = torch.zeros_like(x)
        for edge in range(window.edges):
            weight = pair[:, edge, None]  # (G, 1, 2, count)
            u = weight * _difference(x, window, edge)  # (G, C, 2, count)
            antisymmetric = torch.add(-u, delta[edge], alpha=0.5)
            symmetric = (t1[edge] + t2[edge]).mul_(0.5).sub_(inverse)
            torch.add(symmetric, antisymmetric, out=new_t1[edge])
            new_t1[edge].add_(t1[edge]).mul_(0.5).clamp_(min=0)
            torch.sub(symmetric, antisymmetric, out=new_t2[edge])
            new_t2[edge].add_(t2[edge]).mul_(0.5).clamp_(min=0)
            towards = torch.sub(new_t2[edge], new_t1[edge])
            torch.sub(delta[edge], u, alpha=2, out=new_delta[edge])
            new_delta[edge].add_(towards).mul_(ratio)
            _add_adjoint_(right, towards.add_(new_delta[edge]).mul_(0.5), weight, window, edge)
        ctx.save_for_backward(x, pair, new_delta, new_t1, new_t2, inverse, ratio)
        ctx.window = window
        return new_delta, new_t1, new_t2, right

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_delta, grad_t1, grad_t2, grad_right):
        x, pair, new_delta, new_t1, new_t2, inverse, ratio = ctx.saved_tensors
        window = ctx.window
        grad_x, grad_pair = torch.zeros_like(x), torch.zeros_like(pair)
        into_delta, into_t1, into_t2 = (torch.empty_like(new_delta) for _ in range(3))
        grad_inverse, grad_ratio = torch.zeros_like(inverse), torch.zeros_like(ratio)
        for edge in range(window.edges):
            difference, weight = _difference(x, window, edge), pair[:, edge, None]
            # right = C'(delta - t1 + t2) / 2
            grad_difference = _difference(grad_right, window, edge)  # (G, C, 1, count)
            combined = new_delta[edge] - new_t1[edge] + new_t2[edge]  # (G, C, 2, count)
            grad_pair[:, edge] += combined.mul_(grad_difference).sum(dim=1).mul_(0.5)
            half = (weight * grad_difference).mul_(0.5)
            through_delta = grad_delta[edge] + half
            grad_ratio += (through_delta * new_delta[edge]).sum() / ratio
            through_delta.mul_(ratio)
            grad_r1 = (grad_t1[edge] - half).sub_(through_delta).mul_(new_t1[edge] > 0)
            grad_r2 = (grad_t2[edge] + half).add_(through_delta).mul_(new_t2[edge] > 0)
            total = (grad_r1 + grad_r2).mul_(0.25)
            grad_inverse -= 2 * total.sum()
            torch.add(total, grad_r1, alpha=0.5, out=into_t1[edge])
            torch.add(total, grad_r2, alpha=0.5, out=into_t2[edge])
            opposed = grad_r1.sub_(grad_r2)
            torch.add(through_delta, opposed, alpha=0.25, out=into_delta[edge])
            grad_u = opposed.mul_(-0.5).sub_(through_delta, alpha=2)
            _back_from_edge(grad_u, difference, weight, grad_x, grad_pair, window, edge)
        return grad_x, grad_pair, into_delta, into_t1, into_t2, grad_inverse, grad_ratio, None


def _difference(x: Tensor, window: Window, edge: int) -> Tensor:
    """x_i - x_j along one offset: (G, C, length) -> (G, C, 1, count)."""
    return (x[..., window.core] - x[..., window.ahead[edge]]).unsqueeze(2)


def _add_adjoint_(out: Tensor, values: Tensor, weight: Tensor, window: Window, edge: int) -> None:
    """out += C' of edge values (G, C, 2, count) along one offset; `values` is spent."""
    flow = values.mul_(weight).sum(dim=2)  # (G, C, count)
    out[..., window.core] += flow
    out[..., window.ahead[edge]] -= flow


def _back_from_edge(
    grad_u: Tensor, difference: Tensor, weight: Tensor, grad_x: Tensor, grad_pair: Tensor, window: Window, edge: int
) -> None:
    """From the gradient of u = pair * difference to those of pair and x. `grad_u` is spent."""
    grad_pair[:, edge] += (grad_u * difference).sum(dim=1)
    _add_adjoint_(grad_x, grad_u, weight, window, edge)
