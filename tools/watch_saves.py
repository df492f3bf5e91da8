"""Tells at which moment a run begins to write a checkpoint (Linux: inotify), so that a fault can be aimed inside."""

from __future__ import annotations

import ctypes
import os
import struct
import time
from collections.abc import Sequence
from multiprocessing.connection import wait
from pathlib import Path

_IN_CREATE, _IN_MOVED_TO = 0x100, 0x80  # linux/inotify.h
_EVENT = struct.Struct("iIII")
_BEGUN, _DONE = ".writing-", "step-"  # crate_graph/checkpoint/store.py


class SaveWatch:
    """Watches a folder of checkpoints, which it makes where there is none."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        libc = ctypes.CDLL(None, use_errno=True)
        self._file = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if self._file < 0 or libc.inotify_add_watch(self._file, os.fsencode(folder), _IN_CREATE | _IN_MOVED_TO) < 0:
            raise OSError(ctypes.get_errno(), "inotify", str(folder))
        self._names: list[str] = []

    def __enter__(self) -> SaveWatch:
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._file)

    def begins(self, sentinels: Sequence[int], deadline: float) -> bool:
        """Wait until a save begins; False where all processes with these sentinels have ended before."""
        return self._wait_for(_BEGUN, sentinels, deadline)

    def ends(self, sentinels: Sequence[int], deadline: float) -> bool:
        """Wait until that save has its final name; False as in `begins`."""
        return self._wait_for(_DONE, sentinels, deadline)

    def _wait_for(self, prefix: str, sentinels: Sequence[int], deadline: float) -> bool:
        left = list(sentinels)
        while True:
            while self._names:
                if self._names.pop(0).startswith(prefix):
                    return True
            if not left:
                return False
            ready = wait([self._file, *left], timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                raise AssertionError("no save begins or ends")
            if self._file in ready:
                self._read()
            else:
                left = [sentinel for sentinel in left if sentinel not in ready]

    def _read(self) -> None:
        data, place = os.read(self._file, 1 << 16), 0
        while place < len(data):
            *_, length = _EVENT.unpack_from(data, place)
            place += _EVENT.size
            self._names.append(os.fsdecode(data[place : place + length].rstrip(b"\0")))
            place += length
