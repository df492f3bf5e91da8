"""`crate-graph` with a fault: from step FIRST to LAST the loss of rank RANK is NaN. Started by test_guard.py."""

import os
import sys

import torch

from crate_graph.cli import program
from crate_graph.tasks import ClassificationTask
from crate_graph.train.step import TrainStep

first, last, rank = map(int, sys.argv[1:4])
now = {"step": -1}
honest_loss, honest_step = ClassificationTask.loss, TrainStep.__call__


def loss(self, *args):
    loss_sum, count = honest_loss(self, *args)
    spoiled = first <= now["step"] <= last and int(os.environ.get("RANK", "0")) == rank
    return (loss_sum * torch.nan if spoiled else loss_sum), count


def step(self, number, *args, **kwargs):
    now["step"] = number + 1
    return honest_step(self, number, *args, **kwargs)


ClassificationTask.loss, TrainStep.__call__ = loss, step
program(sys.argv[4:])
