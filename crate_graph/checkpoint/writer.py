"""Checkpoints are written behind the training's back, from a copy on the CPU."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from pathlib import Path

from crate_graph.errors import FULL_DISK, UserError

_USERS_TO_MEND = {*FULL_DISK, errno.EACCES, errno.EPERM, errno.EROFS}


class BackgroundWriter:
    """Runs one save at a time in a thread; a new one waits for the one before."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def failed(self) -> bool:
        return self._error is not None

    def start(self, save: Callable[[], None]) -> None:
        self.join()
        if self.failed:
            return  # the run is about to stop for it, see `wait`
        self._thread = threading.Thread(target=self._run, args=(save,), name="checkpoint-writer")
        self._thread.start()

    def join(self) -> None:
        """Until nothing is being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def wait(self) -> None:
        """Until nothing is being written, and all that was written is good.

        Raises:
            UserError: a save failed for want of space or permission.
        """
        self.join()
        if self._error is not None:
            error, self._error = self._error, None
            if isinstance(error, OSError) and error.errno in _USERS_TO_MEND:
                raise UserError(
                    f"{self._folder}: the checkpoint could not be saved ({error.strerror}); the ones before it are "
                    f"whole: make room and start the same command again to go on from there"
                ) from error
            raise error

    def _run(self, save: Callable[[], None]) -> None:
        try:
            save()
        except BaseException as error:  # noqa: BLE001 - kept, and raised by `wait` in the training thread
            self._error = error
