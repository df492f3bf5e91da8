"""Pictures of an evaluation as one file: a row for each image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from crate_graph.errors import UserError

TALL = 96  # pixels: rows of small images are enlarged to at least this
GAP = 8  # pixels between rows


def write_gallery(path: Path, rows: Tensor) -> None:
    """Write rows (n, C, H, W) in [0, 1] one below the other, as PNG.

    Raises:
        UserError: the file cannot be written.
    """
    scale = max(1, -(-TALL // rows.shape[2]))
    pixels = rows.clamp(0, 1).mul(255).round().byte().cpu().numpy().transpose(0, 2, 3, 1)  # (n, H, W, C)
    pixels = pixels.repeat(scale, axis=1).repeat(scale, axis=2)
    gap = np.full((GAP, *pixels.shape[2:]), 255, dtype=np.uint8)
    sheet = np.concatenate([part for row in pixels for part in (row, gap)][:-1])
    sheet = sheet[..., 0] if sheet.shape[2] == 1 else sheet
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(sheet).save(path, format="PNG")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); choose another --pictures") from None
