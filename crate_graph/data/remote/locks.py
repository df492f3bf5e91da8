"""Locks between the processes of a host. A lock dies with the process that holds it, however that ends."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from crate_graph.data.remote.answer import Stopped
from crate_graph.errors import RunFailed, UserError

POLL = 0.05  # seconds between two tries to get a lock


@contextmanager
def locked(
    path: Path, *, patience: float, sign_of_life: Callable[[], Any] = lambda: None, stop: threading.Event | None = None
) -> Iterator[None]:
    """Hold the lock file `path` for the length of the block; it and its folder are made.

    Args:
        patience: seconds to wait while nothing changes in `sign_of_life`, which the present holder moves.
        stop: ends the wait.

    Raises:
        RunFailed: the holder gives no sign of life. Stopped: `stop` was set. UserError: the folder has no locks.
    """
    descriptor = None
    sign, since = sign_of_life(), time.monotonic()
    while descriptor is None:
        descriptor = _try(path)
        if descriptor is not None:
            break
        if stop is not None and stop.wait(POLL):
            raise Stopped
        if stop is None:
            time.sleep(POLL)
        if (now := sign_of_life()) != sign:
            sign, since = now, time.monotonic()
        elif time.monotonic() - since > patience:
            raise RunFailed(
                f"{path.parent}: another process has held this part of the cache for {patience:.0f} s without any "
                f"progress; end it, or choose another data.cache.folder"
            )
    try:
        yield
    finally:
        unlock(descriptor)


def unlock(descriptor: int) -> None:
    """Let go of a lock and close its file. The unlocking is explicit: a forked process may have a copy of the file."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def try_lock(descriptor: int, path: Path, *, shared: bool = False) -> bool:
    """Lock an open file now, or not at all; False also where `path` no longer is that file."""
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise UserError(
                f"{path.parent}: this file system has no file locks ({error.strerror}); set data.cache.folder to a "
                f"local disk"
            ) from None
        raise
    with suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(descriptor), path.stat()):
            return True
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False


def _try(path: Path) -> int | None:
    """A descriptor that holds the lock, or None."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:  # below /proc, say, where no folder can be made
        raise UserError(
            f"{path.parent}: the cache of remote shards cannot be used ({error.strerror}); set data.cache.folder to "
            f"another folder"
        ) from None
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except FileNotFoundError:  # the folder was removed in between
        return None
    if try_lock(descriptor, path):
        return descriptor
    os.close(descriptor)
    return None
