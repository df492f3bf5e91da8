"""Processes of a run, started by a parent that has imported everything once: each is a fork of its own that runs a
command of crate-graph, or another program. Reads {"processes": [{"environment": {...}, "path": [...]}, ...], "command":
[...], "folder": F} as a line of JSON, starts them, and answers with their exit codes once all have ended; what they
print is in F/N.out and F/N.err. Started by conftest.py."""

import json
import os
import runpy
import sys
import time
import traceback

import crate_graph.doctor.run  # noqa: F401
import crate_graph.train.run  # noqa: F401
from crate_graph.cli import program


def become(number, process, command, folder):
    os.setsid()
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{folder}/{number}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    os.environ.update(process.get("environment", {}))
    sys.path[:0] = process.get("path", [])
    time.sleep(process.get("after", 0))
    code = 0
    try:
        if command[0].endswith(".py"):
            runpy.run_path(command[0], run_name="__main__")
        else:
            program([*command, *process.get("words", [])])
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 70
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def start(asked):
    pids = []
    for number, process in enumerate(asked["processes"]):
        pid = os.fork()
        if not pid:
            become(number, process, asked["command"], asked["folder"])
        pids.append(pid)
    print(json.dumps(pids), flush=True)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    print(json.dumps(codes), flush=True)


print("ready", flush=True)
for line in sys.stdin:
    start(json.loads(line))
