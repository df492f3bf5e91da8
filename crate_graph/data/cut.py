"""Cut the pictures of a source into square patches, losslessly, each a sample of its own."""

from __future__ import annotations

import io
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from crate_graph.data.decode import Damaged, decode_photograph
from crate_graph.data.progress import progress
from crate_graph.data.sources import Item, png, read_item, read_range
from crate_graph.errors import UserError


def cut_patches(
    items: list[Item], patch: int, *, stride: int, samples: int | None, seed: int, store: Path
) -> list[Item]:
    """Patches of `patch` x `patch` pixels at every `stride` pixels, as PNG; their key is NAME_ROW_COLUMN.

    What is left over at the right and at the bottom belongs to no patch. A picture is decoded once: its patches are
    written into the file `store`, from where the items read them.

    Args:
        samples: keep that many patches, chosen at random by `seed`; None: all.

    Raises:
        UserError: a picture is smaller than a patch, cannot be decoded, or is transparent.
    """
    grids = np.array([_grid(item, patch, stride) for item in progress(items, len(items), "pictures measured")])
    ends = np.cumsum(grids.prod(axis=1))  # patches are numbered through the pictures, row by row
    numbers = choose(int(ends[-1]), samples, seed)
    parts = np.split(numbers, np.searchsorted(numbers, ends[:-1]))  # of each picture
    cut = []
    with store.open("wb") as file:
        work = zip(items, grids.tolist(), parts, (ends - grids.prod(axis=1)).tolist(), strict=True)
        for item, (_, columns), part, first in progress(work, len(items), "pictures cut"):
            pixels = _pixels(item) if len(part) else None
            for row, column in zip(*(stride * n for n in divmod(part - first, columns)), strict=True):
                data = png(pixels[row : row + patch, column : column + patch])
                read = partial(read_range, store, file.tell(), len(data))
                file.write(data)
                cut.append(replace(item, key=f"{item.key}_{row}_{column}", extension="png", read=read))
    return cut


def _grid(item: Item, patch: int, stride: int) -> tuple[int, int]:
    """Rows and columns of patches in a picture, by the size in its header."""
    try:
        width, height = Image.open(io.BytesIO(read_item(item))).size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "unknown image format" if isinstance(error, Image.UnidentifiedImageError) else error
        raise UserError(f"sample {item.key!r} cannot be decoded ({reason}); mend or remove it") from None
    if min(width, height) < patch:
        raise UserError(
            f"sample {item.key!r}: a picture of {width} x {height} pixels is smaller than a patch of {patch}; choose a "
            f"smaller --patch, or remove it"
        )
    return (height - patch) // stride + 1, (width - patch) // stride + 1


def _pixels(item: Item) -> np.ndarray:
    """(H, W, 3) uint8, or (H, W) where it is grey."""
    try:
        values = decode_photograph(read_item(item), f"sample {item.key!r}", as_stored=True)
    except Damaged as error:
        raise UserError(f"sample {item.key!r} cannot be decoded ({error}); mend or remove it") from None
    pixels = np.rint(255 * values).astype(np.uint8)
    return pixels[..., 0] if (pixels == pixels[..., :1]).all() else pixels


def choose(count: int, samples: int | None, seed: int) -> np.ndarray:
    """`samples` of the numbers below `count`, at random by `seed`, in their order; all of them for None."""
    order = np.random.Generator(np.random.Philox(seed)).permutation(count)
    return np.sort(order[:samples])
