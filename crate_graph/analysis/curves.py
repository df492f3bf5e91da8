"""Layer by layer: rates, sparsity, coherence and dictionaries of a classifier, beside itself before training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crate_graph.analysis.figures import INITIAL, OTHER, TRAINED, Figure, sheet
from crate_graph.analysis.layers import Matrix, activations, matrices, weights
from crate_graph.analysis.measured import Measured
from crate_graph.analysis.pictures import Sample, View
from crate_graph.analysis.subject import Subject

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_RATES = "arXiv 2306.01129, as its authors measure (eps² = 0.01, tokens of unit norm)"
_COLUMNS = ("model", "measure", "layer", "mean", "std", "unit", "over")
_MARKS = {"query": ("--", "v"), "key": ("-.", "^"), "value": (":", "s")}  # of a ViT's three projections


@dataclass(frozen=True)
class Series:
    """The measures of one model."""

    label: str
    colour: str
    measured: list[Measured]
    matrices: list[Matrix]


@dataclass(frozen=True)
class Panel:
    """One pair of axes: the measures whose name is `measure`, or `measure` and a projection of a ViT."""

    title: str
    measure: str
    unit: str


def series_of(subject: Subject, samples: list[Sample], other: Subject | None) -> list[Series]:
    """Trained, initial, and the other model where there is one, on the same pictures, each by its own view of them.

    Raises:
        UserError: a model whose layers have no measures.
    """
    shown = [
        (subject, subject.model, subject.architecture, TRAINED),
        (subject, subject.initial, subject.start, INITIAL),
    ]
    if other is not None:
        shown.append((other, other.model, f"{other.architecture}, to compare", OTHER))
    found = []
    for of, model, label, colour in shown:
        measured = activations(model, View(of).images(samples)) + weights(model)
        found.append(Series(label, colour, measured, matrices(model)))
    return found


def curve_figures(series: Sequence[Series]) -> list[Figure]:
    """Those that the models have measures for."""
    figures = [
        layer_curves(
            "rate_given_subspaces",
            "Compression: the rate of the tokens, given the subspaces",
            "Each layer's attention is to move the tokens towards a few learned subspaces, and Rᶜ counts the nats that "
            "it takes to write the tokens down once the subspaces are known. In published networks it falls with "
            "depth; before training it stays about flat.",
            _RATES,
            (
                Panel("where attention takes its input", "rc_attention_input", "Rᶜ, nats"),
                Panel("after attention, before sparsifying", "rc_half_step", "Rᶜ, nats"),
                Panel("after the layer", "rc_output", "Rᶜ, nats"),
            ),
            series,
        ),
        layer_curves(
            "coding_rate",
            "Expansion: the rate of the tokens without the subspaces",
            "R counts the nats that the tokens of one picture take with nothing known of them, so a large value says "
            "that they still tell different things apart. A good representation keeps R high while Rᶜ falls.",
            _RATES,
            (
                Panel("after attention", "coding_rate_half_step", "R, nats"),
                Panel("after the layer", "coding_rate_output", "R, nats"),
            ),
            series,
        ),
        layer_curves(
            "sparse_rate_reduction",
            "The objective: sparse rate reduction",
            "R - Rᶜ - λ‖Z‖₀ is what the layers are derived to raise: what the tokens tell apart, less what they cost "
            "once the subspaces are known, less the entries that are not zero. Each layer is one step of that climb; "
            "training itself only minimises the error of the classes, and may trade some of it away.",
            "arXiv 2306.01129; λ is that of ISTA, rates are of tokens of unit norm",
            (Panel("after the layer", "sparse_rate_reduction", "R - Rᶜ - λ‖Z‖₀"),),
            series,
        ),
        layer_curves(
            "sparsity",
            "Sparsity: how many entries of a token are not zero",
            "The second half of each layer is a step towards a code with few entries that are not zero; only exact "
            "zeros count here. In the published networks fewer are left with depth, except in the last layer.",
            "arXiv 2306.01129: ‖Z‖₀ / (d N)",
            (
                Panel("after attention (nothing makes it sparse there)", "nonzero_half_step", "share not zero"),
                Panel("after the layer", "nonzero_output", "share not zero"),
            ),
            series,
        ),
        layer_curves(
            "coherence",
            "Coherence: how near the subspaces of one layer are to each other",
            "0 says that two heads look at directions with nothing in common, 1 that they share a direction. The model "
            "is derived for subspaces that are nearly orthogonal, so lower is closer to the theory.",
            "cosines of principal angles: Björck and Golub, Math. Comp. 27, 1973",
            (
                Panel("smallest angle, mean over the pairs", "coherence", "cosine"),
                Panel("the nearest pair", "coherence_largest", "cosine"),
                Panel("all angles, root mean square", "overlap", "cosine"),
            ),
            series,
        ),
        layer_curves(
            "dictionary",
            "Dictionaries: how many directions they use, and how far a step goes",
            "The sparse codes are written in a learned dictionary; its effective rank says in how many directions it "
            "is rich. While η‖D‖² stays below 1 the sparsifying step is sure to lower its own objective.",
            "Roy and Vetterli, EUSIPCO 2007; Beck and Teboulle, SIAM J. Imaging Sci. 2(1), 2009",
            (
                Panel("effective rank", "dictionary_effective_rank", "dimensions"),
                Panel("η‖D‖²", "ista_step_bound", "of the longest safe step"),
            ),
            series,
        ),
        _spectra(series),
    ]
    return [figure for figure in figures if figure is not None]


def layer_curves(
    name: str, title: str, says: str, source: str, panels: Sequence[Panel], series: Sequence[Series]
) -> Figure | None:
    """Curves over the layers, a panel for each measure; None where no model has any of them."""
    panels = [panel for panel in panels if any(_of(each, panel.measure) for each in series)]
    if not panels:
        return None
    rows = []
    with sheet(1, len(panels), height=3.4, width=max(5.5, 3.6 * len(panels))) as made:
        for axes, panel in zip(made.axes[0], panels, strict=True):
            for each in series:
                for measure, values in _of(each, panel.measure).items():
                    draw_curve(axes, [m.layer[0] for m in values], values, each, measure.removeprefix(panel.measure))
                    rows += [_row(each.label, m) for m in values]
            axes.set(title=panel.title, xlabel="layer", ylabel=panel.unit)
            whole_numbers(axes)
        made.axes[0, 0].legend(fontsize=8)
    return Figure(name, title, says, source, made.bytes, "svg", _COLUMNS, rows)


def draw_curve(axes: Axes, places: Sequence[float], values: Sequence[Measured], series: Series, part: str = "") -> None:
    """One curve with its error bars."""
    part = part.strip("_")
    line, mark = _MARKS.get(part, ("--" if series.colour == INITIAL else "-", "o"))
    axes.errorbar(
        places,
        [m.mean for m in values],
        [m.std or 0.0 for m in values],
        label=f"{series.label}: {part}" if part else series.label,
        color=series.colour,
        linestyle=line,
        marker=mark,
        markersize=3.5,
        linewidth=1.6,
        elinewidth=0.9,
        capsize=2,
    )


def whole_numbers(axes: Axes) -> None:
    """Ticks of layers are numbers of layers."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _of(series: Series, measure: str) -> dict[str, list[Measured]]:
    names = [measure, *(f"{measure}_{part}" for part in _MARKS)]
    found = {name: [m for m in series.measured if m.name == name] for name in names}
    return {name: values for name, values in found.items() if values}


