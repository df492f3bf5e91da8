"""Files that appear whole or not at all."""

from __future__ import annotations

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
