"""The figures of a graph network: the picture on its way, what is minimised, and the graphs that are learned."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean

import torch
from torch import Tensor, nn

from crate_graph.analysis.curves import Series
from crate_graph.analysis.figures import INITIAL, OTHER, TRAINED, Figure, picture_sheet, show, show_captioned
from crate_graph.analysis.graph_curves import conjugate_gradients, descent, edge_entropy, learned_parameters
from crate_graph.analysis.graph_edges import learned_edges
from crate_graph.analysis.graph_trace import Trace, trace
from crate_graph.analysis.layers import matrices, weights
from crate_graph.analysis.pictures import Observation, pixels
from crate_graph.analysis.probe import over_pictures
from crate_graph.analysis.subject import Subject
from crate_graph.models.graph_networks import UnrolledGraphNetwork, UntrainedGraphNetwork
from crate_graph.models.observation import interpolate_known
from crate_graph.models.ugtv_fast import UGTVFast
from crate_graph.tasks.metrics import mean_squared_error, psnr_of
from crate_graph.tasks.restoration import estimate

_PAPER = "arXiv 2406.04090"


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
        descent(series, guided=isinstance(subject.model, UGTVFast)),
        _iterates(subject.model, observations[:count], traces),
        learned_edges(observations[:count], traces),
        edge_entropy(series, traces[0].grids[0]),
        conjugate_gradients(series),
        learned_parameters(series),
    ]
    return [figure for figure in figures if figure is not None]


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
            show_captioned(axes[0], pixels(each.observed), [each.key], name="observed")
            for place, (name, picture) in list(enumerate(panels))[1:]:
                psnr = _psnr(picture, clean)
                show(axes[place], pixels(picture), f"{name}, {psnr:.2f} dB")
                rows.append((each.key, name, psnr))
            show(axes[-2], pixels(clean), "original")
            show(axes[-1], pixels(error)[..., 0], "error of the estimate", vmax=0.1, cmap="magma")
    return Figure(
        "comparison",
        "Observed, estimated, and the original",
        "From the known values on the left the network computes the estimate; it starts from their interpolation. "
        "The last picture shows where it is wrong, black for not at all and yellow for a tenth of white or more.",
        f"{_PAPER}; PSNR of the values as they come, neither clipped nor rounded",
        made.bytes,
        "png",
        ("picture", "what", "PSNR in dB"),
        rows,
    )


def _iterates(model: nn.Module, observations: list[Observation], traces: list[Trace]) -> Figure:
    """The first picture after each ADMM layer of each block, and PSNR of all of them."""
    guided = isinstance(model, UGTVFast)
    steps = [
        (each, block, layer, _psnr(x[None], each.clean))
        for each, traced in zip(observations, traces, strict=True)
        for block, iterates in enumerate(traced.iterates, start=1)
        for layer, x in enumerate(_different(iterates))
    ]
    clean, shown = observations[0].clean, [_different(iterates) for iterates in traces[0].iterates]
    begins = "guide" if guided else "start"
    with picture_sheet([1] * len(shown), max(map(len, shown))) as made:
        for block, (axes, iterates) in enumerate(zip(made.axes, shown, strict=True), start=1):
            for layer, (place, x) in enumerate(zip(axes, iterates, strict=False)):
                name = f"layer {layer}" if layer else f"block {block}: {begins}"
                show(place, pixels(x[None]), f"{name}, {_psnr(x[None], clean):.2f} dB")
    return Figure(
        "iterates",
        "The picture on its way",
        f"{observations[0].key} before the solver of each block and after each of its layers, as the weighted sum over "
        f"the graphs. {_between(model)}",
        _PAPER,
        made.bytes,
        "png",
        ("picture", "block", "ADMM layer", "PSNR in dB"),
        [(each.key, block, layer, psnr) for each, block, layer, psnr in steps],
        _gains(guided, observations, steps),
    )


def _different(iterates: list[Tensor]) -> list[Tensor]:
    """Without the solution where it is what the last layer gave."""
    return iterates[:-1] if torch.allclose(iterates[-1], iterates[-2], rtol=0, atol=1e-5) else iterates


def _between(model: nn.Module) -> str:
    """What happens around the solvers, in words."""
    if isinstance(model, UGTVFast):
        return (
            "A block begins with convolutions, which turn the picture so far into a guide; known values are put into "
            "it, and the solver starts there. What the network gives out is the last picture with all known values "
            "put back."
        )
    if isinstance(model, UntrainedGraphNetwork):
        return "What the network gives out is the last picture with all known values put back."
    return (
        "A block hands on a mean of its start and its solution, weighed by its learned skip. What the network gives "
        "out is that of the last block with all known values put back."
    )


def _gains(guided: bool, observations: list[Observation], steps: list[tuple]) -> str:
    """How many dB come within blocks and how many between them, mean over the pictures, in a sentence."""
    within, between, first, last = [], [], [], []
    for each in observations:
        blocks: dict[int, list[float]] = {}
        for _, block, _, psnr in (step for step in steps if step[0] is each):
            blocks.setdefault(block, []).append(psnr)
        ways = list(blocks.values())
        within.append(sum(way[-1] - way[0] for way in ways))
        between.append(sum(after[0] - before[-1] for before, after in pairwise(ways)))
        first.append(ways[0][0])
        last.append(ways[-1][-1])
    of = f"mean of {len(observations)} pictures" if len(observations) > 1 else "this picture"
    said = (
        f"Here ({of}), from {fmean(first):.2f} to {fmean(last):.2f} dB: the solvers bring {_signed(fmean(within))} dB"
    )
    if len(blocks) < 2:
        return f"{said}."
    where = "the guides that convolutions learned" if guided else "the learned skips"
    return f"{said} within the blocks, and {_signed(fmean(between))} dB come between the blocks, from {where}."


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _psnr(picture: Tensor, clean: Tensor) -> float:
    return psnr_of(mean_squared_error(picture, clean)).mean().item()
