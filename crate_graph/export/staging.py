"""An output that appears whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from crate_graph.errors import FULL_DISK, UserError
from crate_graph.whole_files import check_place


def check_writable(output: Path) -> None:
    """Raise a UserError unless `staged` can write beside `output`: asked before work that takes long."""
    try:
        check_place(output)
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror}); choose another --output") from None


@contextmanager
def staged(output: Path, *, replace: bool = True) -> Iterator[Path]:
    """Give a path to write to (file or folder, in a hidden folder beside `output`); rename it to `output` at the end.

    On any exception the hidden folder is removed and `output` does not appear.

    Args:
        replace: False keeps a file that appeared there in the meantime. A folder that holds something is always kept.

    Raises:
        UserError: the folder of `output` cannot be written; `output` is there and is not to be replaced.
        OSError: for a full disk it names `output`, where it names no file.
    """
    output = output.absolute()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        hidden = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".partial", dir=output.parent))
    except OSError as error:
        raise UserError(f"cannot write to {output.parent} ({error.strerror}); choose another --output") from None
    try:
        path = hidden / "output" / output.name
        path.parent.mkdir()
        yield path
        _open_to_the_umask(path, mode=path.parent.stat().st_mode)
        if path.is_dir():
            _place_folder(path, output)
        elif replace:
            os.rename(path, output)
        else:
            _place(path, output)
    except OSError as error:
        if error.errno in FULL_DISK and error.filename is None:
            error.filename = str(output)
        raise
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _place(file: Path, output: Path) -> None:
    try:
        os.link(file, output)
    except FileExistsError:
        raise UserError(
            f"{output}: has appeared since the start, another command may be writing there; add --force to replace it, "
            f"or choose another --output"
        ) from None
    except OSError:  # a file system without hard links
        os.rename(file, output)


def _place_folder(folder: Path, output: Path) -> None:
    try:
        os.rename(folder, output)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise UserError(
            f"{output}: has appeared since the start, another command may be writing there; choose another --output"
        ) from None


def _open_to_the_umask(path: Path, mode: int) -> None:
    """safetensors writes files that only their owner may read; give files what `mode` gives to a plain new folder."""
    for file in [path, *path.rglob("*")]:
        if file.is_file():
            file.chmod(mode & 0o666)
