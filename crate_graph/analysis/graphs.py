"""The figures of a graph network: the picture on its way, what is minimised, and the graphs that are learned."""

from __future__ import annotations

from collections.abc import Sequence

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
        _iterates(observations[:count], traces),
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
        "From the known values on the left the network computes the estimate; interpolation is where it starts. "
        "The last picture shows where it is wrong, black for not at all and yellow for a tenth of white or more.",
        f"{_PAPER}; PSNR of the values as they come, neither clipped nor rounded",
        made.bytes,
        "png",
        ("picture", "what", "PSNR in dB"),
        rows,
    )


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
                show(place, pixels(x[None]), f"{name}, {_psnr(x[None], clean):.2f} dB")
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


def _psnr(picture: Tensor, clean: Tensor) -> float:
    return psnr_of(mean_squared_error(picture, clean)).mean().item()
