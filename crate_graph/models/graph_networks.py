"""uGLR and uGTV, the unrolled graph networks of arXiv 2406.04090, and their untrained forms iGLR and iGTV.

A block learns four graphs from convolutional features of its input and restores the picture on each: uGLR by the
graph Laplacian regulariser, uGTV by graph total variation. The picture is the solution of the optimisation; no value
matrix, no output projection. Where the paper is silent the choice is named beside the code.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from crate_graph.models.graph_learning import GraphLearning
from crate_graph.models.observation import check_observation, interpolate_known, keep_observed
from crate_graph.ops import flops, reference
from crate_graph.ops.glr import glr
from crate_graph.ops.gtv_admm import directed_pair, gtv_admm
from crate_graph.ops.window import window

RADIUS = 2  # a window of 5 x 5
EDGES = 12  # of a pixel in it, each counted once
Prior = Literal["glr", "gtv"]


class ShallowFeatures(nn.Module):
    """Four 3x3 convolutions, each with ReLU; all but the first add to their input (the paper: skip connections)."""

    def __init__(self, in_chans: int, maps: int):
        super().__init__()
        widths = [in_chans, maps, maps, maps]
        self.convs = nn.ModuleList(nn.Conv2d(width, maps, 3, padding=1) for width in widths)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, maps, H, W)."""
        x = torch.relu(self.convs[0](x))
        for conv in self.convs[1:]:
            x = x + torch.relu(conv(x))
        return x


