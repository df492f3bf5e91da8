"""Where the processes of a run meet: a store that all of them reach.

The agents of torchrun (and `accelerate launch`) keep one at MASTER_ADDR:MASTER_PORT for their processes. Under any
other launcher rank 0 keeps it, and a door at MASTER_ADDR:MASTER_PORT: whoever knocks is told whose door it is and at
which port the store is. A store alone would not do: it cannot be told from another program at that port, before which a
client of PyTorch's waits for ever.
"""

from __future__ import annotations

import errno
import json
import os
import queue
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from crate_graph.cluster.ranks import Ranks
from crate_graph.errors import UserError

_NAME_SECONDS = 10.0  # for the name of a host that has just started to be known
_ANSWER_SECONDS = 3.0  # of a host, and of a door, which answers at once
_STRANGER_SECONDS = 5.0  # for another program, or the end of another run, to leave the port
_PAUSE = 0.2


@contextmanager
def shared_store(ranks: Ranks, deadline: float) -> Iterator[tuple[dist.Store, bool]]:
    """The store of the run, and whether it ends with this process. Who comes while the block runs finds it too.

    Raises:
        UserError: it cannot be reached by `deadline` (of time.monotonic), or something else is in its place.
    """
    host, port = ranks.master
    if kept_by_agent(ranks):
        with closing(_connect(host, port, deadline)) as connection:
            address = connection.getpeername()[0]
        yield _client(address, port, deadline), False
        return
    store, door = _open_door(ranks, deadline) if ranks.is_main else (None, None)
    try:
        address, greeting = _knock(ranks, deadline)
        mine = door is not None and door.nonce == greeting["nonce"]
        if not mine:
            with closing(_connect(address, greeting["store"], deadline)):
                store = _client(address, greeting["store"], deadline)
        yield store, mine
    finally:
        if door is not None:
            door.close()


def kept_by_agent(ranks: Ranks) -> bool:
    """As PyTorch decides it: torchrun says that it keeps a store, and where."""
    host, port = ranks.master
    promised = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and promised == (host, str(port))


def _client(address: str, port: int, deadline: float) -> dist.Store:
    left = timedelta(seconds=max(1.0, deadline - time.monotonic()))
    return dist.TCPStore(address, port, is_master=False, timeout=left, wait_for_workers=False)


class _Door:
    """Tells everyone who connects to a port of this host what `greeting` holds."""

    def __init__(self, port: int, greeting: dict[str, Any]):
        self.nonce = greeting["nonce"]
        self._said = json.dumps(greeting).encode() + b"\n"
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        self._listener = socket.create_server(("", port), family=family, backlog=4096, dualstack_ipv6=both)
        threading.Thread(target=self._greet, name="rendezvous", daemon=True).start()

    def _greet(self) -> None:
        while True:
            try:
                visitor, _ = self._listener.accept()
            except OSError:  # closed
                return
            with closing(visitor), suppress(OSError):
                visitor.sendall(self._said)

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # else the thread would go on waiting
        self._listener.close()


def _open_door(ranks: Ranks, deadline: float) -> tuple[dist.Store | None, _Door | None]:
    """A new store and its door; neither where another process of this run has opened one here.

    Raises:
        UserError: the port is taken.
    """
    port = ranks.master[1]
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=10), wait_for_workers=False)
    greeting = {"crate-graph": "rendezvous", "run": ranks.run, "store": server.port, "nonce": os.urandom(8).hex()}
    greeting |= {"host": socket.gethostname(), "pid": os.getpid(), "world": ranks.world}
    until = min(deadline, time.monotonic() + _STRANGER_SECONDS)
    while True:
        try:
            return server, _Door(port, greeting)
        except PermissionError:
            raise UserError(
                f"MASTER_PORT={port}: this user may not listen there on {socket.gethostname()}; set one above 1023"
            ) from None
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        other = _greeting_of("127.0.0.1", port)
        if other is not None and other["run"] == ranks.run:
            return None, None
        if time.monotonic() > until:
            raise UserError(
                f"port {port} of {socket.gethostname()}, MASTER_PORT of this run, is taken by {_who(other)}; set "
                f"MASTER_PORT to a free port, the same for all processes (who has it: ss -ltnp 'sport = :{port}')"
            )
        time.sleep(_PAUSE)


