"""The report: one HTML file that needs nothing else, and beside it each figure with its numbers."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import re
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from crate_graph.analysis.figures import PNG_DPI, Figure
from crate_graph.analysis.pictures import readable
from crate_graph.errors import UserError
from crate_graph.export.staging import check_writable, staged

REPORT, CONTENTS, FIGURES = "report.html", "contents.json", "figures"
_NARROW = 6.0  # inches
_FORMAT = "crate-graph-report/1"


@dataclass(frozen=True)
class Report:
    """What the page says around the figures."""

    title: str
    about: str
    facts: dict[str, Any]
    of: str  # of which pictures the numbers among the facts are
    compared: dict[str, Any]  # the facts of a second model, if any
    notes: Sequence[str]
    figures: Sequence[Figure]
    words: dict[str, str]  # what a reader must know, and what it means
    command: str


def check_output(output: Path, force: bool) -> None:
    """Raise a UserError unless a report may be written there: nothing is there, or with `force` an earlier report.

    Files that no report of ours wrote are never replaced. A link to a folder stands for that folder.
    """
    if os.path.lexists(output) and not output.is_dir():
        what = "is a file" if output.exists() else "is a link that leads nowhere"
        raise UserError(f"{output}: {what}; choose another --output")
    check_writable(_real(output))
    if not output.exists() or not any(output.iterdir()):
        return
    written = _contents(output)
    if written is None:
        raise UserError(f"{output}: holds other files than a report; choose another --output")
    if not force:
        raise UserError(f"{output}: holds a report already; add --force to replace it, or choose another --output")
    found = {path.relative_to(output).as_posix() for path in output.rglob("*") if not path.is_dir()}
    if foreign := sorted(found - written):
        raise UserError(f"{output / foreign[0]}: is no part of the report there; move it, or choose another --output")


def write_report(report: Report, output: Path, *, force: bool) -> list[Path]:
    """All files of the report, which appear at once.

    Raises:
        UserError: see `check_output`; a folder that cannot be written.
    """
    files: dict[str, bytes] = {REPORT: readable(_page(report)).encode()}
    for figure in report.figures:
        files[f"{FIGURES}/{figure.name}.{figure.format}"] = figure.image
        files[f"{FIGURES}/{figure.name}.csv"] = readable(_csv(figure)).encode()
    files[CONTENTS] = json.dumps({"format": _FORMAT, "files": sorted([*files, CONTENTS])}, indent=1).encode()
    place = _real(output)
    with staged(place) as folder:
        (folder / FIGURES).mkdir(parents=True)
        for name, data in files.items():
            (folder / name).write_bytes(data)
        check_output(output, force)
        with suppress(FileNotFoundError):  # another command may be replacing it, too
            if any(place.iterdir()):
                os.rename(place, folder.parent / "replaced")
    return [output / name for name in files]


def _real(output: Path) -> Path:
    return Path(os.path.realpath(output))


def _contents(output: Path) -> set[str] | None:
    """The files of the report that lies there; None where there is no report."""
    try:
        contents = json.loads((output / CONTENTS).read_text(encoding="utf-8"))
        return set(contents["files"]) if contents["format"] == _FORMAT else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _page(report: Report) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("report.html.jinja").render(
        report=report, drawn=_drawn, wide=_is_wide, folder=FIGURES
    )


def _drawn(figure: Figure) -> Markup:
    """The drawing as an element of the page."""
    kind = "wide" if _is_wide(figure) else "narrow"
    if figure.format == "png":
        data = base64.b64encode(figure.image).decode()
        return Markup('<img class="{}" alt="{}" src="data:image/png;base64,{}">').format(
            kind, figure.title, Markup(data)
        )
    drawing = figure.image.decode()
    drawing = drawing[drawing.index("<svg") :]  # without the XML declaration
    return Markup(
        drawing.replace("<svg ", f'<svg class="{kind}" role="img" aria-label="{Markup.escape(figure.title)}" ', 1)
    )


def _is_wide(figure: Figure) -> bool:
    """Whether its words are too small to be read where it is made as narrow as the window of a telephone."""
    if figure.format == "png":
        return struct.unpack(">I", figure.image[16:20])[0] > _NARROW * PNG_DPI
    return float(re.search(r'<svg [^>]*?width="([\d.]+)pt"', figure.image.decode())[1]) > _NARROW * 72


def _csv(figure: Figure) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(figure.columns)
    writer.writerows([[_cell(value) for value in row] for row in figure.rows])
    return text.getvalue()


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    return f"{value:.7g}" if isinstance(value, float) else value
