"""What training does to the layers: rate and sparsity over depth, of runs before and after training, side by side.

    .venv/bin/python tools/layer_curves.py runs/fashion_mnist_crate runs/fashion_mnist_vit --figure layers.svg

draws a row for each data set and a column for each measure, every run beside itself at its initialisation, on the same
held-back pictures, and prints first and last layer as a table in Markdown. Needs the extra `analysis`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from crate_graph.analysis.curves import Series, draw_curve, series_of, whole_numbers
from crate_graph.analysis.figures import OTHER, TRAINED, check_drawing, sheet
from crate_graph.analysis.layers import has_measures
from crate_graph.analysis.measured import Measured
from crate_graph.analysis.pictures import samples_of
from crate_graph.analysis.subject import open_subject
from crate_graph.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# where attention writes: of CRATE given its one projection U_k, of a ViT given each of its three
RATES = {"CRATE": {"rc_half_step": ""}, "ViT": {f"rc_half_step_{part}": part for part in ("query", "key", "value")}}
SHARE = "nonzero_output"
COLOURS = {"CRATE": TRAINED, "ViT": OTHER}


@dataclass(frozen=True)
class Run:
    """A run's measures after training and at its initialisation."""

    dataset: str
    family: str  # a key of RATES
    trained: Series
    initial: Series


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="run folders of CRATE and of timm's ViT")
    parser.add_argument("--samples", type=int, default=128, help="held-back pictures (default: %(default)s)")
    parser.add_argument("--figure", type=Path, required=True, help="the SVG to write")
    args = parser.parse_args(argv)
    try:
        check_drawing()
        runs = [measured(run, args.samples) for run in args.runs]
        if len({(run.dataset, run.family) for run in runs}) < len(runs):
            raise UserError("two runs are of one family and data set; name one of each")
    except UserError as error:
        print(f"layer_curves: error: {error}", file=sys.stderr)
        return 2
    print(table(runs))
    args.figure.write_bytes(figure(runs))
    return 0


def measured(name: str, samples: int) -> Run:
    subject = open_subject(name)
    if subject.task != "classification" or not has_measures(subject.model):
        raise UserError(f"{name}: {subject.architecture} for {subject.task}; name runs of CRATE or timm's ViT")
    trained, initial = series_of(subject, samples_of(subject, None, samples), None)
    family = "CRATE" if curve(trained, "rc_half_step") else "ViT"
    return Run(subject.facts["trained on"], family, trained, initial)


def curve(series: Series, name: str) -> list[Measured]:
    """One measure, layer by layer."""
    return [m for m in series.measured if m.name == name]


def table(runs: Sequence[Run]) -> str:
    lines = ["| data | model | state | measure | first layer | last layer |", "|---|---|---|---|---|---|"]
    for run in runs:
        for name in (*RATES[run.family], SHARE):
            for state, series in (("initial", run.initial), ("trained", run.trained)):
                values = curve(series, name)
                ends = [f"{m.mean:.3f} ± {m.std:.3f}" for m in (values[0], values[-1])]
                lines.append(f"| {' | '.join((run.dataset, run.family, state, f'`{name}`', *ends))} |")
    return "\n".join(lines)


def figure(runs: Sequence[Run]) -> bytes:
    """A row for each data set; R^c of each family in a column of its own, then the share of entries that are not 0."""
    datasets = list(dict.fromkeys(run.dataset for run in runs))
    titles = {family: f"{family}: Rᶜ after attention" for family in RATES}
    with sheet(len(datasets), len(RATES) + 1, height=3.1 * len(datasets)) as made:
        for row, dataset in zip(made.axes, datasets, strict=True):
            for run in (run for run in runs if run.dataset == dataset):
                draw(row[list(RATES).index(run.family)], run, RATES[run.family])
                draw(row[-1], run, {SHARE: ""})
            for axes, title in zip(row, (*titles.values(), "after the layer: entries not 0"), strict=True):
                axes.set(title=title, xlabel=f"layer ({dataset})", ylabel="nats" if "Rᶜ" in title else "share")
                whole_numbers(axes)
                axes.set_ylim(bottom=0)
                axes.legend(fontsize=7, loc="lower left")
    return made.bytes


def draw(axes: Axes, run: Run, names: dict[str, str]) -> None:
    """Trained in the family's colour; as it began in grey and dashed."""
    for state, series in (("trained", replace(run.trained, colour=COLOURS[run.family])), ("initial", run.initial)):
        series = replace(series, label=f"{run.family}, {state}")
        for name, part in names.items():
            values = curve(series, name)
            draw_curve(axes, [m.layer[0] for m in values], values, series, part)


if __name__ == "__main__":
    sys.exit(main())
