"""The shards that one reader holds: those in use, and those that it will need next, fetched behind its back."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from crate_graph.data.remote.answer import Stopped
from crate_graph.data.remote.cache import release
from crate_graph.errors import RunFailed, UserError

logger = logging.getLogger(__name__)


class ShardHolder:
    """Shards by number, each held in the cache while it is wanted.

    Args:
        shards: of a split, all at an address.

    Who reads says with `want` what is needed, soonest first; without that, shards are expected in their order. The
    threads that fetch begin with the first call, so that a loader may be copied to another process before.
    """

    def __init__(self, shards: Sequence):
        self._shards = shards
        self._settings = shards[0].path.cache.remote
        self._change = threading.Condition()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._planned = False  # whether the reader says what it needs
        self._wanted: list[int] = []
        self._held: dict[int, int] = {}  # number -> descriptor
        self._fetching: set[int] = set()
        self._failed: dict[int, UserError | RunFailed] = {}
        self._put_off: set[int] = set()  # not ahead: there is no room, or it failed; the reader will ask itself
        self._told = False  # whether the log says that there is no room

    @property
    def read_ahead(self) -> int:
        return self._settings.read_ahead

    def want(self, numbers: Sequence[int]) -> None:
        """Hold these shards, soonest needed first, and let go of all others."""
        self._planned = True
        self._want(numbers)

    def _want(self, numbers: Sequence[int]) -> None:
        with self._change:
            if list(numbers) == self._wanted:
                return
            self._wanted = list(numbers)
            self._put_off.clear()
            for number in self._held.keys() - set(self._wanted):
                release(self._held.pop(number))
            if self._settings.read_ahead and not self._threads:
                self._start()
            self._change.notify_all()

    def descriptor(self, number: int) -> int:
        """An open file of a shard; it is fetched now where it is not here yet. Valid until it is no longer wanted.

        Raises:
            RunFailed, UserError: see `ShardCache.hold`.
        """
        if not self._planned or number not in self._wanted:
            self._want(range(number, min(number + 1 + self._settings.read_ahead, len(self._shards))))
        with self._change:
            waited = number in self._fetching
            while number in self._fetching:
                self._change.wait()
            if number in self._held:
                return self._held[number]
            if waited and number in self._failed:
                raise self._failed[number]  # it failed just now: all tries once more would only take long
            self._fetching.add(number)
        descriptor = None
        try:
            descriptor = self._hold(number)
        finally:
            self._arrived(number, descriptor)
        return descriptor

    def close(self) -> None:
        """Let go of everything. A fetch under way ends by itself, soon; what has come of it stays in the cache."""
        self._stop.set()
        with self._change:
            self._wanted = []
            while self._held:
                release(self._held.popitem()[1])
            self._change.notify_all()

    def _start(self) -> None:
        for _ in range(self._settings.connections):
            thread = threading.Thread(target=self._fetch_ahead, name="read-ahead", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _fetch_ahead(self) -> None:
        while not self._stop.is_set():
            with self._change:
                number = self._next()
                if number is None:
                    self._change.wait()
                    continue
                self._fetching.add(number)
            descriptor = None
            try:
                descriptor = self._hold(number, ahead=True)
                if descriptor is None and not self._told:
                    self._told = True  # once, not at each step
                    logger.warning("%s: no room to read ahead; raise data.cache.gigabytes", self._shards[number].path)
            except Stopped:
                pass
            except (UserError, RunFailed) as error:
                self._failed[number] = error
                logger.warning("not read ahead: %s", error)
            except Exception:  # the reader asks itself when its turn comes, and meets the cause
                logger.exception("not read ahead: %s", self._shards[number].path)
            finally:
                self._arrived(number, descriptor)

    def _next(self) -> int | None:
        known = self._held.keys() | self._fetching | self._put_off
        return next((number for number in self._wanted if number not in known), None)

    def _hold(self, number: int, ahead: bool = False) -> int | None:
        shard = self._shards[number]
        return shard.path.hold(shard.bytes, shard.sha256, ahead=ahead, stop=self._stop)

    def _arrived(self, number: int, descriptor: int | None) -> None:
        with self._change:
            self._fetching.discard(number)
            if descriptor is None:
                self._put_off.add(number)
            elif number in self._wanted:
                self._held[number] = descriptor
            else:
                release(descriptor)
            if descriptor is not None:
                self._failed.pop(number, None)
            self._change.notify_all()
