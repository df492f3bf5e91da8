"""A task owns the loss and the metrics: all that differs between kinds of training."""

from crate_graph.tasks.classification import ClassificationTask

__all__ = ["ClassificationTask"]
