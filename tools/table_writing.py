"""Tables of numbers that were measured more than once, as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import re
import statistics
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (n - 1 in the denominator); of one value there is no deviation."""

    mean: float
    std: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None)


@dataclass(frozen=True)
class Column:
    """`name` is for CSV, where values stand as they are; `head` is for readers, who see them times `scale`."""

    name: str
    head: str
    digits: int = 2  # after the point
    scale: float = 1.0

    def shown(self, number: float) -> str:
        return f"{number * self.scale:,.{self.digits}f}"


@dataclass(frozen=True)
class Missing:
    """A value that there is not, and why."""

    why: str


Value = str | int | float | Spread | Missing


@dataclass
class Table:
    """Rows of values by the columns' names, and what is said below them."""

    columns: list[Column]
    rows: list[dict[str, Value]]
    notes: list[str] = field(default_factory=list)
    caption: str = ""


def markdown(table: Table) -> str:
    marks = _marks(table)
    rows = [[_text(row[c.name], c, marks, " ± ", "-", " [{}]") for c in table.columns] for row in table.rows]
    below = [*table.notes, *(f"[{mark}] {why}" for why, mark in marks.items())]
    return markdown_lines([[c.head for c in table.columns], *rows]) + "".join(f"\n\n{note}" for note in below) + "\n"


def markdown_lines(rows: Iterable[Sequence[str]]) -> str:
    """The first row is the head."""
    head, *others = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *others))


def csv_text(table: Table) -> str:
    """Mean and standard deviation have columns of their own; what is missing is empty, and `notes` says why."""
    file = io.StringIO()
    spread = {c.name for c in table.columns if any(isinstance(row[c.name], Spread) for row in table.rows)}
    heads = [(c.name, [f"{c.name}_mean", f"{c.name}_std"] if c.name in spread else [c.name]) for c in table.columns]
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*(name for _, names in heads for name in names), "notes"])
    for row in table.rows:
        cells = [cell for name, names in heads for cell in _raw(row[name], len(names))]
        why = [f"{name}: {value.why}" for name, value in row.items() if isinstance(value, Missing)]
        writer.writerow([*cells, "; ".join(why)])
    return file.getvalue()


def latex(table: Table) -> str:
    """A `table` for the package booktabs, with the notes below it."""
    marks = _marks(table)

    def cells(row: dict[str, Value]) -> list[str]:
        return [_latex_cell(row[c.name], c, marks) for c in table.columns]

    lines = [_latex_text(note) for note in table.notes]
    lines += [rf"\textsuperscript{{{mark}}}~{_latex_text(why)}" for why, mark in marks.items()]
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            *([rf"\caption{{{_latex_text(table.caption)}}}"] if table.caption else []),
            rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}",
            r"\toprule",
            " & ".join(_latex_head(c.head) for c in table.columns) + r" \\",
            r"\midrule",
            *(" & ".join(cells(row)) + r" \\" for row in table.rows),
            r"\bottomrule",
            r"\end{tabular}",
            *([r"\par\smallskip", r"\begin{minipage}{\linewidth}\footnotesize"] if lines else []),
            *(rf"{line}\par" for line in lines),
            *([r"\end{minipage}"] if lines else []),
            r"\end{table}",
            "",
        ]
    )


def _marks(table: Table) -> dict[str, str]:
    """Each reason once, in the order of the table: a, b, ..., z, aa, ..."""
    values = [row[c.name] for row in table.rows for c in table.columns]
    reasons = list(dict.fromkeys(value.why for value in values if isinstance(value, Missing)))
    return {why: chr(ord("a") + n % 26) * (1 + n // 26) for n, why in enumerate(reasons)}


def _text(value: Value, column: Column, marks: dict[str, str], plus_minus: str, dash: str, mark: str) -> str:
    if isinstance(value, Missing):
        return dash + mark.format(marks[value.why])
    if isinstance(value, Spread):
        std = "" if value.std is None else plus_minus + column.shown(value.std)
        return column.shown(value.mean) + std
    return value if isinstance(value, str) else column.shown(value)


def _latex_cell(value: Value, column: Column, marks: dict[str, str]) -> str:
    if isinstance(value, str):
        return _latex_text(value)
    text = _text(value, column, marks, r" $\pm$ ", "--", r"\textsuperscript{{{}}}")
    return re.sub(r"^-(?=\d)", "$-$", text)


def _latex_head(head: str) -> str:
    """In short lines, so that many columns fit on a page."""
    lines = [_latex_text(line) for line in textwrap.wrap(head, _HEAD, break_long_words=False)]
    return lines[0] if len(lines) == 1 else r"\shortstack{" + r" \\ ".join(lines) + "}"


def _raw(value: Value, width: int) -> list[object]:
    if isinstance(value, Missing):
        return [""] * width
    if isinstance(value, Spread):
        return [value.mean, "" if value.std is None else value.std]
    return [value, *[""] * (width - 1)]


_HEAD = 14  # characters of a line of a head
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "−": "$-$",
    "‖": r"$\Vert$",
    "ᶜ": r"\textsuperscript{c}",
    "²": r"\textsuperscript{2}",
    "₀": r"\textsubscript{0}",
    **{
        letter: rf"$\{name}$" for letter, name in zip("αβγηλ", ["alpha", "beta", "gamma", "eta", "lambda"], strict=True)
    },
    **{character: f"\\{character}" for character in "{}$&#%_"},
}


def _latex_text(text: str) -> str:
    return re.sub("|".join(map(re.escape, _LATEX)), lambda match: _LATEX[match[0]], text)
