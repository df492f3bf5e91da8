"""A plan as text and as JSON: sections of figures, each with what it rests on, and tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from crate_graph.planning.contradictions import Finding


class Figure(NamedTuple):
    """One number of a plan. `value` None is unknown; `basis` says where it comes from, or what it assumes."""

    name: str
    value: float | int | str | None
    unit: str
    basis: str


@dataclass
class Section:
    """Figures, and rows of a table that share their keys; `units` gives the unit of each column."""

    title: str
    figures: list[Figure] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    units: dict[str, str] = field(default_factory=dict)
    basis: str = ""  # of the table


@dataclass
class Plan:
    recipe: str
    sections: list[Section]
    findings: list[Finding]
    good: str = "nothing contradicts"  # what is said where nothing was found

    @property
    def runs(self) -> bool:
        """Whether nothing stops the run."""
        return not any(finding.stops for finding in self.findings)

    def figure(self, section: str, name: str) -> Figure:
        """One figure by its names. Raises KeyError."""
        for part in self.sections:
            for figure in part.figures:
                if (part.title, figure.name) == (section, name):
                    return figure
        raise KeyError((section, name))


def as_json(plan: Plan) -> dict[str, Any]:
    """Sections by title; figures by name as {value, unit, basis}; sizes in bytes, times in seconds."""
    sections = {}
    for section in plan.sections:
        entry: dict[str, Any] = {
            figure.name: {"value": figure.value, "unit": figure.unit, "basis": figure.basis}
            for figure in section.figures
        }
        if section.rows:
            entry["table"] = {"rows": section.rows, "units": section.units, "basis": section.basis}
        sections[section.title] = entry
    findings = [{"stops": finding.stops, "text": finding.text} for finding in plan.findings]
    return {"recipe": plan.recipe, "runs": plan.runs, **sections, "findings": findings}


def as_text(plan: Plan) -> str:
    """Sections one after the other, then what was found."""
    blocks = [plan.recipe]
    for section in plan.sections:
        lines = [section.title]
        if section.figures:
            cells = [[figure.name, quantity(figure.value, figure.unit), figure.basis] for figure in section.figures]
            lines += _columns(cells)
        if section.rows:
            lines += _table(section)
        blocks.append("\n".join(lines))
    blocks.append("\n".join(_verdict(plan)))
    return "\n\n".join(blocks)


def quantity(value: float | int | str | None, unit: str) -> str:
    """A number as people read it."""
    if value is None:
        return "unknown"
    if isinstance(value, str):
        return value
    formats: dict[str, Callable[[float], str]] = {
        "B": _bytes,
        "B/s": lambda x: f"{x / 1e6:,.1f} MB/s",
        "s": _time,
        "FLOP": lambda x: _scaled(x, "FLOP"),
        "FLOP/s": lambda x: _scaled(x, "FLOP/s"),
        "%": lambda x: f"{100 * x:.1f} %",
        "images/s": lambda x: f"{x:,.0f} images/s",
        "ratio": lambda x: f"{x:.3f}",
    }
    if unit in formats:
        return formats[unit](value)
    number = f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
    return f"{number} {unit}".strip()


def _verdict(plan: Plan) -> list[str]:
    if not plan.findings:
        return [plan.good]
    stops = sum(finding.stops for finding in plan.findings)
    head = f"{stops} of these stop the run" if stops else "it runs; worth a look"
    ordered = sorted(plan.findings, key=lambda finding: not finding.stops)
    return [head, *(f"  {'STOPS' if finding.stops else 'note '}  {finding.text}" for finding in ordered)]


def _table(section: Section) -> list[str]:
    head = list(section.rows[0])
    cells = [head]
    for row in section.rows:
        cells.append([quantity(row[key], section.units.get(key, "")) for key in head])
    lines = _columns(cells)
    return [*lines, f"  ({section.basis})"] if section.basis else lines


def _columns(cells: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
    return [f"  {line}".rstrip() for line in lines]


def _bytes(value: float) -> str:
    for unit, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value >= size:
            return f"{value / size:,.2f} {unit}"
    return f"{value:,.0f} B"


def _time(value: float) -> str:
    if value >= 2 * 86400:
        return f"{value / 86400:,.1f} days"
    if value >= 2 * 3600:
        return f"{value / 3600:,.1f} h"
    if value >= 120:
        return f"{value / 60:,.1f} min"
    return f"{value:,.2f} s" if value >= 1 else f"{1e3 * value:,.2f} ms"


def _scaled(value: float, unit: str) -> str:
    for prefix, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if value >= size:
            return f"{value / size:,.2f} {prefix}{unit}"
    return f"{value:,.0f} {unit}"