def _row(label: str, m: Measured) -> tuple:
    return label, m.name, m.layer[0], m.mean, m.std, m.unit, m.over


def _spectra(series: Sequence[Series]) -> Figure | None:
    """Singular values of the dictionaries: a panel for each model that has them."""
    series = [each for each in series if any(m.name == "dictionary_spectrum" for m in each.matrices)]
    if not series:
        return None
    from matplotlib import colormaps

    rows = []
    with sheet(1, len(series), height=3.4, width=max(5.5, 4.2 * len(series))) as made:
        for axes, each in zip(made.axes[0], series, strict=True):
            spectra = [m for m in each.matrices if m.name == "dictionary_spectrum"]
            for spectrum in spectra:
                layer, values = spectrum.layer[0], spectrum.values.tolist()
                shade = colormaps["viridis"](0.9 * (layer - 1) / max(len(spectra) - 1, 1))
                label = f"layer {layer}" if layer in (1, len(spectra)) else None
                axes.plot(range(1, len(values) + 1), values, color=shade, linewidth=1.3, label=label)
                rows += [(each.label, layer, place, value) for place, value in enumerate(values, start=1)]
            axes.set(title=each.label, xlabel="singular value, largest first", ylabel="size")
            axes.legend(fontsize=8)
    return Figure(
        "dictionary_spectra",
        "Dictionaries: the spectra",
        "Each line holds the singular values of one layer's dictionary, dark for the first layer and light for the "
        "last. A line that bends down early says that the layer has come to use few directions; straight is how random "
        "ones are.",
        "arXiv 2306.01129, on the dictionary D",
        made.bytes,
        "svg",
        ("model", "layer", "place", "singular value"),
        rows,
    )