def _knock(ranks: Ranks, deadline: float) -> tuple[str, dict[str, Any]]:
    """(address of rank 0's host, greeting of its door). Raises UserError: another door, or none."""
    host, port = ranks.master
    until = min(deadline, time.monotonic() + _STRANGER_SECONDS)
    while True:
        with closing(_connect(host, port, deadline)) as connection:
            address, greeting = connection.getpeername()[0], _read_greeting(connection)
        if greeting is not None and greeting["run"] == ranks.run:
            if greeting["world"] != ranks.world:
                raise UserError(
                    f"rank 0 at {host}:{port}, {_place(greeting)}, is one of {greeting['world']} processes, and this "
                    f"is one of {ranks.world}; start all by one launcher, or two runs with a MASTER_PORT for each"
                )
            return address, greeting
        if time.monotonic() > until:
            raise UserError(
                f"at {host}:{port}, where rank 0 should be, answers {_who(greeting)}; set MASTER_PORT to a free port "
                f"of {host}, the same for all processes, and see that rank 0 has started"
            )
        time.sleep(_PAUSE)


def _who(greeting: dict[str, Any] | None) -> str:
    if greeting is None:
        return "another program"
    run = f" ({greeting['run']})" if greeting["run"] else ""
    return f"another run{run}, {_place(greeting)}"


def _place(greeting: dict[str, Any]) -> str:
    return f"pid {greeting['pid']} on {greeting['host']}"


def _greeting_of(host: str, port: int) -> dict[str, Any] | None:
    try:
        with closing(socket.create_connection((host, port), timeout=_ANSWER_SECONDS)) as connection:
            return _read_greeting(connection)
    except OSError:
        return None


def _read_greeting(connection: socket.socket) -> dict[str, Any] | None:
    """None: not from a door of ours."""
    connection.settimeout(_ANSWER_SECONDS)
    try:
        with connection.makefile("rb") as answer:
            greeting = json.loads(answer.readline(4096))
        return greeting if greeting["crate-graph"] == "rendezvous" else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _connect(host: str, port: int, deadline: float) -> socket.socket:
    """A connection, as soon as there is one.

    Raises:
        UserError: the host is not known, or there is none by `deadline`.
    """
    began = time.monotonic()
    while True:
        left = max(deadline - time.monotonic(), 1.0)
        try:
            return _connect_once(_resolve(host, left), port, min(left, _ANSWER_SECONDS))
        except socket.gaierror as error:
            reason, patience = f"the name is not known: {error.strerror}", min(deadline, began + _NAME_SECONDS)
        except OSError as error:
            reason, patience = error.strerror or str(error), deadline
        if time.monotonic() > patience:
            raise UserError(
                f"MASTER_ADDR={host}, MASTER_PORT={port}: the rendezvous of the run cannot be reached from "
                f"{socket.gethostname()} ({reason}, for {time.monotonic() - began:.0f} s); see that rank 0 has started "
                f"on that host, that the name means the same everywhere, and that no firewall closes the port"
            )
        time.sleep(_PAUSE)


def _connect_once(addresses: list[str], port: int, seconds: float) -> socket.socket:
    """To the first of the addresses that answers. Raises OSError, of the last one."""
    for address in addresses[:-1]:
        with suppress(OSError):
            return socket.create_connection((address, port), timeout=seconds)
    return socket.create_connection((addresses[-1], port), timeout=seconds)


def _resolve(host: str, seconds: float) -> list[str]:
    """Addresses of `host`.

    Raises socket.gaierror; TimeoutError where nobody knows in time: a resolver may wait for longer than a user does.
    """
    answers: queue.SimpleQueue = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put([answer[4][0] for answer in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)])
        except OSError as error:
            answers.put(error)

    threading.Thread(target=ask, name="resolver", daemon=True).start()
    try:
        answer = answers.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(errno.ETIMEDOUT, "the resolver of host names does not answer") from None
    if isinstance(answer, OSError):
        raise answer
    return answer
