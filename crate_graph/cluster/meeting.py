"""The processes of a run meet before they form a group, so that nobody waits in vain for one that cannot come.

Each leaves a card in a store that all reach: who it is, where, and what it is made of. The last one to come compares
the cards and writes the verdict; whoever finds at the end of its patience that somebody is missing writes that. All act
on the one verdict, so a mistake ends every process with the same line. There is no collective in it.

    meeting/WORLD/N/count/RANK   processes that say they are RANK
    meeting/WORLD/N/card/RANK    the card of the first of them that is alive
    meeting/WORLD/N/came         processes that came
    meeting/WORLD/N/verdict      what is wrong, or FINE
    meeting/WORLD/N/left, gone   processes that have read what is wrong; that will not ask the store again

The agents of torchrun keep their store when they start all processes anew, so meetings in it have numbers: the first
without a verdict is the one. TORCHELASTIC_RESTART_COUNT would not do: it is higher on the host where a process failed.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch.distributed as dist

from crate_graph.cluster.ranks import Ranks
from crate_graph.cluster.rendezvous import kept_by_agent, shared_store
from crate_graph.cluster.versions import versions
from crate_graph.errors import RunFailed, UserError

PATIENCE = "CRATE_GRAPH_MEETING_SECONDS"
_PATIENCE = 40.0  # seconds from the first process to the last
_READING = 5.0  # seconds for all to read a verdict
_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 0.25  # seconds between two looks
FINE, MISTAKE, ABSENT = "fine", "mistake", "absent"
_REMEDIES = {
    "code of crate_graph": "give every host the same checkout",
    "device": "see nvidia-smi on those without a GPU, or hide the GPUs of all: CUDA_VISIBLE_DEVICES=''",
}


@dataclass(frozen=True)
class Card:
    """What a process says of itself."""

    rank: int
    world: int
    host: str
    pid: int
    space: str  # of process numbers: two cards with one have comparable pids
    made_of: dict[str, str]  # what all must have in common
    mistake: str | None  # why it cannot take part

    @property
    def place(self) -> str:
        return f"pid {self.pid} on {self.host}"


def meet(ranks: Ranks, mistake: UserError | None = None) -> dist.Store:
    """Wait for all processes of the run; the store that they share, in which nothing is written yet.

    Args:
        ranks: of this process, one of several.
        mistake: what keeps this process from taking part; all are told.

    Raises:
        UserError: on every process the same: one of them made a mistake, two have one rank, or they are not of the same
            versions. Also as `rendezvous.shared_store`.
        RunFailed: some have not come in time, or the process that keeps the store has ended; a scheduler may try again.
    """
    seconds = _patience()
    deadline = time.monotonic() + seconds
    host, port = ranks.master
    try:
        with shared_store(ranks, deadline) as (store, mine):
            meeting = _Meeting(store, mine, ranks, seconds)
            error = meeting.hold(_card(ranks, mistake), deadline)
    except dist.DistError as lost:
        raise RunFailed(
            f"the processes of the run were to meet at {host}:{port}, and who keeps that place has ended; its own "
            f"message or log says why"
        ) from lost
    if error is not None:
        raise error
    return dist.PrefixStore(f"{meeting.name}/group", store)


def _patience() -> float:
    text = os.environ.get(PATIENCE, str(_PATIENCE))
    try:
        seconds = float(text)
        if not 0 < seconds <= 86_400:
            raise ValueError
    except ValueError:
        raise UserError(f"environment: {PATIENCE}={text} is no time in seconds; write a number such as 120") from None
    return seconds


def _card(ranks: Ranks, mistake: UserError | None) -> Card:
    made_of = versions() | ({} if mistake else {"device": ranks.device.type})
    said = None if mistake is None else str(mistake)
    return Card(ranks.rank, ranks.world, socket.gethostname(), os.getpid(), _pid_space(), made_of, said)


def _pid_space() -> str:
    """Equal for processes that see each other's pids; empty where that cannot be told."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


