"""Words are read one step late, so that a GPU never waits for the host."""

from __future__ import annotations

from crate_graph.engine.word import Report, Word


class LateReader:
    """Holds the newest word back; alike on all ranks, because all push and drain at the same steps."""

    def __init__(self) -> None:
        self._pending: tuple[int, Word] | None = None

    def push(self, step: int, word: Word) -> list[tuple[int, Report]]:
        """Keep this step's word, hand out the report of the step before."""
        due = self.drain()
        self._pending = (step, word)
        return due

    def drain(self) -> list[tuple[int, Report]]:
        """Everything that is still held back; waits for the device."""
        pending, self._pending = self._pending, None
        return [] if pending is None else [(pending[0], pending[1].read())]
