"""Processes of a run without a launcher, for what goes wrong between them."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def unused_port():
    """A function that gives a port at which nobody listens."""

    def find():
        with socket.create_server(("", 0)) as server:
            return server.getsockname()[1]

    return find


class Forks:
    """The processes of forks.py."""

    def __init__(self, folder, recipe):
        self.folder, self.recipe = folder, recipe
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        command = [sys.executable, str(Path(__file__).with_name("forks.py"))]
        self.parent = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )
        assert self.parent.stdout.readline() == "ready\n"

    @staticmethod
    def process(rank, world, port, seconds=30, host="127.0.0.1", path=(), **more):
        environment = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "MASTER_ADDR": host, "MASTER_PORT": port}
        environment |= {"CRATE_GRAPH_MEETING_SECONDS": seconds, **more}
        return {"environment": {key: str(value) for key, value in environment.items()}, "path": list(map(str, path))}

    def start(self, processes, command=None):
        """Start them; their pids."""
        command = command or ["train", str(self.recipe), "--run-dir", str(self.folder / "run")]
        asked = {"processes": processes, "command": command, "folder": str(self.folder)}
        print(json.dumps(asked), file=self.parent.stdin, flush=True)
        return json.loads(self.parent.stdout.readline())

    def end(self):
        """(exit code, what was printed, what was said on stderr) of each."""
        codes = json.loads(self.parent.stdout.readline())
        texts = [[(self.folder / f"{n}.{name}").read_text() for name in ("out", "err")] for n in range(len(codes))]
        return [(code, *text) for code, text in zip(codes, texts, strict=True)]

    def close(self):
        self.parent.stdin.close()
        self.parent.wait(60)


@pytest.fixture(scope="module")
def forks(runner):
    started = Forks(runner.folder, runner.recipe)
    yield started
    started.close()
