"""A graph total variation network for speed: the paper's idea with less arithmetic and a stronger prior.

What differs from `ugtv`:
- Convolutions run at half the resolution on 2x2 pixels packed into channels, and their maps pass from block to block.
- A block predicts a guide, and it is the difference of picture and guide that is smooth on the graph:
      min over x of ||C (x - guide)||_1  subject to  x_S = y.
  With the green channel as the guide it is the old rule that colour differences are smooth; here the guide is learned.
- Undirected edges, one edge array, known pixels eliminated, few preconditioned CG steps: `crate_graph.ops.gtv_split`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from crate_graph.models.graph_learning import GraphLearning
from crate_graph.models.graph_networks import bounded
from crate_graph.models.observation import PackedInput, check_observation, keep_observed, pack
from crate_graph.ops import flops
from crate_graph.ops.graph import node_sums
from crate_graph.ops.gtv_split import gtv_split
from crate_graph.ops.window import Window, window


class SplitSolver(nn.Module):
    """GTV of x - guide on each of `heads` graphs, and a weighted mean over the heads.

    Learned, per layer and head: the threshold, and alpha and beta of each CG step, kept in [0, 1.5] and [0, 1]; one
    weight per head; where noise is modelled, how strongly known values bind.
    """

    recompute = False  # of CG steps, see `crate_graph.ops.cg.cg_solver`; so is watch
    watch = None

    def __init__(self, heads: int, layers: int, steps: int, noise_aware: bool):
        super().__init__()
        self.alpha = nn.Parameter(torch.full((layers, steps, heads), 0.8))
        self.beta = nn.Parameter(torch.full((layers, steps, heads), 0.3))
        self.log_threshold = nn.Parameter(torch.full((layers, heads), math.log(1e-3)))
        self.mix = nn.Parameter(torch.full((heads,), 1 / heads))
        self.log_trust = nn.Parameter(torch.tensor(math.log(0.03))) if noise_aware else None

    def forward(self, difference: Tensor, free: Tensor, weights: Tensor, grid: Window, binding: Tensor | None):
        """The smoothest difference of picture and guide that agrees with what is known.

        difference, free (B, C, length): where known, observed - guide, else 0; 1 where it is to be found. weights
        (B * heads, E, length). binding (B, C, length): 1 / sigma^2 at noisy known values, or None. -> (B, C, length).
        """
        heads, batch = len(self.mix), len(difference)
        alpha = bounded(self.alpha, 0, 1.5).repeat(1, 1, batch)
        beta = bounded(self.beta, 0, 1).repeat(1, 1, batch)
        threshold = self.log_threshold.exp().repeat(1, batch)
        x, free = (self._per_head(t) for t in (difference, free))
        fidelity = None if binding is None else self._per_head(binding) * (2 * self.log_trust).exp()
        y = None if binding is None else x
        x = gtv_split(x, free, weights, threshold, alpha, beta, grid, fidelity, y, self.recompute, self.watch)
        return torch.einsum("g,bgcl->bcl", self.mix, x.unflatten(0, (batch, heads)))

    def flops(self, channels: int, edges: int) -> int:
        """Arithmetic per pixel of the graph operators, for so many undirected edges of a pixel."""
        layers, steps, heads = self.alpha.shape
        return heads * flops.gtv_split(edges, channels, layers, steps)

    def _per_head(self, x: Tensor) -> Tensor:
        """(B, C, length) -> (B * heads, C, length)."""
        return x.repeat_interleave(len(self.mix), dim=0)


class GuidedBlock(nn.Module):
    """Convolutions, from which come a guide and graphs; the picture is the guide plus the graph's solution."""

    def __init__(self, in_chans, dim, convs, heads, features, radius, layers, steps, noise_aware):
        super().__init__()
        self.radius = radius
        self.receive = nn.Conv2d(4 * in_chans, dim, 1)
        self.convs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(dim, dim, 3, padding=1), nn.ReLU(), nn.Conv2d(dim, dim, 3, padding=1))
            for _ in range(convs)
        )
        self.guide = nn.Conv2d(dim, 4 * in_chans, 3, padding=1)
        nn.init.zeros_(self.guide.weight)  # the first guide is the input itself
        nn.init.zeros_(self.guide.bias)
        self.edges = nn.Conv2d(dim, 4 * heads * features, 1)
        self.graphs = GraphLearning(heads, features)
        self.solver = SplitSolver(heads, layers, steps, noise_aware)

    def forward(self, maps: Tensor, x: Tensor, observed: Tensor, mask: Tensor, noise: Tensor | None):
        """maps (B, dim, H/2, W/2); x, observed, mask (B, C, H, W); noise (B,) or None. Returns new maps and x."""
        maps = maps + self.receive(pack(x))
        for conv in self.convs:
            maps = maps + conv(maps)
        height, width = x.shape[-2:]
        guide = x + unpack(self.guide(maps), height, width)  # (B, C, H, W)
        grid = window(height, width, self.radius)
        weights = _attention(self.graphs(unpack(self.edges(maps), height, width), grid), grid)
        known, binding = mask, None
        if noise is not None:
            soft = (noise > 0).view(-1, 1, 1, 1)
            known = mask * ~soft
            binding = grid.flatten(torch.where(soft, mask / noise.square().clamp(min=1e-6).view(-1, 1, 1, 1), 0))
        free = grid.flatten(1 - known)  # (B, C, length)
        difference = grid.flatten(mask * (observed - guide))
        return maps, guide + grid.unflatten(self.solver(difference, free, weights, grid, binding))


