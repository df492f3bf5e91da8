"""pipe:COMMAND: what a shell command writes to its standard output."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from contextlib import suppress

from crate_graph.data.remote.address import PIPE
from crate_graph.data.remote.answer import CHUNK, Broken


class PipeAnswer:
    """See `answer.Answer`. A command begins at the start, and does not say how much will come.

    Its standard error is not shown: what it says may repeat a secret of the command.
    """

    start, total, tag = 0, None, None

    def __init__(self, address: str, timeout: float):
        self._timeout = timeout
        self._process = subprocess.Popen(
            address.removeprefix(PIPE),
            shell=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # so that all of it can be ended
        )
        self._out = self._process.stdout.fileno()
        self._ready = select.poll()
        self._ready.register(self._out, select.POLLIN | select.POLLHUP)

    def read(self) -> bytes:
        if not self._ready.poll(self._timeout * 1000):
            raise Broken(f"nothing came for {self._timeout:g} s")
        data = os.read(self._out, CHUNK)
        if not data:
            self._check_exit()
        return data

    def close(self) -> None:
        if self._process.returncode is None:  # not yet reaped, so the group is still its own, and may outlive the shell
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.stdout.close()
        self._process.wait()

    def _check_exit(self) -> None:
        try:
            code = self._process.wait(self._timeout)
        except subprocess.TimeoutExpired:
            raise Broken(f"the command closed its output but did not end within {self._timeout:g} s") from None
        if code:
            raise Broken(f"the command ended with exit code {code} (run it by hand to see why)")
