"""The part of a shard that has come so far: kept across a broken connection, and across the death of who fetched it."""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
from pathlib import Path

from crate_graph.data.remote.answer import CHUNK, Stopped


class PartialFile:
    """`path` holds the bytes; beside it, a file says which version of the shard they are of.

    One process at a time uses it: the one that holds the lock of the entry.
    """

    def __init__(self, path: Path):
        self.path = path
        self._tag_path = path.with_suffix(".tag")
        self._file = None
        self._size = 0

    def size(self) -> int:
        if self._file is not None:
            return self._size
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def tag(self) -> str | None:
        """Of the version that the bytes are of; None: unknown, so nothing can be put behind them."""
        try:
            return self._tag_path.read_text(encoding="ascii") or None
        except (OSError, UnicodeDecodeError):
            return None

    def begin(self, start: int, tag: str | None) -> None:
        """Open for the bytes from `start` on; what is there behind it goes. The tag is on disk before any byte."""
        if start == 0:
            self.discard()
            self.path.touch()
            if tag and tag.isascii():
                temporary = self._tag_path.with_suffix(".tag.new")
                temporary.write_text(tag, encoding="ascii")
                temporary.replace(self._tag_path)
        self._file = self.path.open("r+b", buffering=0)
        self._file.truncate(start)
        self._file.seek(start)
        self._size = start

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]
        self._size += len(data)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def sha256(self, stop: threading.Event) -> str:
        digest = hashlib.sha256()
        with self.path.open("rb", buffering=0) as file:
            while data := file.read(CHUNK):
                if stop.is_set():
                    raise Stopped
                digest.update(data)
        return digest.hexdigest()

    def discard(self) -> None:
        self.close()
        self.path.unlink(missing_ok=True)
        self._tag_path.unlink(missing_ok=True)

    def finish(self, path: Path) -> int:
        """Give the whole file its final name, and return a descriptor that holds it there (a shared lock)."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        os.fsync(descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        self.path.replace(path)
        self._tag_path.unlink(missing_ok=True)
        return descriptor
