"""What training does to the layers: rate and sparsity over depth, of runs before and after training, side by side.

    .venv/bin/python tools/layer_curves.py runs/fashion_mnist_crate runs/fashion_mnist_vit --figure layers.svg

draws a row for each data set and a column for each measure, every run beside itself at its initialisation, on the same
held-back pictures, and prints first and last layer as a table in Markdown. Needs the extra `analysis`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from checkpoint_measures import write_output
from timm.models.vision_transformer import VisionTransformer

from crate_graph.analysis.curves import Series, draw_curve, series_of, whole_numbers
from crate_graph.analysis.figures import INITIAL, OTHER, TRAINED, check_drawing, sheet
from crate_graph.analysis.measured import Measured
from crate_graph.analysis.panels import named
from crate_graph.analysis.pictures import samples_of
from crate_graph.analysis.subject import open_subject
from crate_graph.errors import UserError
from crate_graph.models.crate import CRATE
from crate_graph.train.trained import open_run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# where attention writes: of CRATE given its one projection U_k, of a ViT given each of its three
RATES = {"CRATE": {"rc_half_step": ""}, "ViT": {f"rc_half_step_{part}": part for part in ("query", "key", "value")}}
SHARE = "nonzero_output"
WORDS = {panel.measure: f"{panel.title}, {panel.unit}" for panel in named((SHARE, *RATES["CRATE"], *RATES["ViT"]))}
FAMILIES = {"CRATE": CRATE, "ViT": VisionTransformer}
COLOURS = {"CRATE": (TRAINED, INITIAL), "ViT": (OTHER, "#dcb98f")}  # trained, initial


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
    parser.add_argument("--samples", type=positive, default=128, help="held-back pictures (default: %(default)s)")
    parser.add_argument("--unfinished", action="store_true", help="take runs that have not reached their end, too")
    parser.add_argument("--figure", type=Path, required=True, help="the SVG to write")
    args = parser.parse_args(argv)
    try:
        check_drawing()
        check_figure(args.figure)
        runs = [measured(run, args.samples, unfinished=args.unfinished) for run in args.runs]
        if len({(run.dataset, run.family) for run in runs}) < len(runs):
            raise UserError("two runs are of one family and data set; name one of each")
        write_output(args.figure, figure(runs))
    except UserError as error:
        print(f"layer_curves: error: {error}", file=sys.stderr)
        return 2
    print(table(runs))
    return 0


def positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of pictures; write 1 or more")
    return int(text)


def check_figure(file: Path) -> None:
    """Raise UserError where the figure would not be an SVG, before anything is measured."""
    if file.suffix != ".svg" or file.is_dir():
        raise UserError(f"--figure {file}: the figure is an SVG; name a file NAME.svg")
    if not os.access(file.absolute().parent, os.W_OK):
        raise UserError(f"--figure {file}: its folder is not there or cannot be written; name another")


def measured(name: str, samples: int, *, unfinished: bool) -> Run:
    subject = open_subject(name)
    family = next((family for family, kind in FAMILIES.items() if type(subject.model) is kind), None)
    if subject.task != "classification" or family is None:
        raise UserError(f"{name}: {subject.architecture} for {subject.task}; name runs of CRATE or timm's ViT")
    open_run(name, unfinished=unfinished)  # or it says what is missing
    trained, initial = series_of(subject, samples_of(subject, None, samples), None)
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
                lines.append(f"| {' | '.join((run.dataset, run.family, state, WORDS[name], *ends))} |")
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
                if axes.has_data():
                    axes.legend(fontsize=7, loc="lower left")
    return made.bytes


def draw(axes: Axes, run: Run, names: dict[str, str]) -> None:
    """Trained in the family's strong colour, as it began in its pale one."""
    trained, initial = COLOURS[run.family]
    for state, colour in (("initial", initial), ("trained", trained)):  # the later one lies above
        series = replace(getattr(run, state), colour=colour, label=f"{run.family}, {state}")
        for name, part in names.items():
            values = curve(series, name)
            draw_curve(axes, [m.layer[0] for m in values], values, series, part)


if __name__ == "__main__":
    sys.exit(main())
