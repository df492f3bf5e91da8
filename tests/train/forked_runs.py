"""Runs of the command line in turn, each on forked processes: imports, most of a short run's time, are done once.

Reads [[world size, [argument, ...]], ...] as JSON; prints the exit codes of each run's ranks, likewise.
"""

import json
import os
import signal
import socket
import sys
import traceback

os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed  # noqa: E402, F401

import crate_graph.engine.accelerate  # noqa: E402
import crate_graph.engine.deepspeed  # noqa: E402
import crate_graph.train.run  # noqa: E402, F401
from crate_graph.cli import main  # noqa: E402


def run(world, arguments):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [os.fork() or become(rank, world, port, arguments) for rank in range(world)]
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def become(rank, world, port, arguments):
    signal.alarm(240)  # should the parent be gone, nobody else would end a run that hangs
    if world > 1:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port, "MASTER_ADDR": "127.0.0.1"}
        os.environ.update({name: str(value) for name, value in place.items()}, TORCHELASTIC_RUN_ID="forked")
    os.dup2(2, 1)  # standard output is for the codes
    try:
        code = main(arguments)
    except BaseException:
        traceback.print_exc()
        code = 1
    os._exit(code)


if __name__ == "__main__":
    print(json.dumps([run(*job) for job in json.load(sys.stdin)]))
