"""Layer by layer: rates, sparsity, coherence and dictionaries of a classifier, beside itself before training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crate_graph.analysis.figures import INITIAL, OTHER, TRAINED, Figure, sheet
from crate_graph.analysis.layers import Matrix, activations, matrices, weights
from crate_graph.analysis.measured import Measured
from crate_graph.analysis.panels import CHOICE, COSINE, CURVES, DECODER_CURVES, RANK, SHARE, SPECTRA, STEP, Panel
from crate_graph.analysis.pictures import Sample
from crate_graph.analysis.probe import inputs_of
from crate_graph.analysis.subject import Subject
from crate_graph.analysis.verdicts import number, verdict
from crate_graph.data.progress import progress

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = ("model", "measure", "layer", "mean", "std", "unit", "over")
_MARKS = {"query": ("--", "v"), "key": ("-.", "^"), "value": (":", "s")}  # of a ViT's three projections


@dataclass(frozen=True)
class Series:
    """The measures of one model."""

    label: str
    colour: str
    measured: list[Measured]
    matrices: list[Matrix]


def series_of(subject: Subject, samples: list[Sample], other: Subject | None) -> list[Series]:
    """Trained, initial, and the other model where there is one, on the same pictures, each by its own view of them.

    Raises:
        UserError: a model whose layers have no measures.
    """
    shown = [
        (subject, subject.model, f"{subject.architecture}, trained", TRAINED),
        (subject, subject.initial, subject.start, INITIAL),
    ]
    if other is not None:
        shown.append((other, other.model, f"{other.architecture}, to compare", OTHER))
    found = []
    for of, model, label, colour in progress(shown, len(shown), "measuring networks"):
        measured = activations(model, *inputs_of(of, samples)) + weights(model)
        found.append(Series(label, colour, measured, matrices(model)))
    return found


def curve_figures(series: Sequence[Series]) -> list[Figure]:
    """Those that the models have measures for."""
    drawn = [layer_curves(*each, series) for each in (*CURVES, *DECODER_CURVES)]
    spectra = [_spectra(name, *words, series) for name, words in SPECTRA.items()]
    return [figure for figure in (*drawn, *spectra) if figure is not None]


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
        _share_scales(made.axes[0], panels)
        lines, labels = made.axes[0, 0].get_legend_handles_labels()
        made.drawing.legend(lines, labels, loc="outside lower left", ncols=min(len(panels), 3), fontsize=9)
    return Figure(name, title, says, source, made.bytes, "svg", _COLUMNS, rows, _found(name, panels, series))


def _found(name: str, panels: Sequence[Panel], series: Sequence[Series]) -> str:
    """What the figure says here: its verdict, and the last layer's numbers of the last panel where they differ."""
    ends = [(panel, [last for each in series for last in _last(each, panel.measure)]) for panel in panels]
    apart = [end for end in ends if len({m.mean for _, m in end[1]}) > 1]
    panel, found = (apart or ends)[-1]
    judged = verdict(name, series)
    if len(found) < 2:
        return judged
    said = "; ".join(f"{label}: {number(m)}" for label, m in found)
    return f"Here, in the last layer ({panel.title}; {panel.unit}). {said}. {judged}".rstrip()


def _last(series: Series, measure: str) -> list[tuple[str, Measured]]:
    """Of the last layer, with the name of the model, and of a ViT that of the projection."""
    found = _of(series, measure).items()
    return [(", ".join((series.label, *filter(None, [n.removeprefix(measure).strip("_")]))), v[-1]) for n, v in found]


def _share_scales(row: Sequence[Axes], panels: Sequence[Panel]) -> None:
    """Panels of one unit have one scale, to be compared. Shares and cosines show all there is, ranks begin at 0."""
    for unit in {panel.unit for panel in panels}:
        alike = [axes for axes, panel in zip(row, panels, strict=True) if panel.unit == unit]
        low, high = zip(*(axes.get_ylim() for axes in alike), strict=True)
        from_zero = unit in (RANK, STEP, CHOICE)
        limits = (0, 1.05) if unit in (SHARE, COSINE) else (0, 1.1 * max(high)) if from_zero else (min(low), max(high))
        for axes in alike:
            axes.set_ylim(*limits)


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


def _spectra(measure: str, title: str, says: str, source: str, series: Sequence[Series]) -> Figure | None:
    """Singular values of the dictionaries: a panel for each model that has them."""
    series = [each for each in series if any(m.name == measure for m in each.matrices)]
    if not series:
        return None
    from matplotlib import colormaps

    rows, longest = [], 0.0
    with sheet(1, len(series), height=3.4, width=max(5.5, 4.2 * len(series))) as made:
        for axes, each in zip(made.axes[0], series, strict=True):
            spectra = [m for m in each.matrices if m.name == measure]
            for spectrum in spectra:
                layer, values = spectrum.layer[0], spectrum.values.tolist()
                shade = colormaps["viridis"](0.9 * (layer - 1) / max(len(spectra) - 1, 1))
                label = f"layer {layer}" if layer in (1, len(spectra)) else None
                axes.plot(range(1, len(values) + 1), values, color=shade, linewidth=1.3, label=label)
                rows += [(each.label, layer, place, value) for place, value in enumerate(values, start=1)]
                longest = max(longest, values[0])
            axes.set(title=each.label, xlabel="singular value, the largest first", ylabel="its size")
            axes.legend(fontsize=8)
        for axes in made.axes[0]:
            axes.set_ylim(0, 1.05 * longest)  # side by side they are compared
    name = "dictionary_spectra" if measure == "dictionary_spectrum" else measure.replace("spectrum", "spectra")
    return Figure(name, title, says, source, made.bytes, "svg", ("model", "layer", "place", "singular value"), rows)