class UnrolledSolver(nn.Module):
    """`layers` of `steps` CG steps on each of `heads` graphs, and a weighted mean over the heads.

    Learned: alpha and beta (layers, steps, heads), kept in [0, 1]; one skip per layer; one weight per head; for GTV one
    gamma per layer.
    """

    recompute = False  # of CG steps, see `crate_graph.ops.cg.cg_solver`; so is watch
    watch = None

    def __init__(self, prior: Prior, heads: int, layers: int, steps: int):
        super().__init__()
        self.prior = prior
        self.alpha = nn.Parameter(torch.full((layers, steps, heads), 0.5))
        self.beta = nn.Parameter(torch.full((layers, steps, heads), 0.3))
        self.skip = nn.Parameter(torch.full((layers,), 0.95))
        self.mix = nn.Parameter(torch.full((heads,), 1 / heads))
        if prior == "gtv":
            self.gamma = nn.Parameter(torch.full((layers,), 10.0))

    def forward(self, x: Tensor, observed: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
        """x, observed, mask (B, C, H, W); weights (B * heads, E, length) from GraphLearning -> (B, C, H, W)."""
        grid, heads = window(*x.shape[-2:], RADIUS), len(self.mix)
        x, observed, mask = (self._per_head(grid.flatten(t)).flatten(0, 1) for t in (x, observed, mask))
        alpha, beta = (bounded(t, 0, 1).repeat(1, 1, len(x) // heads) for t in (self.alpha, self.beta))
        if self.prior == "glr":
            x = glr(x, mask, weights, alpha, beta, self.skip, grid, self.recompute, self.watch)
        else:
            pair = directed_pair(weights, grid)
            gamma = bounded(self.gamma, 0.01)
            x = gtv_admm(x, observed, mask, pair, gamma, alpha, beta, self.skip, grid, self.recompute, self.watch)
        return self._mean(grid.unflatten(x).unflatten(0, (-1, heads)))

    def plain(self, x: Tensor, observed: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
        """The same by the plain reference; weights (B, heads, K, H, W)."""
        x, observed, mask = map(self._per_head, (x, observed, mask))
        alpha, beta = bounded(self.alpha, 0, 1), bounded(self.beta, 0, 1)
        if self.prior == "glr":
            return self._mean(reference.glr(x, mask, weights, alpha, beta, self.skip, RADIUS))
        weights = weights / weights.sum(dim=2, keepdim=True)
        gamma = bounded(self.gamma, 0.01)
        return self._mean(reference.gtv(x, observed, mask, weights, gamma, alpha, beta, self.skip, RADIUS))

    def flops(self, channels: int) -> int:
        """Arithmetic per pixel, that of the graph operators; see `crate_graph.ops.flops`."""
        layers, steps, heads = self.alpha.shape
        count = flops.glr if self.prior == "glr" else flops.gtv_admm
        return heads * count(EDGES, channels, layers, steps)

    def _per_head(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> (B, heads, C, ...), without a copy."""
        return x.unsqueeze(1).expand(-1, len(self.mix), *x.shape[1:])

    def _mean(self, x: Tensor) -> Tensor:
        """(B, heads, C, H, W) -> (B, C, H, W)."""
        return torch.einsum("g,bgchw->bchw", self.mix, x)


class GraphBlock(nn.Module):
    """Features of the picture, graphs of the features, the picture restored on the graphs."""

    def __init__(self, prior: Prior, in_chans: int, heads: int, features: int, layers: int, steps: int):
        super().__init__()
        self.features = ShallowFeatures(in_chans, heads * features)
        self.graphs = GraphLearning(heads, features)
        self.solver = UnrolledSolver(prior, heads, layers, steps)
        self.skip = nn.Parameter(torch.tensor([0.95]))
        self.plain = False

    def forward(self, x: Tensor, observed: Tensor, mask: Tensor) -> Tensor:
        """All (B, C, H, W)."""
        maps = self.features(x)
        if self.plain:
            solution = self.solver.plain(x, observed, mask, self.graphs.plain(maps, RADIUS))
        else:
            weights = self.graphs(maps, window(*x.shape[-2:], RADIUS))
            solution = self.solver(x, observed, mask, weights)
        return x + self.skip * (solution - x)


class UnrolledGraphNetwork(nn.Module):
    """`uglr` and `ugtv`: 323,410 and 323,435 parameters for colour, 319,090 and 319,115 for luma, as in the paper.

    Beyond the convolutions, metrics and CG steps, the paper's totals leave 10 scalars per block, and 5 more for GTV.
    Taken here: a skip for each of 5 layers, a weight for each of 4 heads, a skip for the block; a gamma per layer.

    Args:
        prior: "glr" or "gtv".
        in_chans: 3 (colour, demosaicking) or 1 (luma, interpolation).
        depth: blocks.
        heads, features: graphs of a block, and feature maps of each.
        layers, steps: ADMM layers of a block (for GLR: restarts of CG), and CG steps of each.
        plain: compute by the plain reference, to compare with.
    """

    window = 2 * RADIUS + 1

    def __init__(
        self,
        prior: Prior,
        in_chans: int = 3,
        depth: int = 5,
        heads: int = 4,
        features: int = 12,
        layers: int = 5,
        steps: int = 10,
        plain: bool = False,
    ):
        super().__init__()
        self.in_chans = in_chans
        self.blocks = nn.ModuleList(GraphBlock(prior, in_chans, heads, features, layers, steps) for _ in range(depth))
        self.checkpoint_blocks = False
        for block in self.blocks:
            block.plain = plain

    def forward(self, observed: Tensor, mask: Tensor, sigma: Tensor | None = None) -> Tensor:
        """observed, mask (B, C, H, W) -> (B, C, H, W). sigma is not used: the paper's networks know no noise."""
        observed = check_observation(observed, mask, self.in_chans)
        x = interpolate_known(observed, mask)  # (B, C, H, W)
        for block in self.blocks:
            if self.checkpoint_blocks and torch.is_grad_enabled():
                x = checkpoint(block, x, observed, mask, use_reentrant=False)
            else:
                x = block(x, observed, mask)
        return keep_observed(x, observed, mask, None)

    def graph_flops(self, height: int, width: int) -> int:
        """What the graph operators compute for a picture of this size, beyond convolutions and matrix products."""
        per_block = [block.graphs.flops(EDGES) + block.solver.flops(self.in_chans) for block in self.blocks]
        return height * width * sum(per_block)


class UntrainedGraphNetwork(nn.Module):
    """`iglr` and `igtv`: one graph from colour and position, M = 1.5 I, and the solver with its initial values.

    The paper gives the features as (R, G, B, row, column) without their units. Here colours are in units of
    `color_unit` and positions in units of `position_unit` pixels; with much smaller ones the graph's largest eigenvalue
    outgrows the paper's fixed steps. It has no parameters to learn.
    """

    window = 2 * RADIUS + 1

    def __init__(
        self,
        prior: Prior,
        in_chans: int = 3,
        layers: int = 5,
        steps: int = 10,
        color_unit: float = 0.2,
        position_unit: float = 1.0,
    ):
        super().__init__()
        self.in_chans = in_chans
        self.units = (color_unit, position_unit)
        self.graphs = GraphLearning(1, in_chans + 2)
        self.solver = UnrolledSolver(prior, 1, layers, steps)
        self.requires_grad_(False)

    def forward(self, observed: Tensor, mask: Tensor, sigma: Tensor | None = None) -> Tensor:
        """observed, mask (B, C, H, W) -> (B, C, H, W)."""
        observed = check_observation(observed, mask, self.in_chans)
        x = interpolate_known(observed, mask)
        weights = self.graphs(self._features(x), window(*x.shape[-2:], RADIUS))
        return keep_observed(self.solver(x, observed, mask, weights), observed, mask, None)

    def graph_flops(self, height: int, width: int) -> int:
        """As for `UnrolledGraphNetwork`."""
        return height * width * (self.graphs.flops(EDGES) + self.solver.flops(self.in_chans))

    def _features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C + 2, H, W)."""
        color_unit, position_unit = self.units
        rows = torch.arange(x.shape[-2], device=x.device, dtype=x.dtype) / position_unit
        columns = torch.arange(x.shape[-1], device=x.device, dtype=x.dtype) / position_unit
        position = torch.stack(torch.meshgrid(rows, columns, indexing="ij")).expand(len(x), -1, -1, -1)
        return torch.cat((x / color_unit, position), dim=1)


def bounded(x: Tensor, low: float, high: float | None = None) -> Tensor:
    """x clamped, with the gradient of x itself: a projection after each step of the optimizer, without one."""
    return x + (x.clamp(low, high) - x).detach()
