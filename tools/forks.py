"""Programs as forks of one process that has loaded PyTorch, timm and whatever else they need.

    with Forks("crate_graph.train.run") as forks:
        fork = forks.start(["crate-graph", "train", "quickstart"], out=Path("out.txt"))
        code = fork.wait(60)

Loading costs a run four times what training a tiny model costs. What start-up itself may break is seen by tests that
start an interpreter: those of signals, of the command line, the README and the wheel. So is what depends on the seed of
Python's hashes, which forks share.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path
from signal import SIGKILL


class Forks:
    """Starts forks of one process, which is itself started when it is first needed.

    Args:
        modules: what that process loads.
        environment: gives the variables of a fork when it starts.
        loading: further variables of the process that loads, which its forks do not get.
    """

    def __init__(
        self,
        *modules: str,
        environment: Callable[[], Mapping[str, str]] = lambda: os.environ,
        loading: Mapping[str, str] | None = None,
    ):
        self.modules = modules
        self.environment = environment
        self.loading = loading or {}
        self._server: subprocess.Popen | None = None
        self._forks: list[Fork] = []

    def __enter__(self) -> Forks:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def start(
        self,
        words: Sequence[object],
        *,
        world: int = 1,
        folder: Path = Path(),
        environment: Mapping[str, object] | None = None,
        out: Path = Path(os.devnull),
        err: Path | None = None,
    ) -> Fork:
        """A program and its words: `crate-graph`, or a file of Python.

        Args:
            world: ranks that run it, each in a process of its own; the fork is then their parent.
            folder: where it runs.
            environment: variables of its own, beside the common ones.
            out, err: what it prints is added to these files; `err` None: both to `out`.
        """
        own = {name: str(value) for name, value in (environment or {}).items()}
        given = {"words": list(map(str, words)), "world": world, "folder": str(folder.absolute())}
        given |= {"environment": {**self.environment(), **own}, "out": str(out), "err": str(err or out)}
        fork = Fork(self, self._ask(fork=given))
        self._forks.append(fork)
        return fork

    def stop(self) -> None:
        """End whatever still runs."""
        for fork in list(self._forks):
            fork.kill()
            fork.wait()

    def close(self) -> None:
        """End whatever still runs, and the process that forks."""
        for fork in self._forks:
            fork.kill()
        self._forks.clear()
        if self._server is not None:
            self._server.kill()
            self._server.communicate()
            self._server = None

    def code_of(self, fork: Fork) -> int:
        """The exit code of a fork that has ended."""
        self._forks.remove(fork)
        return self._ask(ended=fork.pid)

    def _ask(self, **asked: object) -> int:
        if self._server is None:
            program = [sys.executable, str(Path(__file__).with_name("forked.py")), *self.modules]
            self._server = subprocess.Popen(
                program,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**self.environment(), **self.loading},
                text=True,
                start_new_session=True,  # Ctrl-C is for us alone
            )
        try:
            print(json.dumps(asked), file=self._server.stdin, flush=True)
            if answer := self._server.stdout.readline():
                return int(answer)
            raise RuntimeError(f"the process that forks has ended with {self._server.wait()}")
        except BaseException:  # a test's time is up: the answer that is still to come must not be taken for the next
            self.close()
            raise


class Fork:
    """A process that leads a session and a group of its own."""

    def __init__(self, forks: Forks, pid: int):
        self.pid = pid
        self.sentinel = os.pidfd_open(pid)  # ready to be read when the process has ended
        self._forks, self._code = forks, None
        weakref.finalize(self, os.close, self.sentinel)

    @property
    def alive(self) -> bool:
        return self.wait(0) is None

    def wait(self, seconds: float | None = None) -> int | None:
        """Its exit code, that of a signal as a negative number; None where it does not end in time."""
        if self._code is None and wait([self.sentinel], seconds):
            self._code = self._forks.code_of(self)
        return self._code

    def kill(self) -> None:
        """SIGKILL to the group."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, SIGKILL)
        with suppress(ProcessLookupError):
            os.kill(self.pid, SIGKILL)  # one that has no group yet
