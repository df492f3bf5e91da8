"""The verb `analyze`: what a trained model's layers do, as a report."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crate_graph.analysis.curves import curve_figures, series_of
from crate_graph.analysis.figures import Figure, check_drawing
from crate_graph.analysis.measured import Measured
from crate_graph.analysis.pictures import samples_of
from crate_graph.analysis.report import REPORT, Report, check_output, write_report
from crate_graph.analysis.subject import Subject, open_subject
from crate_graph.errors import UserError
from crate_graph.redaction import redact


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
    figures, measured, about = _classifier(subject, other, request)
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


def _last_layer(measured: Sequence[Measured]) -> dict[str, dict[str, float | None]]:
    """Of each measure the last value: of the last layer, of a graph network's last block and ADMM layer."""
    last: dict[str, Measured] = {}
    for each in measured:
        if each.name not in last or each.layer >= last[each.name].layer:
            last[each.name] = each
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
