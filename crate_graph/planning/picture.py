"""The table of `--scaling` as an SVG, or as a page of HTML that holds both. Nothing is loaded from outside."""

from __future__ import annotations

import math
from html import escape
from pathlib import Path
from typing import Any

from crate_graph.errors import UserError
from crate_graph.planning.report import Plan, Section, quantity

_WIDTH, _HEIGHT = 720, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 60, 50, 60
_RATE, _IDEAL, _SHARE = "#1f5fa8", "#9aa5b1", "#c2571a"


def write_picture(plan: Plan, file: Path) -> None:
    """Draw images/s, what they would be without loss, and the share of a step that waits for others.

    Raises:
        UserError: neither .svg nor .html, or the file cannot be written.
    """
    section = plan.sections[0]
    drawn = svg(plan.recipe, section.rows)
    if file.suffix == ".html":
        drawn = _page(plan, section, drawn)
    elif file.suffix != ".svg":
        raise UserError(f"--output {file}: the picture is an .svg or an .html; name such a file")
    try:
        file.write_text(drawn, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--output {file}: cannot be written: {error.strerror}; name another file") from None


def svg(title: str, rows: list[dict[str, Any]]) -> str:
    """Both axes are logarithmic, but for the share, which is on the right from 0 to 100 %."""
    worlds = [row["GPUs"] for row in rows]
    rates = [row["images/s"] for row in rows]
    ideal = [rates[0] * world / worlds[0] for world in worlds]
    low, high = math.floor(math.log10(min(rates))), math.ceil(math.log10(max(ideal)))
    across = [_LEFT + (_WIDTH - _LEFT - _RIGHT) * n / max(len(worlds) - 1, 1) for n in range(len(worlds))]
    bottom, height = _HEIGHT - _BOTTOM, _HEIGHT - _TOP - _BOTTOM

    def up(rate: float) -> float:
        return bottom - height * (math.log10(rate) - low) / max(high - low, 1)

    shapes = [_text(_WIDTH / 2, 24, title, size=14)]
    for power in range(low, high + 1):
        y = up(10.0**power)
        shapes.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}" stroke="#e3e7eb"/>')
        shapes.append(_text(_LEFT - 8, y + 4, f"{10**power:,}", anchor="end"))
    for share in (0, 50, 100):
        shapes.append(_text(_WIDTH - _RIGHT + 8, bottom - height * share / 100 + 4, f"{share} %", anchor="start"))
    shapes += [_text(x, bottom + 18, f"{world:,}") for x, world in zip(across, worlds, strict=True)]
    shapes.append(_text(_WIDTH / 2, bottom + 38, "GPUs"))
    waits = [bottom - height * row["waits for others"] for row in rows]
    shapes.append(_line(across, list(map(up, ideal)), _IDEAL, dashed=True))
    shapes.append(_line(across, waits, _SHARE))
    shapes.append(_line(across, list(map(up, rates)), _RATE))
    keys = (("images/s", _RATE), ("without loss", _IDEAL), ("share of a step that waits for others", _SHARE))
    for place, (name, color) in enumerate(keys):
        shapes.append(_text(_LEFT + 10, _TOP + 14 + 16 * place, name, anchor="start", color=color))
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" font-family="sans-serif" font-size="11">'
    )
    return "\n".join([head, f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>', *shapes, "</svg>\n"])


def _line(xs: list[float], ys: list[float], color: str, *, dashed: bool = False) -> str:
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))
    dash = ' stroke-dasharray="4 4"' if dashed else ""
    return f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"{dash}/>'


def _text(x: float, y: float, text: str, *, size: int = 11, anchor: str = "middle", color: str = "#1d2733") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{color}">{escape(text)}</text>'
    )


def _page(plan: Plan, section: Section, drawn: str) -> str:
    head = "".join(f"<th>{escape(key)}</th>" for key in section.rows[0])
    body = "".join(
        "<tr>"
        + "".join(f"<td>{escape(quantity(value, section.units.get(key, '')))}</td>" for key, value in row.items())
        + "</tr>"
        for row in section.rows
    )
    notes = "".join(f"<li>{escape(finding.text)}</li>" for finding in plan.findings)
    style = "body{font:14px sans-serif;margin:2em}td,th{padding:.2em .8em;text-align:right}"
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{escape(plan.recipe)}</title>'
        f"<style>{style}</style>\n{drawn}<table><tr>{head}</tr>{body}</table>\n"
        f"<p>{escape(section.basis)}</p><ul>{notes}</ul></html>\n"
    )
