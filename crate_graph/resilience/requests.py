"""What is asked of a running job from outside: by signal, or by a switch file in the run folder.

A request reaches one process at some moment; the word of the next step (`crate_graph.engine.word`) carries it to all of
them, so that every rank saves or stops at the same step.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
GRACE = 5.0  # seconds in which a further signal says the same: torchrun passes on what the scheduler sends to all


class Requests:
    """Collects requests for one process.

    Ctrl-C (SIGINT), SIGTERM and SIGUSR1 ask for a save and a stop; a further signal, seconds later, ends the
    process at once.
    The file `save-now` asks for a save, `stop-now` for a save and a stop; the main process looks for them and removes
    them. From `deadline` on, a moment of `time.monotonic`, a save and a stop are asked for too.
    """

    def __init__(self, run_dir: Path, is_main: bool, deadline: float | None = None):
        self._deadline = deadline
        self._switches = (run_dir / "save-now", run_dir / "stop-now") if is_main else None
        self._signalled_at: float | None = None
        self._stop = False
        self.asked_by: str | None = None  # what first asked this process to stop
        self.switched_off = False  # by `stop-now`, as the main process knows
        self._previous = {number: signal.signal(number, self._on_signal) for number in STOP_SIGNALS}

    def _on_signal(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if self._signalled_at is not None and now - self._signalled_at > GRACE:
            said = f"crate-graph: a further {signal.Signals(number).name} ends this process at once, without a save\n"
            os.write(2, said.encode())  # `print` may be what the signal interrupts
            os._exit(128 + number)  # the last checkpoint is whole: it was renamed into place or it is not there
        self._signalled_at = self._signalled_at or now
        self._stop_for(signal.Signals(number).name)

    def _stop_for(self, cause: str) -> None:
        self._stop = True
        self.asked_by = self.asked_by or cause

    def poll(self) -> tuple[bool, bool]:
        """(save?, stop?) as this process knows it now."""
        save = False
        if self._switches:
            save, stop = (_take(path) for path in self._switches)
            if stop:
                self.switched_off = True
                self._stop_for("stop-now")
        if self._deadline is not None and time.monotonic() >= self._deadline:
            self._stop_for("--max-duration")
        return save, self._stop

    def close(self) -> None:
        """Leave signals as they were. After one that asked for the stop SIGTERM and SIGUSR1 are ignored: who sends them
        twice wants what is done already, an orderly end."""
        for number, handler in self._previous.items():
            asked = self._signalled_at is not None and number != signal.SIGINT
            signal.signal(number, signal.SIG_IGN if asked else handler)


def _take(path: Path) -> bool:
    if not path.is_file():
        return False
    with suppress(OSError):  # of a disk that can no longer be written to: the save will say so
        path.unlink()
    return True