class _Meeting:
    def __init__(self, store: dist.Store, mine: bool, ranks: Ranks, seconds: float):
        number = 0
        while kept_by_agent(ranks) and store.check([f"meeting/{ranks.world}/{number}/verdict"]):
            number += 1
        self.name = f"meeting/{ranks.world}/{number}"
        self._store = dist.PrefixStore(self.name, store)
        self._mine, self._ranks, self._seconds = mine, ranks, seconds

    def hold(self, card: Card, deadline: float) -> UserError | RunFailed | None:
        """What is wrong."""
        error = self._register(card)
        if error:
            self._decide(error)
        pause = _FIRST_PAUSE
        while not self._store.check(["verdict"]):
            if time.monotonic() > deadline:
                cards = self._cards()
                self._decide(
                    compare(cards, self._ranks, self._seconds),
                    absent=not any(card.mistake for card in cards),
                )
            time.sleep(pause)
            pause = min(1.5 * pause, _LONGEST_PAUSE)
        kind, _, said = self._store.get("verdict").decode().partition(" ")
        said = error if kind == FINE else said
        if not said:
            return None
        self._leave_together()
        return RunFailed(said) if kind == ABSENT else UserError(said)

    def _register(self, card: Card) -> str:
        """Leave the card, and where it is the last one judge all; what is wrong with it alone."""
        first = self._store.add(f"count/{card.rank}", 1) == 1
        other = None if first else self._card_of_namesake(card)
        if other is None:
            self._store.set(f"card/{card.rank}", json.dumps(asdict(card)))
        came = self._store.add("came", 1)
        if other is not None:
            return (
                f"two processes are rank {card.rank} of {card.world}: {other.place} and {card.place}; give each its "
                f"own rank, or where they are of two runs, set another MASTER_PORT for one of these"
            )
        if came >= card.world and len(cards := self._cards()) == card.world:
            self._decide(compare(cards, self._ranks, self._seconds))
        return ""

    def _card_of_namesake(self, card: Card) -> Card | None:
        """The card of another process of the same rank, unless that process is gone: of a start before this one."""
        until = time.monotonic() + _READING
        while not self._store.check([f"card/{card.rank}"]):  # it has counted itself, and is about to leave it
            if time.monotonic() > until:
                return None
            time.sleep(_FIRST_PAUSE)
        other = self._card(card.rank)
        return None if other.space == card.space and _is_gone(other.pid) else other

    def _decide(self, error: str, *, absent: bool = False) -> None:
        """The first verdict stands."""
        kind = ABSENT if absent else MISTAKE
        self._store.compare_set("verdict", "", f"{kind} {error}" if error else FINE)

    def _leave_together(self) -> None:
        """Launchers end the others when one has ended, before these have said why; the store ends with its keeper."""
        self._store.add("left", 1)
        self._wait_for("left", 0)
        if self._mine:
            self._wait_for("gone", 1)
        else:
            self._store.add("gone", 1)  # the last that this process asks of the store

    def _wait_for(self, counter: str, fewer: int) -> None:
        """Until all that came, but `fewer`, have counted; not for ever, since one may have been killed."""
        until = time.monotonic() + _READING
        while self._store.add(counter, 0) < self._store.add("came", 0) - fewer and time.monotonic() < until:
            time.sleep(_FIRST_PAUSE)

    def _cards(self) -> list[Card]:
        return [self._card(rank) for rank in range(self._ranks.world) if self._store.check([f"card/{rank}"])]

    def _card(self, rank: int) -> Card:
        return Card(**json.loads(self._store.get(f"card/{rank}")))


def _is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:  # another user's
        pass
    return False


def compare(cards: Sequence[Card], ranks: Ranks, seconds: float) -> str:
    """What is wrong with those that have come, or an empty text: a mistake, somebody missing, what differs."""
    for card in cards:
        if card.mistake is not None:
            return f"rank {card.rank} on {card.host} cannot take part: {card.mistake}"
    missing = sorted(set(range(ranks.world)) - {card.rank for card in cards})
    if missing:
        host, port = ranks.master
        verb = "has" if len(missing) == 1 else "have"
        return (
            f"{_ranks(missing)} of {ranks.world} {verb} not come to {host}:{port} in {seconds:g} s ({_where(cards)} "
            f"did); see what became of them, or where hosts start slowly set {PATIENCE}"
        )
    return "; ".join(_difference(name, cards) for name in cards[0].made_of if len(_values(name, cards)) > 1)


def _difference(name: str, cards: Sequence[Card]) -> str:
    values = _values(name, cards)
    has = ", ".join(f"{value} on {_where([c for c in cards if c.made_of.get(name) == value])}" for value in values)
    return f"{name} differs: {has}; {_REMEDIES.get(name, 'install the same version on every host')}"


def _values(name: str, cards: Sequence[Card]) -> list[str]:
    """In the order of ranks."""
    return list(dict.fromkeys(card.made_of.get(name, "none") for card in cards))


def _where(cards: Sequence[Card]) -> str:
    """`ranks 0-7 (node1), rank 8 (node2)`."""
    hosts = dict.fromkeys(card.host for card in cards)
    return ", ".join(f"{_ranks([card.rank for card in cards if card.host == host])} ({host})" for host in hosts)


def _ranks(numbers: Sequence[int]) -> str:
    """`rank 3`, or `ranks 0-2, 5`."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][-1] + 1:
            spans[-1][1:] = [number]
        else:
            spans.append([number])
    text = ", ".join("-".join(map(str, span)) for span in spans)
    return f"rank{'s' if len(numbers) > 1 else ''} {text}"
