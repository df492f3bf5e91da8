"""Forks runs of `crate-graph` from a process that has already loaded PyTorch, timm and DeepSpeed.

Loading them costs a run four times what training a tiny model costs. Each line of standard input asks for a run, which
gets a session, an environment and files of its own; the line that answers is its exit code, or null where the run did
not end in time. Several ranks get what torchrun gives them: a store, and the variables that tell them their place.

What start-up itself may break is seen by tests that start an interpreter: those of signals and faults, of the command
line, the README and the wheel. So is what depends on the seed of Python's hashes, which forked runs share.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import runpy
import signal
import socket
import sys
import time

import numpy as np
import torch


def serve() -> None:
    """Carry out what is asked; returns in a forked process, as soon as that is to become a run."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    load()
    while request := sys.stdin.readline():
        asked = json.loads(request)
        if (pid := os.fork()) == 0:
            return become_run(**asked["run"])
        print(json.dumps(exit_code(pid, asked["seconds"])), file=answers, flush=True)
    sys.exit()


def load() -> None:
    """What every run loads, or would under DeepSpeed."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    sys.path[0] = os.getcwd()  # as `python -m crate_graph` has it
    for module in ("deepspeed", "crate_graph.train.run", "crate_graph.engine.accelerate", "torch._dynamo"):
        importlib.import_module(module)
    threads = os.listdir("/proc/self/task")
    assert len(threads) == 1, f"{len(threads)} threads: a fork has only one of them, and the locks of all"


def exit_code(pid: int, seconds: float) -> int | None:
    """Of the process, waited for; a signal that ended it as a negative number, as `subprocess` has it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def become_run(words: list[str], world: int, folder: str, environment: dict[str, str], out: str, err: str) -> None:
    """In a forked process: all that a fresh one would have of its own."""
    os.setsid()
    for number, (path, flags) in enumerate(((os.devnull, os.O_RDONLY), (out, os.O_WRONLY), (err, os.O_WRONLY))):
        file = os.open(path, flags | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["crate-graph", *words]
    if world > 1:
        become_rank(world)
    random.seed()
    np.random.seed()


def become_rank(world: int) -> None:
    """Fork the ranks of a run; returns in each of them, while this process waits for them and then ends as they did."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    ranks = []
    for rank in range(world):
        if (pid := os.fork()) == 0:
            listener.close()
            own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "GROUP_RANK": 0}
            own |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "forked"}
            own |= {"TORCHELASTIC_USE_AGENT_STORE": True, "TORCHELASTIC_RESTART_COUNT": 0}
            os.environ.update({name: str(value) for name, value in own.items()})
            return
        ranks.append(pid)
    store = torch.distributed.TCPStore(
        "127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
    )
    failed = [pid for pid in ranks if os.waitpid(pid, 0)[1] != 0]
    del store
    os._exit(1 if failed else 0)


if __name__ == "__main__":
    serve()
    runpy.run_module("crate_graph", run_name="__main__", alter_sys=True)
