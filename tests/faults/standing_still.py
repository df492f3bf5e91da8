"""`crate-graph` with a fault: at step STEP rank RANK stands still, in a HOW of `python` or `native`, which keeps the
interpreter's lock. Started by test_watchdog.py."""

import ctypes
import os
import sys
import time

from crate_graph.cli import program
from crate_graph.resilience import watchdog
from crate_graph.train.step import TrainStep

at, rank, how = int(sys.argv[1]), sys.argv[2], sys.argv[3]
honest_step = TrainStep.__call__
watchdog.GRACE = 2.0


def step(self, number, *args, **kwargs):
    if number + 1 == at and os.environ.get("RANK", "0") == rank:
        if how == "native":
            ctypes.PyDLL(None).sleep(600)
        time.sleep(600)
    return honest_step(self, number, *args, **kwargs)


TrainStep.__call__ = step
program(sys.argv[4:])
