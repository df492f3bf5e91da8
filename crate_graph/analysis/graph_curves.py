"""Graph networks in numbers: the descent of what they minimise, and what their solvers and graphs learned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from crate_graph.analysis.curves import Series, draw_curve, whole_numbers
from crate_graph.analysis.figures import Figure, sheet
from crate_graph.analysis.measured import Measured
from crate_graph.analysis.panels import DESCENT, ENTROPY, LEARNED, LEFT, Panel
from crate_graph.analysis.verdicts import number
from crate_graph.ops.window import Window

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PAPER = "arXiv 2406.04090"
_UNIFORM = 0.9  # share of the neighbours from which on edges are said to be nearly uniform
_COLUMNS = ("model", "measure", "block", "ADMM layer", "CG step", "mean", "std", "unit", "over")


def descent(series: Sequence[Series], guided: bool) -> Figure:
    """The objective and the constraints, iterate by iterate."""
    objective = "glr" if any(m.name == "glr" for m in series[0].measured) else "gtv"
    of = "the picture"
    formula = "x'Lx" if objective == "glr" else "‖Cx‖₁"
    if guided:
        formula, of = "‖C(x - guide)‖₁", "the difference of the picture x and a guide that convolutions learn,"
    note = nothing_to_lower(series, guided)
    return _sequences(
        "descent",
        "The objective's descent",
        f"Each block is to lower {formula}, the roughness of {of} on its own graph, while known values are to stay "
        f"as they are.{f' {note}' if note else ''}",
        _PAPER,
        DESCENT,
        [_only(each, depth=2) for each in series],
    )


def nothing_to_lower(series: Sequence[Series], guided: bool) -> str:
    """Why the objective is 0 with random weights, as a sentence; empty where it is not."""
    if not guided or any(m.mean for m in series[1].measured if m.name == "gtv"):
        return ""
    return "With random weights the picture is the guide itself, so nothing is left to lower."


def conjugate_gradients(series: Sequence[Series]) -> Figure:
    return _sequences(
        "conjugate_gradients",
        "Inside each layer: conjugate gradients, step by step",
        "Every layer of the solver solves a linear system by a few steps with learned lengths; shown is the error left "
        "in its equations, as a share of what it was before the first step. Lengths that were learned for the sake of "
        "the picture need not lower it at each step.",
        _PAPER,
        [Panel("after each step", LEFT.measure, LEFT.unit)],
        [_only(each, depth=3) for each in series],
        width=10.0,
        log=True,
    )


def learned_parameters(series: Sequence[Series]) -> Figure | None:
    """None of a network that learns none of them."""
    learned = {panel.measure for panel in LEARNED}
    trained, initial = ([m for m in each.measured if m.name in learned] for each in series[:2])
    if trained == initial and len(series) < 3:
        return None
    return _sequences(
        "learned_parameters",
        "What was learned: the numbers of solvers and metrics",
        "These few numbers steer the solvers and the metric by which features are compared; all else that is learned "
        "is convolutions. Dots are means over the heads, bars one standard deviation over them.",
        _PAPER,
        LEARNED,
        [_without_first_momenta(each) for each in series],
    )


def _without_first_momenta(series: Series) -> Series:
    measured = [m for m in series.measured if not (m.name == "beta" and m.layer[-1] == 1)]
    return Series(series.label, series.colour, measured, [])


def edge_entropy(series: Sequence[Series], grid: Window) -> Figure:
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
        "Where all neighbours weigh the same, the entropy is that of the grey line and the graph treats all pictures "
        "alike. Lower says that a pixel listens to fewer neighbours. Lower is not better by itself: features of random "
        "weights differ from pixel to pixel at random, and so single out neighbours at random, while training may find "
        "that nearly uniform edges serve the picture best.",
        _PAPER,
        made.bytes,
        "svg",
        _COLUMNS,
        rows,
        _choosiness(series, neighbours),
    )


def _choosiness(series: Sequence[Series], neighbours: int) -> str:
    """Entropy as a number of neighbours that weigh alike, in the last block."""
    said = []
    for each in series:
        last = max((m for m in each.measured if m.name == "edge_entropy"), key=lambda m: m.layer)
        like = math.exp(last.mean)
        uniform = "nearly uniform: " if like > _UNIFORM * neighbours else ""
        said.append(f"{each.label}: {uniform}{number(last)} nats, as of {like:.1f} of {neighbours} neighbours alike")
    return f"Here, in the last block (ln {neighbours} = {math.log(neighbours):.4g}). {'; '.join(said)}."


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
            axes.margins(y=0.12)  # marks stay clear of the frame
            if log:
                axes.set_yscale("log")
                axes.yaxis.set_major_formatter("{x:g}")
                axes.yaxis.set_minor_formatter("{x:g}")
            _name_blocks(axes, places)
        lines, labels = made.axes[0, 0].get_legend_handles_labels()
        made.drawing.legend(lines, labels, loc="outside lower left", ncols=3, fontsize=9)
    found = f"Here 0 throughout, and so not drawn: {', '.join(panel.title for panel in zero)}." if zero else ""
    if log and (hidden := [each.label for each in series if not _positive(each, panels[0].measure)]):
        found = f"Not drawn, because it is 0 and the scale is of powers: {'; '.join(hidden)}."
    explained = " ".join(f"“{panel.title}”: {panel.says}." for panel in panels if panel.says)
    return Figure(name, title, f"{says} {explained}".rstrip(), source, made.bytes, "svg", _COLUMNS, rows, found)


def _places(series: Sequence[Series], measure: str) -> dict[tuple[int, ...], float]:
    """Where each layer stands on the axis."""
    layers = sorted({m.layer for each in series for m in each.measured if m.name == measure})
    apart = 1.0 if max(len(layer) for layer in layers) > 1 else 0.0
    return {layer: place + apart * (layer[0] - 1) for place, layer in enumerate(layers)}


def _draw_blocks(axes: Axes, series: Series, measure: str, places: dict[tuple[int, ...], float], log: bool) -> None:
    """A line for each block; none of a series with a 0 where the scale is of powers."""
    values = [m for m in series.measured if m.name == measure]
    if log and not _positive(series, measure):
        return
    blocks = sorted({m.layer[:-1] for m in values})  # a line goes through the last of their numbers
    for place, block in enumerate(blocks):
        line = sorted((m for m in values if m.layer[:-1] == block), key=lambda m: m.layer)
        drawn = series if place == 0 else Series("_more", series.colour, [], [])
        draw_curve(axes, [places[m.layer] for m in line], line, drawn)


def _positive(series: Series, measure: str) -> bool:
    return all(m.mean > 0 for m in series.measured if m.name == measure)


def _name_blocks(axes: Axes, places: dict[tuple[int, ...], float]) -> None:
    blocks = sorted({layer[0] for layer in places})
    middles = [np.mean([place for layer, place in places.items() if layer[0] == block]) for block in blocks]
    axes.set_xticks(middles, [f"block {b}" if len(blocks) < 4 else str(b) for b in blocks])
    if len(blocks) >= 4:
        axes.set_xlabel("block")


def _only(series: Series, depth: int) -> Series:
    """Without the measures of another depth: (block, ADMM layer) or (block, ADMM layer, CG step)."""
    measured = [m for m in series.measured if len(m.layer) == depth]
    return Series(series.label, series.colour, measured, [])


def _row(label: str, m: Measured) -> tuple:
    block, layer, step = (*m.layer, None, None)[:3]
    return label, m.name, block, layer, step, m.mean, m.std, m.unit, m.over
