"""Processes of a run without a launcher, for what goes wrong between them."""

import socket
import time

import pytest


@pytest.fixture(scope="session")
def unused_port():
    """A function that gives a port at which nobody listens."""

    def find():
        with socket.create_server(("", 0)) as server:
            return server.getsockname()[1]

    return find


class Group:
    """Starts processes of one run, each with variables of its own, and tells how they ended."""

    def __init__(self, forks, folder, recipe):
        self.forks, self.folder, self.recipe = forks, folder, recipe
        self.started = []

    @staticmethod
    def process(rank, world, port, seconds=30, host="127.0.0.1", **more):
        own = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "MASTER_ADDR": host, "MASTER_PORT": port}
        return {"environment": own | {"CRATE_GRAPH_MEETING_SECONDS": seconds, **more}}

    def start(self, processes, command=None, program="crate-graph"):
        """Start them, each some seconds `after` the first; their pids."""
        if program == "crate-graph":
            command = command or ["train", self.recipe, "--run-dir", self.folder / "run"]
        begun = time.monotonic()
        self.started = []
        for number, process in enumerate(processes):
            time.sleep(max(0, begun + process.get("after", 0) - time.monotonic()))
            out, err = self.printed(number)
            for file in (out, err):
                file.write_text("")
            words, own = [program, *(command or [])], process["environment"]
            self.started.append(self.forks.start(words, environment=own, out=out, err=err))
        return [fork.pid for fork in self.started]

    def end(self):
        """(exit code, what was printed, what was said on stderr) of each."""
        codes = [fork.wait() for fork in self.started]
        return [(code, *(file.read_text() for file in self.printed(n))) for n, code in enumerate(codes)]

    def printed(self, number):
        return [self.folder / f"{number}.{name}" for name in ("out", "err")]


@pytest.fixture(scope="module")
def group(forks, runner):
    return Group(forks, runner.folder, runner.recipe)
