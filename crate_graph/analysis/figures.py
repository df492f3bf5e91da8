"""A figure of the report, and how it is drawn: matplotlib without pyplot, so that nothing global changes.

matplotlib comes with the extra `analysis`; it is imported where something is drawn.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from crate_graph.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

TRAINED, INITIAL, OTHER = "#0b6e4f", "#8a8f98", "#b5651d"
WRONG = "#c5221f"  # of a caption
WIDTH = 10.0  # inches of a sheet
ACROSS = 4  # pictures beside each other
LETTERS = 32  # of a line of a caption, over one of ACROSS pictures
_GAP, _LINE = 0.09, 0.17  # inches: between pictures, and a line of their titles
PNG_DPI = 110  # of what is drawn as PNG
_STYLE = {
    "svg.hashsalt": "crate-graph",  # the same figure is the same bytes
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#5f6368",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8eaed",
    "legend.frameon": False,
    "image.interpolation": "nearest",
}


@dataclass(frozen=True)
class Figure:
    """One figure: a drawing, what it shows, and the numbers behind it."""

    name: str  # of its files
    title: str
    says: str  # two plain sentences
    source: str  # where the measure is from
    image: bytes
    format: Literal["svg", "png"]
    columns: Sequence[str]  # of the CSV
    rows: Sequence[Sequence[Any]]
    found: str = ""  # what it says here, with its numbers, in a sentence


def check_drawing() -> None:
    """Raise a UserError that names the extra where matplotlib is not installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise UserError(
            "analyze draws with matplotlib, which is not installed; pip install 'crate-graph[analysis]'"
        ) from None


class Sheet:
    """A drawing with axes in rows and columns; `bytes` holds it when the block that draws has ended."""

    def __init__(self, drawing: Drawing, axes: np.ndarray):
        self.drawing = drawing
        self.axes = axes  # (rows, columns)
        self.bytes = b""

    def save(self, format: Literal["svg", "png"]) -> None:
        buffer = io.BytesIO()
        metadata = {"Date": None} if format == "svg" else {"Software": None}
        self.drawing.savefig(buffer, format=format, dpi=PNG_DPI, metadata=metadata)
        self.bytes = buffer.getvalue()


@contextmanager
def sheet(rows: int, columns: int, *, height: float, width: float = WIDTH) -> Iterator[Sheet]:
    """Axes for curves on `width` x `height` inches, as SVG."""
    import matplotlib
    from matplotlib.figure import Figure as Drawing

    with matplotlib.rc_context(_STYLE):
        drawing = Drawing(figsize=(width, height), layout="constrained")
        made = Sheet(drawing, drawing.subplots(rows, columns, squeeze=False))
        yield made
        made.save("svg")


@contextmanager
def picture_sheet(titles: Sequence[int], columns: int, *, width: float = WIDTH) -> Iterator[Sheet]:
    """Squares for pictures on `width` inches, as PNG; over row n there is room for a title of `titles[n]` lines.

    Their places are computed here: where there are hundreds, matplotlib's own layout takes minutes.
    """
    import matplotlib
    from matplotlib.figure import Figure as Drawing

    side = width / columns - _GAP
    bands = [_GAP + _LINE * lines for lines in titles]
    height = sum(bands) + side * len(titles)
    with matplotlib.rc_context(_STYLE):
        drawing = Drawing(figsize=(width, height))
        axes = np.empty((len(titles), columns), dtype=object)
        for row, column in np.ndindex(axes.shape):
            left, top = column * (side + _GAP) + _GAP / 2, sum(bands[: row + 1]) + side * row
            place = (left / width, 1 - (top + side) / height, side / width, side / height)
            axes[row, column] = drawing.add_axes(place)
            axes[row, column].set_axis_off()
        made = Sheet(drawing, axes)
        yield made
        made.save("png")


@contextmanager
def columns_of_pictures(pictures: int, lines: int) -> Iterator[tuple[Sheet, list[np.ndarray]]]:
    """A sheet with a column of `lines` axes for each picture, ACROSS columns beside each other, then below.

    Over the first axes of a column there is room for a caption, over the others for a line.
    """
    across = min(max(pictures, 2), ACROSS)
    blocks = -(-pictures // across)
    with picture_sheet(blocks * [3, *[1] * (lines - 1)], across, width=WIDTH * across / ACROSS) as made:
        yield made, [made.axes[number // across * lines :, number % across][:lines] for number in range(pictures)]


def show(axes: Axes, picture: np.ndarray, title: str = "", colour: str = "black", **how: Any) -> None:
    """A picture (H, W, 3), (H, W, 1) or (H, W); grey from 0 to 1 unless `how` says otherwise."""
    if picture.ndim == 3 and picture.shape[2] == 1:
        picture = picture[..., 0]
    if picture.ndim == 2:
        how = {"cmap": "gray", "vmin": 0, "vmax": 1, **how}
    axes.imshow(np.clip(picture, 0, 1) if picture.ndim == 3 else picture, **how)
    placed = {"y": 1.0, "pad": 4}  # to find a place by itself takes matplotlib most of the time of a sheet
    axes.set_title(title, fontsize=9.5, fontweight="normal", loc="left", color=colour, **placed)


def show_captioned(
    axes: Axes,
    picture: np.ndarray,
    lines: Sequence[str],
    wrong: bool = False,
    letters: int = 0,
    name: str = "the picture",
) -> None:
    """A picture under its caption, red where the network is wrong.

    Its lines are cut at so many `letters`, or else are one that runs over what is beside it, above the `name`.
    """
    title = "\n".join(shortened(line, letters) for line in lines) if letters else f"{', '.join(lines)}\n{name}"
    show(axes, picture, title.replace("$", r"\$"), colour=WRONG if wrong else "black")


def shortened(text: str, letters: int) -> str:
    return text if len(text) <= letters else f"{text[: letters - 1].rstrip()}…"
