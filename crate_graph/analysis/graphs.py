"""Graph networks: what they minimise and how fast, the graphs that they learn, and the picture on its way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from crate_graph.analysis.curves import Series, draw_curve, whole_numbers
from crate_graph.analysis.figures import INITIAL, OTHER, TRAINED, Figure, picture_sheet, sheet, show, show_captioned
from crate_graph.analysis.layers import as_found, matrices, weights
from crate_graph.analysis.measured import Measured
from crate_graph.analysis.panels import DESCENT, ENTROPY, LEARNED, LEFT, Panel
from crate_graph.analysis.pictures import Observation
from crate_graph.analysis.probe import over_pictures
from crate_graph.analysis.subject import Subject
from crate_graph.measures.graphs import cg_iterates
from crate_graph.models.graph_networks import UnrolledGraphNetwork, UnrolledSolver, UntrainedGraphNetwork
from crate_graph.models.observation import interpolate_known
from crate_graph.models.ugtv_fast import UGTVFast
from crate_graph.ops.graph import node_sums
from crate_graph.ops.window import Window
from crate_graph.tasks.metrics import mean_squared_error, psnr_of
from crate_graph.tasks.restoration import estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PAPER = "arXiv 2406.04090"
_DETAIL = 16  # pixels: side of the detail on which edges are drawn
_FAINTEST = 0.04  # of the heaviest edge of a graph: lighter ones are not drawn
_COLUMNS = ("model", "measure", "block", "ADMM layer", "CG step", "mean", "std", "unit", "over")


def is_graph_network(model: nn.Module) -> bool:
    return isinstance(model, UnrolledGraphNetwork | UntrainedGraphNetwork | UGTVFast)


def restorer_series(subject: Subject, observations: list[Observation], other: Subject | None) -> list[Series]:
    """The measures of the trained network, of the initial one, and of the other where there is one.

    Raises:
        UserError: a network whose layers have no measures.
    """
    shown = [(subject.model, f"{subject.architecture}, trained", TRAINED), (subject.initial, subject.start, INITIAL)]
    if other is not None:
        shown.append((other.model, f"{other.architecture}, to compare", OTHER))
    steps = {"cg_steps": True} if is_graph_network(subject.model) else {}
    return [
        Series(label, colour, over_pictures(model, observations, **steps) + weights(model), matrices(model))
        for model, label, colour in shown
    ]


def graph_figures(
    subject: Subject, other: Subject | None, series: Sequence[Series], observations: list[Observation], count: int
) -> list[Figure]:
    """Of a graph network; pictures are drawn of the first `count` observations."""
    traces = [trace(subject.model, observation) for observation in observations[:count]]
    figures = [
        comparison(subject, other, observations[:count]),
        _descent(series, guided=isinstance(subject.model, UGTVFast)),
        _iterates(observations[:count], traces),
        _edges(observations[:count], traces),
        _entropy(series, traces[0].grids[0]),
        _cg(series),
        _learned(series),
    ]
    return [figure for figure in figures if figure is not None]


@dataclass
class Trace:
    """What one picture went through, a list entry for each block."""

    grids: list[Window] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)  # (heads, E, length), w_ij = exp(-d_ij)
    iterates: list[list[Tensor]] = field(default_factory=list)  # the start, then after each ADMM layer: (C, H, W)


def trace(model: nn.Module, observation: Observation) -> Trace:
    """The graphs, and the picture after each ADMM layer as the mean over the heads; of ugtv_fast with its guide."""
    found, handles = Trace(), []
    parts = [model] if isinstance(model, UntrainedGraphNetwork) else list(model.blocks)
    for part in parts:
        solves: list[tuple] = []
        part.solver.watch = lambda *system, solves=solves: solves.append(system)
        handles.append(part.graphs.register_forward_hook(partial(_keep_graph, found)))
        handles.append(part.solver.register_forward_hook(partial(_keep_iterates, found, solves)))
        if isinstance(model, UGTVFast):
            handles.append(part.register_forward_hook(partial(_add_guide, found)))
    try:
        with as_found(model):
            estimate(model, observation.observed, observation.mask, observation.sigma)
    finally:
        for handle in handles:
            handle.remove()
        for part in parts:
            del part.solver.watch
    return found


def _keep_graph(found: Trace, _, inputs: tuple, output: Tensor) -> None:
    found.grids.append(inputs[1])
    found.weights.append(output)


def _keep_iterates(found: Trace, solves: list[tuple], solver: nn.Module, _, output: Tensor) -> None:
    grid, iterates = found.grids[-1], []

    def add(x: Tensor) -> None:
        """x (heads, C, length)."""
        iterates.append(torch.einsum("g,gchw->chw", solver.mix, grid.pixels(x)))

    for layer, system in enumerate(solves):
        start, *_, end = (x for x, _ in cg_iterates(*system))
        if not iterates:
            add(start)
        skip = solver.skip[layer] if isinstance(solver, UnrolledSolver) else 1
        add(start + skip * (end - start))
    solves.clear()
    found.iterates.append([*iterates, output[0] if isinstance(solver, UnrolledSolver) else grid.pixels(output[0])])


def _add_guide(found: Trace, _, __, output: tuple[Tensor, Tensor]) -> None:
    """What the solver smooths is the difference of picture and guide."""
    *iterates, solution = found.iterates[-1]
    guide = output[1][0] - solution
    found.iterates[-1] = [guide + x for x in [*iterates, solution]]


def comparison(subject: Subject, other: Subject | None, observations: list[Observation]) -> Figure:
    """Observed, interpolated, estimated, and the original, a row for each picture."""
    models = [("estimate", subject.model)] + ([] if other is None else [("to compare", other.model)])
    columns = 4 + len(models)
    rows = []
    with picture_sheet([2] * len(observations), columns) as made:
        for axes, each in zip(made.axes, observations, strict=True):
            clean = each.clean
            panels = [("observed", each.observed), ("interpolated", interpolate_known(each.observed, each.mask))]
            with torch.no_grad():
                panels += [(n, estimate(m, each.observed, each.mask, each.sigma)) for n, m in models]
            error = (panels[2][1] - clean).abs().mean(dim=1, keepdim=True)
            show_captioned(axes[0], _pixels(each.observed), [each.key], name="observed")
            for place, (name, picture) in list(enumerate(panels))[1:]:
                psnr = _psnr(picture, clean)
                show(axes[place], _pixels(picture), f"{name}, {psnr:.2f} dB")
                rows.append((each.key, name, psnr))
            show(axes[-2], _pixels(clean), "original")
            show(axes[-1], _pixels(error)[..., 0], "error of the estimate", vmax=0.1, cmap="magma")
    return Figure(
        "comparison",
        "Observed, estimated, and the original",
        "From the known values on the left the network computes the estimate; interpolation is where it starts. "
        "The last picture shows where it is wrong, black for not at all and yellow for a tenth of white or more.",
        f"{_PAPER}; PSNR of the values as they come, neither clipped nor rounded",
        made.bytes,
        "png",
        ("picture", "what", "PSNR in dB"),
        rows,
    )


def _descent(series: Sequence[Series], guided: bool) -> Figure:
    """The objective and the constraints, iterate by iterate."""
    objective = "glr" if any(m.name == "glr" for m in series[0].measured) else "gtv"
    at_guide = guided and not any(m.mean for m in series[1].measured if m.name == objective)
    formula = "x'Lx" if objective == "glr" else "‖C(x - guide)‖₁" if guided else "‖Cx‖₁"
    return _sequences(
        "descent",
        "The objective's descent",
        f"Each block is to lower {formula}, the roughness of the picture on its own graph, while known values must "
        "stay as they are. The curves show both after each layer of the solver: how rough it still is, and by how much "
        "known values are missed; the first point of a block is where its solver starts."
        + (" With random weights the picture is the guide itself, so nothing is left to lower." if at_guide else ""),
        _PAPER,
        DESCENT,
        [_only(each, depth=2) for each in series],
    )


def _cg(series: Sequence[Series]) -> Figure:
    return _sequences(
        "conjugate_gradients",
        "Inside each layer: conjugate gradients, step by step",
        "Every layer of the solver solves a linear system by a few steps with learned lengths; shown is what is "
        "left of the system, as a share of what it was. Lengths that were learned for the sake of the picture need not "
        "lower it at each step.",
        _PAPER,
        [Panel("after each step", LEFT.measure, LEFT.unit)],
        [_only(each, depth=3) for each in series],
        width=10.0,
        log=True,
    )


def _learned(series: Sequence[Series]) -> Figure | None:
    return _sequences(
        "learned_parameters",
        "What was learned: step lengths, momenta, penalties",
        "These few numbers are all that the solver learns; the rest is the convolutions that make the graph. Dots are "
        "means over the heads, bars one standard deviation over them.",
        _PAPER,
        LEARNED,
        series,
    )


def _entropy(series: Sequence[Series], grid: Window) -> Figure:
    rows = []
    neighbours = (2 * grid.radius + 1) ** 2 - 1
    with sheet(1, 1, height=3.4, width=5.5) as made:
        axes = made.axes[0, 0]
        for each in series:
            values = [m for m in each.measured if m.name == "edge_entropy"]
            draw_curve(axes, [m.layer[0] for m in values], values, each)
            rows += [_row(each.label, m) for m in values]
        axes.axhline(math.log(neighbours), color="#b0b4ba", linewidth=1)
        place = axes.get_yaxis_transform()  # across the axes, up in nats
        label = f"ln {neighbours}: all {neighbours} neighbours alike"
        axes.text(0.99, math.log(neighbours), label, fontsize=8, ha="right", va="bottom", transform=place)
        axes.set(xlabel="block", ylabel="entropy, nats", title=ENTROPY.title)
        axes.set_ylim(0, 1.12 * math.log(neighbours))
        whole_numbers(axes)
        axes.legend(fontsize=8)
    return Figure(
        "edge_entropy",
        "How choosy the graphs are",
        "Where all neighbours weigh the same, the entropy is that of the grey line and the graph knows nothing of the "
        "picture. Lower says that a pixel listens to few neighbours, those that are like it.",
        _PAPER,
        made.bytes,
        "svg",
        _COLUMNS,
        rows,
    )


def _sequences(name, title, says, source, panels, series, width: float = 0.0, log: bool = False) -> Figure | None:
    """Measures along blocks, ADMM layers and CG steps; a line for each block, a gap between blocks."""
    panels = [panel for panel in panels if any(m.name == panel.measure for each in series for m in each.measured)]
    rows = [_row(each.label, m) for p in panels for each in series for m in each.measured if m.name == p.measure]
    zero = [p for p in panels if not any(m.mean for each in series for m in each.measured if m.name == p.measure)]
    panels = [panel for panel in panels if panel not in zero]
    if not panels:
        return None
    columns = min(len(panels), 4)
    lines = -(-len(panels) // columns)
    with sheet(lines, columns, height=2.9 * lines + 0.3, width=width or max(5.5, 3.0 * columns)) as made:
        for axes in made.axes.flat[len(panels) :]:
            axes.set_axis_off()
        for axes, panel in zip(made.axes.flat, panels, strict=False):
            places = _places(series, panel.measure)
            for each in series:
                _draw_blocks(axes, each, panel.measure, places, log)
            axes.set(title=panel.title, ylabel=panel.unit)
            if log:
                axes.set_yscale("log")
                axes.yaxis.set_major_formatter("{x:g}")
                axes.yaxis.set_minor_formatter("{x:g}")
            _name_blocks(axes, places)
        lines, labels = made.axes[0, 0].get_legend_handles_labels()
        made.drawing.legend(lines, labels, loc="outside lower left", ncols=3, fontsize=9)
    found = f"Here 0 throughout, and so not drawn: {', '.join(panel.title for panel in zero)}." if zero else ""
    return Figure(name, title, says, source, made.bytes, "svg", _COLUMNS, rows, found)


def _places(series: Sequence[Series], measure: str) -> dict[tuple[int, ...], float]:
    """Where each layer stands on the axis."""
    layers = sorted({m.layer for each in series for m in each.measured if m.name == measure})
    apart = 1.0 if max(len(layer) for layer in layers) > 1 else 0.0
    return {layer: place + apart * (layer[0] - 1) for place, layer in enumerate(layers)}


def _draw_blocks(axes: Axes, series: Series, measure: str, places: dict[tuple[int, ...], float], log: bool) -> None:
    """A line for each block; none of a series with a 0 where the scale is of powers."""
    values = [m for m in series.measured if m.name == measure]
    if log and not all(m.mean > 0 for m in values):
        return
    blocks = sorted({m.layer[:-1] for m in values})  # a line goes through the last of their numbers
    for number, block in enumerate(blocks):
        line = sorted((m for m in values if m.layer[:-1] == block), key=lambda m: m.layer)
        drawn = series if number == 0 else Series("_more", series.colour, [], [])
        draw_curve(axes, [places[m.layer] for m in line], line, drawn)


def _name_blocks(axes: Axes, places: dict[tuple[int, ...], float]) -> None:
    blocks = sorted({layer[0] for layer in places})
    middles = [np.mean([place for layer, place in places.items() if layer[0] == block]) for block in blocks]
    axes.set_xticks(middles, [f"block {b}" if len(blocks) < 4 else str(b) for b in blocks])
    if len(blocks) >= 4:
        axes.set_xlabel("block")


def _iterates(observations: list[Observation], traces: list[Trace]) -> Figure:
    """The first picture after each ADMM layer of each block, and PSNR of all of them."""
    rows = []
    for each, traced in zip(observations, traces, strict=True):
        for block, iterates in enumerate(traced.iterates, start=1):
            names = [*map(str, range(len(iterates) - 1)), "solution"]
            for layer, x in zip(names, iterates, strict=True):
                rows.append((each.key, block, layer, _psnr(x[None], each.clean)))
    first, clean = traces[0], observations[0].clean
    lines, columns = len(first.iterates), max(map(len, first.iterates))
    with picture_sheet([1] * lines, columns) as made:
        for block, (axes, iterates) in enumerate(zip(made.axes, first.iterates, strict=True), start=1):
            for layer, (place, x) in enumerate(zip(axes, iterates, strict=False)):
                name = {0: f"block {block}: start", len(iterates) - 1: "solution"}.get(layer, f"layer {layer}")
                show(place, _pixels(x[None]), f"{name}, {_psnr(x[None], clean):.2f} dB")
    return Figure(
        "iterates",
        "The picture on its way",
        f"{observations[0].key} before the solver of each block and after each of its layers, as the mean over the "
        "graphs. What the network gives out is the last solution with all known values put back.",
        _PAPER,
        made.bytes,
        "png",
        ("picture", "block", "ADMM layer", "PSNR in dB"),
        rows,
    )


def _edges(observations: list[Observation], traces: list[Trace]) -> Figure:
    """The graphs of the first and the last block on a detail of the first picture."""
    traced, picture = traces[0], _pixels(observations[0].clean)
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
        "be alike. Where the graph knows the picture, lines run along its contours and are thin across them.",
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


def _only(series: Series, depth: int) -> Series:
    """Without the measures of another depth: (block, ADMM layer) or (block, ADMM layer, CG step)."""
    measured = [m for m in series.measured if len(m.layer) == depth]
    return Series(series.label, series.colour, measured, [])


def _row(label: str, m: Measured) -> tuple:
    block, layer, step = (*m.layer, None, None)[:3]
    return label, m.name, block, layer, step, m.mean, m.std, m.unit, m.over


def _psnr(picture: Tensor, clean: Tensor) -> float:
    return psnr_of(mean_squared_error(picture, clean)).mean().item()


def _pixels(picture: Tensor) -> np.ndarray:
    """(1, C, H, W) -> (H, W, C)."""
    return picture[0].permute(1, 2, 0).numpy()
