"""A graph learned from features: windowed self-attention whose affinity is a negative Mahalanobis distance.

w_ij = exp(-d_ij), d_ij = (f_i - f_j)' M (f_i - f_j) with M = R'R; divided by its sum over the window it is softmax
attention with tied queries and keys (arXiv 2406.04090, section 4.3).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from crate_graph.ops import flops, reference
from crate_graph.ops.graph import distances
from crate_graph.ops.window import Window

DISTANCE_RANGE = (1e-5, 11.5)  # of the sibling code of the same lab: exp(-11.5) is 1e-5
INITIAL_METRIC = 1.5  # M = 1.5 I (section 5)


class GraphLearning(nn.Module):
    """Edge weights of `heads` graphs from `heads` x `features` maps."""

    def __init__(self, heads: int, features: int):
        super().__init__()
        self.heads = heads
        self.root = nn.Parameter(INITIAL_METRIC**0.5 * torch.eye(features).repeat(heads, 1, 1))  # R (heads, D, D)

    def forward(self, maps: Tensor, window: Window) -> Tensor:
        """w_ij of undirected edges, zero outside the picture. (B, heads * D, H, W) -> (B * heads, E, length)."""
        between = distances(window.flatten(self.project(maps)).flatten(0, 1), window)
        return torch.exp(-between.clamp(*DISTANCE_RANGE)) * window.inside(maps.device)

    def plain(self, maps: Tensor, radius: int) -> Tensor:
        """The same by the plain reference: (B, heads * D, H, W) -> (B, heads, K, H, W)."""
        between = reference.distances(self.project(maps), radius)
        return reference.edge_weights(between.clamp(*DISTANCE_RANGE), radius)

    def flops(self, edges: int) -> int:
        """Arithmetic per pixel, without the projection, for so many undirected edges of a pixel."""
        return self.heads * flops.edge_weights(edges, self.root.shape[-1])

    def project(self, maps: Tensor) -> Tensor:
        """R f per head: (B, heads * D, H, W) -> (B, heads, D, H, W)."""
        return torch.einsum("gkd,bgdhw->bgkhw", self.root, maps.float().unflatten(1, (self.heads, -1)))
