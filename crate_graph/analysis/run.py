"""The verb `analyze`: what a trained model's layers do, as a report."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crate_graph.analysis.curves import curve_figures, series_of
from crate_graph.analysis.figures import Figure, check_drawing
from crate_graph.analysis.graphs import comparison, graph_figures, is_graph_network, restorer_series
from crate_graph.analysis.measured import Measured
from crate_graph.analysis.pictures import observations_of, samples_of
from crate_graph.analysis.report import REPORT, Report, check_output, write_report
from crate_graph.analysis.subject import Subject, open_subject
from crate_graph.errors import UserError
from crate_graph.redaction import redact
from crate_graph.tasks.build import describe

SIDE = 96  # pixels: of the pictures that a restoration network is shown, unless --size says otherwise


@dataclass(frozen=True)
class Request:
    """What is asked beside the model and the folder; see `crate-graph analyze --help`."""

    images: str | None = None
    samples: int = 32
    show: int = 4
    layer: int | None = None
    size: int | None = None
    patch: int | None = None
    compare: str | None = None
    force: bool = False


def analyze(name: str, output: Path, request: Request) -> dict[str, Any]:
    """Write the report of `name` into the folder `output`; where it is, and the numbers of the last layer.

    Raises:
        UserError: see `open_subject`, `samples_of` and `check_output`; a request that the model cannot meet.
    """
    check_drawing()
    check_output(output, request.force)
    subject = open_subject(name)
    other = None if request.compare is None else _other(subject, request.compare)
    show = _classifier if subject.task == "classification" else _restorer
    figures, measured, about = show(subject, other, request)
    report = Report(
        title=f"What {subject.architecture} does, layer by layer",
        about=about,
        facts={"analysed": redact(name), **subject.facts},
        notes=subject.notes,
        figures=figures,
        command=redact(_command(name, output, request)),
    )
    files = write_report(report, output, force=request.force)
    return {
        "report": str(output / REPORT),
        "model": subject.architecture,
        "figures": {f.name: [str(path) for path in files if path.stem == f.name] for f in figures},
        "last_layer": _last_layer(measured),
    }


def _other(subject: Subject, name: str) -> Subject:
    other = open_subject(name)
    if other.task != subject.task:
        raise UserError(
            f"--compare {name}: is for {other.task}, {subject.name} for {subject.task}; name one of the same"
        )
    return other


def _classifier(subject: Subject, other: Subject | None, request: Request) -> tuple[list[Figure], list[Measured], str]:
    samples = samples_of(subject, request.images, request.samples)
    series = series_of(subject, samples, other)
    about = f"Measured on {len(samples)} pictures that it was not trained on, after each layer, beside {subject.start}."
    return curve_figures(series), series[0].measured, about


def _restorer(subject: Subject, other: Subject | None, request: Request) -> tuple[list[Figure], list[Measured], str]:
    for option in ("layer", "patch"):
        if (value := getattr(request, option)) is not None:
            raise UserError(f"--{option} {value}: is for maps of a classifier, {subject.name} restores; leave it out")
    side = request.size or SIDE
    observations = observations_of(subject, request.images, request.samples, side)
    series = restorer_series(subject, observations, other)
    about = (
        f"Measured on {len(observations)} pictures that it was not trained on ({describe(subject.degradation)}; their "
        f"central {side} x {side} pixels), beside {subject.start}."
    )
    if is_graph_network(subject.model):
        figures = graph_figures(subject, other, series, observations, request.show)
    else:
        figures = [comparison(subject, other, observations[: request.show]), *curve_figures(series)]
    return figures, series[0].measured, about


def _last_layer(measured: Sequence[Measured]) -> dict[str, dict[str, float | None]]:
    """Of each measure the last value: of the last layer, of a graph network's last block and ADMM layer."""
    depth: dict[str, int] = {}  # a measure may be there for each ADMM layer, and for each CG step
    for each in measured:
        depth[each.name] = min(len(each.layer), depth.get(each.name, len(each.layer)))
    whole = [each for each in measured if len(each.layer) == depth[each.name]]
    last = {each.name: each for each in sorted(whole, key=lambda m: m.layer)}
    return {
        name: {"layer": list(m.layer), "mean": m.mean, "std": m.std, "unit": m.unit, "over": m.over}
        for name, m in last.items()
    }


def _command(name: str, output: Path, request: Request) -> str:
    words = ["crate-graph", "analyze", name, "--output", str(output)]
    standard = Request()
    for key in ("images", "samples", "show", "layer", "size", "patch", "compare"):
        if (value := getattr(request, key)) != getattr(standard, key):
            words += [f"--{key}", str(value)]
    return shlex.join(words)
