"""What comes of asking for a file once: its bytes, or one of three ways to fail."""

from __future__ import annotations

from typing import Protocol

CHUNK = 1 << 20  # bytes asked for at once


class Answer(Protocol):
    """The bytes of a file from `start` on. Closed by who asked, whether it was read to the end or not."""

    start: int  # byte of the file that comes first: 0 where the server began anew
    total: int | None  # bytes of the whole file, where the server says so
    tag: str | None  # strong validator of this version of the file

    def read(self) -> bytes:
        """What is there next, at most CHUNK bytes; empty at the end. Raises Broken."""

    def close(self) -> None: ...


class Broken(Exception):
    """The network or the server failed in a way that may pass: worth another try."""

    def __init__(self, reason: str, after: float = 0.0):
        super().__init__(reason)
        self.after = after  # seconds that the server asks to wait


class Replaced(Broken):
    """What is there now does not go on where the file broke off: from its start, then."""


class Changed(Exception):
    """The file is whole, but not the one that was asked for."""


class Refused(Exception):
    """A definite no: another try would fail alike. The text names the remedy."""


class NotThere(Refused):
    """There is no such file."""


class Stopped(Exception):
    """Nobody wants the file any more."""
