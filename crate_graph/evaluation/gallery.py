"""Pictures of an evaluation as one file: a row for each image, under headings."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from crate_graph.errors import UserError
from crate_graph.whole_files import check_place, write_whole

TALL = 96  # pixels: rows of small images are enlarged to at least this
GAP = 8  # pixels between rows, and between columns
HEAD = 24  # pixels: height of the headings
_LETTERS = 14  # pixels: their size, at which the longest fits over the narrowest column

_PNG = b"\x89PNG\r\n\x1a\n"  # how every PNG begins


def check_gallery(path: Path) -> None:
    """Raise a UserError unless a PNG may be written there; one that is there is replaced, nothing else ever is."""
    if path.suffix.lower() != ".png":
        raise UserError(f"--pictures {path}: is written as PNG; name a file that ends in .png")
    try:
        if os.path.lexists(path) and not (path.is_file() and _begins(path) == _PNG):
            raise UserError(f"--pictures {path}: exists and is no PNG, and only a PNG is replaced; choose another file")
        check_place(Path(os.path.realpath(path)))
    except OSError as error:
        raise _unwritable(path, error) from None


def _begins(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(len(_PNG))


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(f"--pictures {path}: cannot be written ({error.strerror or error}); choose another file")


def write_gallery(path: Path, rows: Tensor, headings: Sequence[str]) -> None:
    """Write rows (n, C, H, K W) in [0, 1] one below the other, each of K pictures, under K `headings`, as PNG.

    The file appears whole or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    scale = max(1, -(-TALL // rows.shape[2]))
    pixels = rows.clamp(0, 1).mul(255).round().byte().cpu().numpy().transpose(0, 2, 3, 1)  # (n, H, W, C)
    pixels = pixels.repeat(scale, axis=1).repeat(scale, axis=2)
    height, width = pixels.shape[1], pixels.shape[2] // len(headings)
    size = len(headings) * (width + GAP) - GAP, HEAD + len(pixels) * (height + GAP) - GAP
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_LETTERS)
    for column, heading in enumerate(headings):
        left = column * (width + GAP)
        draw.text((left + width // 2, HEAD // 2), heading, fill="black", font=font, anchor="mm")
        for number, row in enumerate(pixels):
            picture = row[:, column * width : (column + 1) * width]  # (H, W, C)
            picture = Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture)
            sheet.paste(picture, (left, HEAD + number * (height + GAP)))
    png = io.BytesIO()
    sheet.save(png, format="PNG")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(Path(os.path.realpath(path)), png.getvalue())
    except OSError as error:
        raise _unwritable(path, error) from None
