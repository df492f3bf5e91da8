"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path


def write_whole(file: Path, content: str | bytes, *, mode: int | None = None) -> None:
    """Write `content`, text as UTF-8, under a hidden name beside `file` and rename it; what was there is replaced.

    On any exception the hidden file is removed, and `file` is what it was.

    Args:
        mode: permissions of the file; None: those of any new file.

    Raises:
        OSError: it cannot be written.
    """
    hidden = file.with_name(f".{file.name}.part")
    try:
        hidden.write_bytes(content.encode() if isinstance(content, str) else content)
        if mode is not None:
            hidden.chmod(mode)
        hidden.replace(file)
    except BaseException:
        with suppress(OSError):
            hidden.unlink()
        raise


def check_place(path: Path) -> None:
    """Try whether a file or a folder could be made at `path`, with the folders above it that are not there yet.

    Nothing is left behind. Whether something stands at `path` already is not asked.

    Raises:
        OSError: it could not.
    """
    path = path.absolute()
    folder = nearest(path.parent)
    with tempfile.TemporaryFile(dir=folder):
        pass
    for name in path.relative_to(folder).parts:
        with suppress(FileNotFoundError):
            os.lstat(folder / f".{name}.--------.partial")  # as long as a hidden name beside it can become


def nearest(path: Path) -> Path:
    """`path`, or else the nearest above it that exists, if only as a link that leads nowhere."""
    while not os.path.lexists(path) and path != path.parent:
        path = path.parent
    return path
