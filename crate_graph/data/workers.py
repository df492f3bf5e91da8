"""How a loader process behaves towards signals and towards the death of its parent, and how its own death is told."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from crate_graph.errors import RunFailed

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def guard_worker(worker_id: int) -> None:
    """Called first in each loader process.

    A scheduler that preempts a job signals every process of it. The trainer then still needs its batches to reach the
    step where it saves, hence a worker heeds only a SIGTERM that its parent sent (that is how multiprocessing
    ends its children). It never outlives its parent, not even one that was killed while results wait in the pipe.
    Linux takes the thread that started the worker for its parent: a thread that ends early must not be the first to
    iterate a loader.
    """
    parent = os.getppid()
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    threading.Thread(target=_obey_parent_only, args=(parent,), daemon=True).start()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above
            os._exit(0)


def _obey_parent_only(parent: int) -> None:
    while True:
        info = signal.sigwaitinfo(SIGNALS)
        if info.si_signo == signal.SIGTERM and info.si_pid == parent:
            os._exit(0)


@contextmanager
def naming_a_killed_worker() -> Iterator[None]:
    """Where a loader process of this one is killed, the block fails, wherever it is: torch tells by a signal handler.

    Raises:
        RunFailed: in the place of torch's RuntimeError.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):
            raise
        raise RunFailed(
            f"a loader process was killed ({str(error).strip(' .')}), as happens where memory runs out; start the same "
            f"command again to go on, with more memory, or with less data.workers or data.prefetch"
        ) from error
