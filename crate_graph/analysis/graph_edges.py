"""The learned edges of a graph network, drawn on the picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from crate_graph.analysis.figures import Figure, picture_sheet, show
from crate_graph.analysis.graph_trace import Trace
from crate_graph.analysis.pictures import Observation, pixels
from crate_graph.ops.graph import node_sums
from crate_graph.ops.window import Window

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PAPER = "arXiv 2406.04090"
_DETAIL = 16  # pixels: side of the detail on which edges are drawn
_FAINTEST = 0.04  # of the heaviest edge of a graph: lighter ones are not drawn


def learned_edges(observations: list[Observation], traces: list[Trace]) -> Figure:
    """The graphs of the first and the last block on a detail of the first picture."""
    traced, picture = traces[0], pixels(observations[0].clean)
    graphs = [(b, h) for b in sorted({0, len(traced.weights) - 1}) for h in range(len(traced.weights[b]))]
    columns = min(max(len(graphs) // 2, 2), len(graphs))
    lines = -(-len(graphs) // columns)
    detail = _busiest(picture, min(_DETAIL, *picture.shape[:2]))
    rows = []
    with picture_sheet([1] * lines, columns) as made:
        for axes, (block, head) in zip(made.axes.flat, graphs, strict=False):
            grid = traced.grids[block]
            edges = _edges_within(_directed_sum(traced.weights[block][head], grid), grid, detail)
            show(axes, picture, f"block {block + 1}, graph {head + 1}")
            _draw_edges(axes, edges, detail, widest=6 / columns)
            rows += [(block + 1, head + 1, *edge) for edge in edges]
    return Figure(
        "edges",
        "The learned graphs, drawn on the picture",
        f"A detail of {observations[0].key}: each line joins two pixels, and the wider it is the more they are held to "
        "be alike, next to the other edges of the same two pixels. Where a graph has learned contours, lines are wide "
        "along them and thin across; where all lines are about as wide, it holds all neighbours to be alike.",
        f"{_PAPER}, on the weights; width is w_ij over its sum at i, and over that at j",
        made.bytes,
        "png",
        ("block", "graph", "row", "column", "row of the other", "column of the other", "weight"),
        rows,
    )


def _draw_edges(axes: Axes, edges: list[tuple], detail: tuple[int, int, int], widest: float) -> None:
    from matplotlib.collections import LineCollection

    top, left, side = detail
    heaviest = max((edge[-1] for edge in edges), default=1.0)
    drawn = [edge for edge in edges if edge[-1] > _FAINTEST * heaviest]
    ends = [((x, y), (other_x, other_y)) for y, x, other_y, other_x, _ in drawn]
    widths = [widest * weight / heaviest for *_, weight in drawn]
    axes.add_collection(LineCollection(ends, linewidths=widths, colors="#00c2a8", capstyle="round"))
    axes.set_xlim(left - 0.5, left + side - 0.5)
    axes.set_ylim(top + side - 0.5, top - 0.5)


def _directed_sum(weights: Tensor, grid: Window) -> Tensor:
    """wbar_ij + wbar_ji on undirected edges: (E, length) -> (E, H, W), at the pixel where the edge begins."""
    sums = node_sums(weights[None], grid)[0]
    inverse = torch.where(sums > 0, 1 / sums.clamp(min=1e-30), 0)  # (length,)
    both = torch.zeros_like(weights)
    for edge, ahead in enumerate(grid.ahead):
        both[edge, grid.core] = weights[edge, grid.core] * (inverse[grid.core] + inverse[ahead])
    return grid.pixels(both)


def _edges_within(weights: Tensor, grid: Window, detail: tuple[int, int, int]) -> list[tuple]:
    """(row, column, row of the other end, column of it, weight) of the edges inside the detail."""
    top, left, side = detail
    inside, found = range(side), []
    for (down, right), values in zip(
        grid.offsets, weights[:, top : top + side, left : left + side].tolist(), strict=True
    ):
        for y, line in enumerate(values):
            for x, weight in enumerate(line):
                if y + down in inside and x + right in inside and weight > 0:
                    found.append((top + y, left + x, top + y + down, left + x + right, weight))
    return found


def _busiest(picture: np.ndarray, side: int) -> tuple[int, int, int]:
    """Row, column and side of the square with the largest variance, among those half a side apart."""
    grey = picture.mean(axis=2)
    step = max(side // 2, 1)
    corners = [
        (top, left)
        for top in range(0, grey.shape[0] - side + 1, step)
        for left in range(0, grey.shape[1] - side + 1, step)
    ]
    top, left = max(corners, key=lambda at: grey[at[0] : at[0] + side, at[1] : at[1] + side].var())
    return top, left, side