class UGTVFast(nn.Module):
    """`ugtv_fast`.

    Args:
        in_chans: channels of the picture, 3 or 1.
        dim: maps of the convolutions, at half the resolution.
        depth: blocks.
        convs: residual pairs of convolutions in a block.
        heads, features: graphs of a block, and feature maps of each.
        radius: of the window that the graph spans.
        layers, steps: ADMM layers of a block, and CG steps of each.
        noise_aware: take sigma, the noise's standard deviation, and let known values bind by 1 / sigma^2.
    """

    window = 5

    def __init__(
        self,
        in_chans: int = 3,
        dim: int = 48,
        depth: int = 2,
        convs: int = 3,
        heads: int = 1,
        features: int = 8,
        radius: int = 1,
        layers: int = 2,
        steps: int = 2,
        noise_aware: bool = False,
    ):
        super().__init__()
        self.in_chans, self.noise_aware = in_chans, noise_aware
        self.entry = PackedInput(in_chans, dim)
        self.blocks = nn.ModuleList(
            GuidedBlock(in_chans, dim, convs, heads, features, radius, layers, steps, noise_aware) for _ in range(depth)
        )
        self.checkpoint_blocks = False

    def forward(self, observed: Tensor, mask: Tensor, sigma: Tensor | None = None) -> Tensor:
        """observed, mask (B, C, H, W); sigma (B,), used where the network is noise aware. -> (B, C, H, W)."""
        observed = check_observation(observed, mask, self.in_chans, sigma)
        if not len(observed):
            return observed  # an empty batch, of which PyTorch's pixel shuffles make another shape
        noise = None
        if self.noise_aware:
            noise = observed.new_zeros(len(observed)) if sigma is None else sigma
        x, maps = self.entry(observed, mask, noise)  # (B, C, H, W), (B, dim, H/2, W/2)
        for block in self.blocks:
            if self.checkpoint_blocks and torch.is_grad_enabled():
                maps, x = checkpoint(block, maps, x, observed, mask, noise, use_reentrant=False)
            else:
                maps, x = block(maps, x, observed, mask, noise)
        return keep_observed(x, observed, mask, noise)

    def graph_flops(self, height: int, width: int) -> int:
        """What the graph operators compute for a picture of this size, beyond convolutions and matrix products."""
        edges = window(height, width, self.blocks[0].radius).edges
        per_block = [block.graphs.flops(edges) + block.solver.flops(self.in_chans, edges) for block in self.blocks]
        return height * width * sum(per_block)


def unpack(maps: Tensor, height: int, width: int) -> Tensor:
    """(B, 4C, ceil(H/2), ceil(W/2)) -> (B, C, H, W) float32: the inverse of `pack`."""
    return F.pixel_shuffle(maps.float(), 2)[..., :height, :width]


def _attention(weights: Tensor, grid: Window) -> Tensor:
    """w_ij + w_ji of the row-normalised graph, on undirected edges: (G, E, length) -> (G, E, length)."""
    sums = node_sums(weights, grid)  # (G, length)
    inverse = torch.where(sums > 0, 1 / sums.clamp(min=1e-30), 0)
    ahead = torch.stack([inverse[:, place] for place in grid.ahead], dim=1)
    both = F.pad(inverse[:, None, grid.core] + ahead, (grid.start, grid.start))
    return weights * both
