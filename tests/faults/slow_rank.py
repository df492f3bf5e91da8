"""`crate-graph` with rank RANK slow: half a second more in each forward pass, or before each batch, as HOW says
(`forward` or `data`). Started by test_stragglers.py."""

import os
import sys
import time

from crate_graph.cli import program
from crate_graph.data import PlannedLoader
from crate_graph.tasks import ClassificationTask

rank, how = sys.argv[1], sys.argv[2]
honest_loss, honest_epoch = ClassificationTask.loss, PlannedLoader.epoch


def slow_loss(self, *args):
    time.sleep(0.5)
    return honest_loss(self, *args)


def slow_epoch(self, *args, **kwargs):
    for batch in honest_epoch(self, *args, **kwargs):
        time.sleep(0.5)
        yield batch


if os.environ.get("RANK", "0") == rank:
    if how == "forward":
        ClassificationTask.loss = slow_loss
    else:
        PlannedLoader.epoch = slow_epoch
program(sys.argv[3:])
