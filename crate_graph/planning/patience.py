"""A word to who waits."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SILENT = 2.0  # seconds that nobody minds


@contextmanager
def said_if_slow(text: str) -> Iterator[None]:
    """Print `text` as one line on stderr, once, where the block takes longer than `SILENT`."""
    timer = threading.Timer(SILENT, lambda: print(text, file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
