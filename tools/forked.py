"""The process of forks.py: loads PyTorch and the modules that its arguments name, then forks what it is asked for.

A line of standard input is {"fork": what the program is given}, answered by the fork's pid, or {"ended": pid}, answered
by the exit code of a fork that has ended. Several ranks get what torchrun gives them: a store, and the variables that
tell them their place.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import random
import runpy
import socket
import sys
import threading
import traceback

import numpy as np
import torch


def serve(modules: list[str]) -> None:
    """Carry out what is asked; returns in a forked process, as soon as that is to become a program."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    load(modules)
    while line := sys.stdin.readline():
        asked = json.loads(line)
        if "ended" in asked:
            answer = os.waitstatus_to_exitcode(os.waitpid(asked["ended"], 0)[1])
        elif (answer := os.fork()) == 0:
            os.close(answers.fileno())
            return become(**asked["fork"])
        print(answer, file=answers, flush=True)
    sys.exit()


def load(modules: list[str]) -> None:
    sys.path[0] = os.getcwd()  # as `python -m crate_graph` has it
    for module in modules:
        importlib.import_module(module)
    gc.freeze()  # a fork that looked for garbage among all that was loaded would copy every page of it
    threads = os.listdir("/proc/self/task")
    assert len(threads) == 1, f"{len(threads)} threads: a fork has only one of them, and the locks of all"


def become(words: list[str], world: int, folder: str, environment: dict[str, str], out: str, err: str) -> None:
    """In a forked process: all that a fresh one would have of its own."""
    os.setsid()
    writes = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    for number, (path, flags) in enumerate(((os.devnull, os.O_RDONLY), (out, writes), (err, writes))):
        file = os.open(path, flags, 0o644)
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    places = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [place for place in places if place and place not in sys.path]
    sys.argv = words
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


def run() -> int:
    """Run the program that this process has become; its exit code, when whatever was put off to its end is done."""
    code = 1
    try:
        if sys.argv[0] == "crate-graph":
            runpy.run_module("crate_graph", run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    serve(sys.argv[1:])
    os._exit(run())  # nothing that was loaded is taken down: that takes as long as a short run
