"""The watchdog: a run that stands still ends, with the cause on disk, so that whatever started it can start it again.

A hang in a collective shows on every rank: each waits for one that does not come. So each rank watches itself, and when
one has made no progress for too long it writes where all its threads stand to RUN/logs/rank-N.hang.txt, and what it
knows of its collectives to RUN/logs/rank-N.flight.json, waits a little so that the other ranks come to the same, and
exits with code 1.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

import torch
import torch.distributed as dist

logger = logging.getLogger(__name__)

GRACE = 5.0  # seconds from the first rank's exit to that of the others, whose connections then break
_LOOKS = 10  # in the time that is allowed
_FIRST_BEATS = 3


class Watchdog:
    """Ends this process when `beat` is not called for `seconds`; for the first beats, and in `patient` blocks, for
    `first_seconds`.

    Set-up, compilation and the first collectives take long once, hence the two times. Python's own threads are enough
    where a rank waits in a collective; where native code holds the interpreter, faulthandler's thread ends it.

    The stacks are appended to those of earlier times, since a launcher may start the run again at once.

    Args:
        folder: of the two files.
        rank: of this process.
        seconds: None watches nothing.
        first_seconds: not below `seconds`.
        settled: called once, when the first beats are over.
    """

    def __init__(
        self, folder: Path, rank: int, seconds: float | None, first_seconds: float, settled: Callable[[], None]
    ):
        self._stacks, self._flight = folder / f"rank-{rank}.hang.txt", folder / f"rank-{rank}.flight.json"
        self._rank, self._seconds, self._first_seconds, self._settled = rank, seconds, first_seconds, settled
        self._beats, self._patience = 0, 0
        self._last = time.monotonic()
        self._closed = threading.Event()
        if seconds is None:
            self._file = self._thread = None
            return
        self._file = self._stacks.open("a")  # opened now: a full or lost disk must not hide the cause
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def beat(self) -> None:
        """Something was done."""
        self._last = time.monotonic()
        self._beats += 1
        if self._beats == _FIRST_BEATS and self._seconds is not None:
            self._settled()

    @contextmanager
    def patient(self) -> Iterator[None]:
        """A block that may take as long as the start: gathering a checkpoint, say."""
        self._patience += 1
        self._last = time.monotonic()
        try:
            yield
        finally:
            self._patience -= 1
            self._last = time.monotonic()

    def close(self) -> None:
        if self._thread is None:
            return
        self._closed.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        self._file.close()
        with suppress(OSError):  # the folder may be gone, or may no longer be written to
            if not self._stacks.stat().st_size:
                self._stacks.unlink()

    @property
    def allowed(self) -> float:
        """Seconds that may now pass without a beat."""
        return self._first_seconds if self._patience or self._beats < _FIRST_BEATS else self._seconds

    def _watch(self) -> None:
        while True:
            allowed = self.allowed
            # should this thread itself come to a stop, because native code keeps the interpreter's lock
            faulthandler.dump_traceback_later(allowed + GRACE, exit=True, file=self._file)
            if self._closed.wait(min(1.0, allowed / _LOOKS)):
                return
            silent = time.monotonic() - self._last
            if silent > self.allowed:
                self._give_up(silent)

    def _give_up(self, silent: float) -> None:
        faulthandler.cancel_dump_traceback_later()
        now = datetime.now().isoformat(timespec="seconds")
        self._file.write(f"rank {self._rank}: no progress for {silent:.0f} seconds at {now}\n\n")
        self._file.flush()
        faulthandler.dump_traceback(self._file, all_threads=True)
        os.fsync(self._file.fileno())
        message = f"no progress for {silent:.0f} seconds; where every thread stands is in {self._stacks}"
        logger.error(message)
        print(f"crate-graph: failed: rank {self._rank}: {message}", file=sys.stderr, flush=True)
        self._write_flight_record()
        time.sleep(GRACE)
        os._exit(1)

    def _write_flight_record(self) -> None:
        """PyTorch's ring of recent collectives: which of them, of what size, have begun and not ended."""
        try:
            self._flight.write_text(flight_record())
        except (OSError, RuntimeError, AttributeError) as error:  # what matters more is written
            logger.error("no flight record: %s", error)


def flight_record() -> str:
    """The recent collectives of this process as JSON, of NCCL on a GPU, of gloo elsewhere."""
    trace = torch._C._distributed_c10d
    if dist.is_initialized() and dist.get_backend() == "nccl":
        return trace._dump_nccl_trace_json(includeCollectives=True, onlyActive=False).decode()
    return trace._dump_fr_trace_json(includeCollectives=True, onlyActive=False).decode()
