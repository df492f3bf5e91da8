"""Where the results of a set of pictures go, found before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from crate_graph.errors import UserError
from crate_graph.restore.pictures import FORMATS

_ENDINGS = {"PNG": (".png",), "TIFF": (".tif", ".tiff"), "JPEG": (".jpg", ".jpeg")}


@dataclass(frozen=True)
class Outputs:
    """The files of one picture."""

    picture: Path
    format: str
    comparison: Path | None


def plan_outputs(
    pictures: Sequence[tuple[Path, str]], folder: Path, *, compare: bool, format: str | None, force: bool
) -> list[Outputs]:
    """The files that the pictures, given as (path, format), are written to; none of them is written yet.

    Raises:
        UserError: two pictures of one name, a file that exists (unless `force`), one that would replace its own source.
    """
    outputs = [_outputs_of(path, format or own, folder, compare) for path, own in pictures]
    sources = {path.resolve() for path, _ in pictures}
    taken: dict[Path, Path] = {}
    for (path, _), files in zip(pictures, outputs, strict=True):
        for file in filter(None, (files.picture, files.comparison)):
            if file in taken:
                raise UserError(f"{taken[file]} and {path} would both be written to {file}; restore them one by one")
            taken[file] = path
            if file.resolve() in sources:
                raise UserError(f"{file}: is one of the pictures; choose another --output")
            if file.is_dir() or (file.exists() and not force):
                raise UserError(f"{file}: exists already; add --force to replace it, or choose another --output")
    return outputs


def _outputs_of(path: Path, format: str, folder: Path, compare: bool) -> Outputs:
    ending = path.suffix if path.suffix.lower() in _ENDINGS[format] else FORMATS[format]
    return Outputs(folder / f"{path.stem}{ending}", format, folder / f"{path.stem}.compare.png" if compare else None)
