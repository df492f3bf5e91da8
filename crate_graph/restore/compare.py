"""The comparison picture: panels side by side, and below each the same detail, enlarged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from crate_graph.restore.pictures import quantize, write_picture

PANEL = 480  # pixels: width of a panel
TALLEST = 1440  # pixels: height of a picture in a panel
GAP, TEXT = 12, 20  # pixels between panels; height of a caption
SMALLEST_DETAIL, LARGEST_DETAIL = 16, 96  # pixels: side of the detail
_BACKGROUND, _INK, _FRAME = (255, 255, 255), (0, 0, 0), (255, 200, 0)
Box = tuple[int, int, int]  # left, top, side


def write_comparison(path: Path, panels: Sequence[tuple[str, np.ndarray]], icc: bytes | None = None) -> None:
    """Write captioned pictures side by side as PNG; what is enlarged is where the first two differ most.

    panels: (caption, pixels (H, W, 1 or 3) in [0, 1]), all of one height and width.
    """
    box = busiest_box(panels[0][1], panels[1][1])
    drawn = [_panel(caption, pixels, box) for caption, pixels in panels]
    height = max(panel.height for panel in drawn)
    sheet = Image.new("RGB", (GAP + len(drawn) * (PANEL + GAP), height + 2 * GAP), _BACKGROUND)
    for number, panel in enumerate(drawn):
        sheet.paste(panel, (GAP + number * (PANEL + GAP), GAP))
    write_picture(path, np.asarray(sheet, dtype=np.float32) / 255, format="PNG", bits=8, icc=icc)


def busiest_box(before: np.ndarray, after: np.ndarray) -> Box:
    """The square with the largest sum of |after - before|; of equals the first."""
    height, width = after.shape[:2]
    side = min(height, width, max(SMALLEST_DETAIL, min(LARGEST_DETAIL, min(height, width) // 5)))
    changed = np.abs(np.clip(after, 0, 1) - np.clip(before, 0, 1)).sum(axis=2, dtype=np.float64)  # (H, W)
    total = np.zeros((height + 1, width + 1))
    total[1:, 1:] = changed.cumsum(axis=0).cumsum(axis=1)
    sums = total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]
    top, left = np.unravel_index(sums.round(6).argmax(), sums.shape)
    return int(left), int(top), side


def _panel(caption: str, pixels: np.ndarray, box: Box) -> Image.Image:
    """Caption, the whole picture with the detail framed, the detail."""
    left, top, side = box
    picture = _image(pixels)
    scale = min(PANEL / picture.width, TALLEST / picture.height)
    resampling = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    whole = picture.resize([max(1, round(side * scale)) for side in picture.size], resampling)
    frame = [round(edge * scale) for edge in (left, top, left + side, top + side)]
    ImageDraw.Draw(whole).rectangle(frame, outline=_FRAME, width=2)
    detail = picture.crop((left, top, left + side, top + side)).resize((PANEL, PANEL), Image.Resampling.NEAREST)
    panel = Image.new("RGB", (PANEL, TEXT + GAP + whole.height + GAP + PANEL), _BACKGROUND)
    ImageDraw.Draw(panel).text((0, 0), caption, fill=_INK, font=ImageFont.load_default(TEXT - 4))
    panel.paste(whole, (0, TEXT + GAP))
    panel.paste(detail, (0, TEXT + GAP + whole.height + GAP))
    return panel


def _image(pixels: np.ndarray) -> Image.Image:
    values = quantize(pixels, 8)
    return Image.fromarray(np.repeat(values, 3, axis=2) if values.shape[2] == 1 else values)
