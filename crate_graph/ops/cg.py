"""Conjugate gradients on a graph: unrolled with learned steps, and as in the textbook.

The system is A x = b where A v = diagonal v - W v is a stencil. All signals are flat, see `crate_graph.ops.window`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from crate_graph.ops.graph import add_edge_cross_, add_stencil_
from crate_graph.ops.window import Window


def unrolled_cg(
    weights: Tensor,
    diagonal: Tensor,
    b: Tensor | None,
    x: Tensor,
    alpha: Tensor,
    beta: Tensor,
    window: Window,
    scale: Tensor | None = None,
) -> Tensor:
    """Conjugate gradients with given step sizes instead of inner products (arXiv 2406.04090, section 4).

        g_0 = A x_0 - b;  v_t = scale g_t + beta_t v_t-1;  x_t+1 = x_t - alpha_t v_t;  g_t+1 = g_t - alpha_t A v_t

    so g_t is the exact residual throughout; v_-1 is zero, hence beta_0 has no effect. No step needs a reduction over
    the picture. The backward pass keeps one signal per step and runs the recurrence in reverse.

    Args:
        weights: (G, E, length) of the undirected edges.
        diagonal: (G, 1 or C, length).
        b: (G, C, length), or None for zero.
        x: (G, C, length), where to start.
        alpha, beta: (T, G).
        scale: (G, C, length), not negative, a diagonal preconditioner; None for 1. Where it is 0, x keeps its value: so
            known pixels are eliminated from the system.

    Returns:
        (G, C, length).
    """
    return _UnrolledCG.apply(weights, diagonal, b, x, alpha, beta, scale, window)


def cg_solver(recompute: bool, watch: Callable[..., None] | None = None) -> Callable[..., Tensor]:
    """`unrolled_cg`, or the same under activation checkpointing: its steps are run again in the backward pass.

    `watch` is called with the arguments of each solve before it.
    """
    solve = partial(checkpoint, unrolled_cg, use_reentrant=False) if recompute else unrolled_cg
    return solve if watch is None else partial(_watched, watch, solve)


def _watched(watch: Callable[..., None], solve: Callable[..., Tensor], *system) -> Tensor:
    watch(*system)
    return solve(*system)


class _UnrolledCG(Function):
    @staticmethod
    def forward(ctx, weights, diagonal, b, x, alpha, beta, scale, window: Window) -> Tensor:
        residual = torch.zeros_like(x) if b is None else -b
        add_stencil_(residual, weights, diagonal, x, window)
        start, x, directions = x, x.clone(), []
        for t, (step, momentum) in enumerate(zip(_per_graph(alpha), _per_graph(beta), strict=True)):
            direction = residual.clone() if scale is None else scale * residual  # (G, C, length)
            if t:
                direction.addcmul_(momentum, directions[-1])
            directions.append(direction)
            move = step * direction
            x -= move
            if t + 1 < len(alpha):
                add_stencil_(residual, weights, diagonal, move, window, sign=-1)
        ctx.save_for_backward(weights, diagonal, start, alpha, beta, scale, *directions)
        ctx.window = window
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_x: Tensor):
        weights, diagonal, start, alpha, beta, scale, *directions = ctx.saved_tensors
        grad_weights, grad_diagonal = torch.zeros_like(weights), torch.zeros_like(start)
        grad_alpha, grad_beta = torch.zeros_like(alpha), torch.zeros_like(beta)
        grad_scale = None if scale is None else torch.zeros_like(scale)
        grad_residual, grad_direction = torch.zeros_like(start), torch.zeros_like(start)
        steps, momenta = _per_graph(alpha), _per_graph(beta)

        def through_stencil(grad: Tensor, v: Tensor, sign: int) -> Tensor:
            """A grad; what sign * A v gives to weights and diagonal is added to their gradients."""
            add_edge_cross_(grad_weights, grad, v, ctx.window, sign=-sign)
            grad_diagonal.addcmul_(grad, v, value=sign)
            return add_stencil_(torch.zeros_like(grad), weights, diagonal, grad, ctx.window)

        for t in reversed(range(len(alpha))):
            direction = directions[t]
            grad_move = -grad_x  # of alpha_t v_t: through x, and below through the residual
            if t + 1 < len(alpha):
                grad_move -= through_stencil(grad_residual, steps[t] * direction, sign=-1)
            grad_alpha[t] = (grad_move * direction).sum(dim=(1, 2))
            grad_direction.addcmul_(steps[t], grad_move)
            scaled_residual = direction
            if t:
                grad_beta[t] = (grad_direction * directions[t - 1]).sum(dim=(1, 2))
                scaled_residual = torch.addcmul(direction, momenta[t], directions[t - 1], value=-1)
            if scale is None:
                grad_residual += grad_direction
            else:
                grad_residual.addcmul_(scale, grad_direction)
                grad_scale.addcmul_(grad_direction, scaled_residual)
            grad_direction = momenta[t] * grad_direction
        grad_start = grad_x + through_stencil(grad_residual, start, sign=1)
        if scale is not None:  # so far the gradient times scale, because scale * residual is what was at hand
            grad_scale = torch.where(scale > 0, grad_scale / scale, 0)
        return (
            grad_weights,
            grad_diagonal.sum_to_size(diagonal.shape),
            -grad_residual if ctx.needs_input_grad[2] else None,
            grad_start,
            grad_alpha,
            grad_beta,
            grad_scale,
            None,
        )


def conjugate_gradients(
    weights: Tensor,
    diagonal: Tensor,
    b: Tensor | None,
    x: Tensor,
    window: Window,
    free: Tensor | None = None,
    *,
    tolerance: float = 1e-6,
    iterations: int = 1000,
) -> Tensor:
    """The solution of A x = b by the textbook's method, each channel with its own inner products. No autograd.

    Stops when every residual is below `tolerance` times its first norm. `free` (G, C, length) is 1 where a pixel is to
    be found and 0 where x holds its known value; None frees all. Other arguments as in `unrolled_cg`.
    """
    with torch.no_grad():
        residual = torch.zeros_like(x) if b is None else b.clone()
        add_stencil_(residual, weights, diagonal, x, window, sign=-1)
        _restrict_(residual, free)
        x, direction = x.clone(), residual.clone()
        squared = (residual * residual).sum(-1, keepdim=True)  # (G, C, 1)
        goal = tolerance**2 * squared
        for _ in range(iterations):
            if bool((squared <= goal).all()):
                break
            product = add_stencil_(torch.zeros_like(x), weights, diagonal, direction, window)
            _restrict_(product, free)
            curvature = (direction * product).sum(-1, keepdim=True)
            step = torch.where(curvature > 0, squared / curvature, 0)
            x += step * direction
            residual -= step * product
            before, squared = squared, (residual * residual).sum(-1, keepdim=True)
            direction = residual + torch.where(before > 0, squared / before, 0) * direction
        return x


def _restrict_(x: Tensor, free: Tensor | None) -> None:
    if free is not None:
        x *= free


def _per_graph(scalars: Tensor) -> list[Tensor]:
    """(T, G) -> T tensors (G, 1, 1)."""
    return list(scalars[:, :, None, None].unbind(0))
