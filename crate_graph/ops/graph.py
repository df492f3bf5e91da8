"""Operators of a graph over a pixel's window, in the flat layout of `crate_graph.ops.window`.

Signals are (G, C, length): G graphs, C channels that share a graph. Undirected edge weights are (G, E, length), where
edge e at place i joins pixel i and pixel i + step e; they are zero where one end is outside the picture.

Each operator keeps its inputs alone for the backward pass, which is again one of the operators:

    stencil      y_i = diagonal_i v_i - sum over neighbours j of w_ij v_j     (symmetric: it is its own adjoint)
    edge_cross   e_ij = sum over channels of u_i v_j + u_j v_i                (minus the stencil's derivative by w)
    distances    d_ij = sum over channels of (f_i - f_j)^2                    (its adjoint is a Laplacian)
    node_sums    n_i = sum over the edges at i                                (the degrees of a graph)
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from crate_graph.ops.window import Window


def laplacian(weights: Tensor, v: Tensor, window: Window) -> Tensor:
    """The combinatorial graph Laplacian (D - W) v. weights (G, E, length), v (G, C, length) -> (G, C, length)."""
    return stencil(weights, node_sums(weights, window)[:, None], v, window)


def stencil(weights: Tensor, diagonal: Tensor, v: Tensor, window: Window) -> Tensor:
    """diagonal v - W v. weights (G, E, length), diagonal (G, 1 or C, length), v (G, C, length) -> (G, C, length)."""
    return _Stencil.apply(weights, diagonal, v, window)


def node_sums(edges: Tensor, window: Window) -> Tensor:
    """Sum over all edges at each pixel: (G, E, length) -> (G, length). Of edge weights: the degrees."""
    return _NodeSums.apply(edges, window)


def edge_sums(nodes: Tensor, window: Window) -> Tensor:
    """n_i + n_j of both ends of each edge: (G, length) -> (G, E, length). The adjoint of `node_sums`."""
    return _EdgeSums.apply(nodes, window)


def distances(features: Tensor, window: Window) -> Tensor:
    """Squared Euclidean distance between the ends of each edge: (G, D, length) -> (G, E, length).

    Between a pixel and an empty place it is meaningless; weights made of it are to be masked by `window.inside`.
    """
    return _Distances.apply(features, window)


def add_stencil_(out: Tensor, weights: Tensor, diagonal: Tensor, v: Tensor, window: Window, sign: int = 1) -> Tensor:
    """out += sign * (diagonal v - W v), in place and without autograd. Shapes as in `stencil`."""
    core = out[..., window.core]
    core.addcmul_(diagonal[..., window.core], v[..., window.core], value=sign)
    for edge, (ahead, behind) in enumerate(zip(window.ahead, window.behind, strict=True)):
        weight = weights[:, edge : edge + 1]  # (G, 1, length)
        core.addcmul_(weight[..., window.core], v[..., ahead], value=-sign)
        core.addcmul_(weight[..., behind], v[..., behind], value=-sign)
    return out


def add_edge_cross_(out: Tensor, u: Tensor, v: Tensor, window: Window, sign: int = 1) -> Tensor:
    """out_e += sign * sum over channels of (u_i v_j + u_j v_i), in place. u, v (G, C, length), out (G, E, length)."""
    for edge, ahead in enumerate(window.ahead):
        core = out[:, edge, window.core]  # (G, count)
        for channel in range(u.shape[1]):
            here, there = u[:, channel], v[:, channel]
            core.addcmul_(here[:, window.core], there[:, ahead], value=sign)
            if u is v:
                core.addcmul_(here[:, window.core], there[:, ahead], value=sign)
            else:
                core.addcmul_(here[:, ahead], there[:, window.core], value=sign)
    return out


class _Stencil(Function):
    @staticmethod
    def forward(ctx, weights: Tensor, diagonal: Tensor, v: Tensor, window: Window) -> Tensor:
        ctx.save_for_backward(weights, diagonal, v)
        ctx.window = window
        return add_stencil_(torch.zeros_like(v), weights, diagonal, v, window)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        weights, diagonal, v = ctx.saved_tensors
        grad_weights = grad_diagonal = grad_v = None
        if ctx.needs_input_grad[0]:
            grad_weights = add_edge_cross_(torch.zeros_like(weights), grad, v, ctx.window, sign=-1)
        if ctx.needs_input_grad[1]:
            grad_diagonal = (grad * v).sum_to_size(diagonal.shape)
        if ctx.needs_input_grad[2]:
            grad_v = add_stencil_(torch.zeros_like(v), weights, diagonal, grad, ctx.window)
        return grad_weights, grad_diagonal, grad_v, None


class _NodeSums(Function):
    @staticmethod
    def forward(ctx, edges: Tensor, window: Window) -> Tensor:
        ctx.window = window
        return _node_sums(edges, window)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return edge_sums(grad, ctx.window), None


class _EdgeSums(Function):
    @staticmethod
    def forward(ctx, nodes: Tensor, window: Window) -> Tensor:
        ctx.window = window
        edges = nodes.new_zeros(len(nodes), window.edges, window.length)
        for edge, ahead in enumerate(window.ahead):
            torch.add(nodes[:, window.core], nodes[:, ahead], out=edges[:, edge, window.core])
        return edges

    @staticmethod
    def backward(ctx, grad: Tensor):
        return node_sums(grad, ctx.window), None


class _Distances(Function):
    @staticmethod
    def forward(ctx, features: Tensor, window: Window) -> Tensor:
        ctx.save_for_backward(features)
        ctx.window = window
        edges = features.new_zeros(len(features), window.edges, window.length)
        core = features[..., window.core]  # (G, D, count)
        for edge, ahead in enumerate(window.ahead):
            difference = core - features[..., ahead]
            torch.sum(difference.square_(), dim=1, out=edges[:, edge, window.core])
        return edges

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        (features,) = ctx.saved_tensors
        doubled = 2 * grad
        degrees = _node_sums(doubled, ctx.window)[:, None]
        return add_stencil_(torch.zeros_like(features), doubled, degrees, features, ctx.window), None


def _node_sums(edges: Tensor, window: Window) -> Tensor:
    nodes = edges.new_zeros(len(edges), window.length)
    core = nodes[:, window.core]
    for edge, behind in enumerate(window.behind):
        core += edges[:, edge, window.core]
        core += edges[:, edge, behind]
    return nodes
