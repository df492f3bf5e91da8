"""Progress of long work: a bar on a terminal, one line per interval elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
INTERVAL = 10.0  # seconds between two lines


def progress(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """Pass `items` on, showing on stderr how many of `total` are done."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track

        yield from track(items, total=total, description=what, console=Console(stderr=True), transient=True)
        return
    last = time.monotonic()
    for done, item in enumerate(items):
        yield item
        if time.monotonic() - last > INTERVAL:
            last = time.monotonic()
            print(f"{what}: {done + 1} of {total}", file=sys.stderr, flush=True)
