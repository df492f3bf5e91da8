"""One file fetched against a network that fails: more tries with growing pauses, going on where the last one broke."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from crate_graph.config.schema import Remote
from crate_graph.data.remote import address as addresses
from crate_graph.data.remote.answer import Answer, Broken, Changed, NotThere, Refused, Replaced, Stopped
from crate_graph.data.remote.http import open_http, web_request
from crate_graph.data.remote.hub import hub_request
from crate_graph.data.remote.pipe import PipeAnswer
from crate_graph.data.remote.s3 import s3_request
from crate_graph.errors import RunFailed, UserError

if TYPE_CHECKING:
    from crate_graph.data.remote.part import PartialFile

LONGEST_PAUSE = 60.0  # seconds between two tries
SLOWEST = 1024  # bytes per second; a server that sends less over a whole time-out has stalled
WHOLE_TRIES = 2  # times that a file may come whole and be another one

T = TypeVar("T")
logger = logging.getLogger(__name__)
_jitter = random.SystemRandom()  # the run's random numbers are not touched


class MissingFile(UserError):
    """There is no such file at the address."""


def fetch_shard(
    address: str, shown: str, part: PartialFile, size: int, sha256: str, settings: Remote, stop: threading.Event
) -> None:
    """Fill `part` with the file at `address`, of `size` bytes and with digest `sha256`.

    What an earlier fetch left in `part` is used where the server can go on from it.

    Raises:
        RunFailed: the network or the server failed in all tries. UserError: a definite answer: refused, not there, or
            another file than the index describes. Both name the file as `shown`. Stopped: `stop` was set.
    """

    def attempt() -> None:
        tag = part.tag()
        answer = _ask(address, settings, part.size() if tag else 0, tag)
        try:
            _check_total(answer.total, size)
            part.begin(answer.start, answer.tag)
            _copy(answer, part, size, settings.timeout, stop)
        finally:
            answer.close()
            part.close()
        if part.sha256(stop) != sha256:
            raise Changed("its sha256 is not the one in its index")

    if part.size() >= size:  # an earlier fetch ended between its last byte and the check
        if part.size() == size and part.sha256(stop) == sha256:
            return
        part.discard()
    _persist(attempt, shown, settings, stop, forget=part.discard)


def fetch_document(address: str, shown: str, known: str | None, settings: Remote) -> tuple[bytes, str | None] | None:
    """(content, tag) of a small file, whole; None where it still is the version of tag `known`.

    Raises as `fetch_shard`; `MissingFile`, a UserError, where there is none.
    """
    never = threading.Event()

    def attempt() -> tuple[bytes, str | None] | None:
        answer = _ask(address, settings, known=known)
        if answer is None:
            return None
        try:
            content = bytearray()
            for data in _steady(answer, settings.timeout, never):
                content += data
        finally:
            answer.close()
        if answer.total is not None and len(content) != answer.total:
            raise Broken(f"it ended after {len(content)} of {answer.total} bytes")
        if content.lstrip()[:1] == b"<":  # as neither YAML nor JSON of ours begins
            raise Refused("a web page is there in its place; open the address in a browser and see what it asks for")
        return bytes(content), answer.tag

    return _persist(attempt, shown, settings, never)


def longest_silence(settings: Remote) -> float:
    """Seconds that a fetch which still goes on may pass without a byte written."""
    pauses = (min(LONGEST_PAUSE, settings.backoff * 2**n) * 1.5 for n in range(settings.retries))
    return 2 * settings.timeout * (settings.retries + 1) + sum(pauses) + LONGEST_PAUSE


def _ask(address: str, settings: Remote, start: int = 0, tag: str | None = None, known: str | None = None):
    if address.startswith(addresses.PIPE):
        return PipeAnswer(address, settings.timeout)
    if address.startswith("s3://"):
        request = s3_request(address, settings)
    elif address.startswith("hf://"):
        request = hub_request(address)
    else:
        request = web_request(address)
    return open_http(request, settings.timeout, start, tag, known)


def _persist(
    attempt: Callable[[], T],
    shown: str,
    settings: Remote,
    stop: threading.Event,
    forget: Callable[[], None] = lambda: None,
) -> T:
    """Try until it works, at most `settings.retries` more times. `forget` throws away what came of another file."""
    whole = 0
    for tried in range(1, settings.retries + 2):
        try:
            return attempt()
        except NotThere as error:
            raise MissingFile(f"{shown}: {error}") from None
        except Refused as error:
            raise UserError(f"{shown}: {error}") from None
        except Changed as error:
            forget()
            whole += 1
            if whole == WHOLE_TRIES:
                raise UserError(
                    f"{shown}: {error}, and neither was it when fetched again; upload the shard and its index again"
                ) from None
            reason, after = str(error), 0.0
        except Broken as error:
            if isinstance(error, Replaced):
                forget()
            reason, after = str(error), error.after
        if tried > settings.retries:
            break
        pause = settings.backoff * 2 ** (tried - 1) * _jitter.uniform(0.5, 1.5)
        pause = min(LONGEST_PAUSE, max(pause, after))
        logger.warning("%s: %s; try %d of %d in %.1f s", shown, reason, tried + 1, settings.retries + 1, pause)
        if stop.wait(pause):
            raise Stopped
    raise RunFailed(
        f"{shown}: {reason} ({tried} tries); check the server and the network, then start the same command again "
        f"(data.remote.retries={settings.retries}, data.remote.timeout={settings.timeout:g})"
    )


def _check_total(total: int | None, size: int) -> None:
    if total is not None and total != size:
        raise Changed(f"it has {total} bytes, but its index says {size}")


def _copy(answer: Answer, part: PartialFile, size: int, timeout: float, stop: threading.Event) -> None:
    for data in _steady(answer, timeout, stop):
        part.write(data)
        if part.size() > size:
            raise Changed(f"it has more than the {size} bytes that its index says")
    if part.size() < size:
        raise Broken(f"it ended after {part.size()} of {size} bytes")


def _steady(answer: Answer, timeout: float, stop: threading.Event):
    """The chunks of an answer, while they come fast enough to ever end."""
    since, came = time.monotonic(), 0
    while data := answer.read():
        if stop.is_set():
            raise Stopped
        yield data
        came += len(data)
        if time.monotonic() - since > timeout:
            if came < SLOWEST * timeout:
                raise Broken(f"only {came} bytes came in {timeout:g} s")
            since, came = time.monotonic(), 0
