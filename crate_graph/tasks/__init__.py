"""A task owns the loss and the metrics: all that differs between kinds of training."""

from crate_graph.tasks.build import build_task
from crate_graph.tasks.classification import ClassificationTask
from crate_graph.tasks.masked_autoencoding import MaskedAutoencodingTask
from crate_graph.tasks.restoration import RestorationTask

__all__ = ["ClassificationTask", "MaskedAutoencodingTask", "RestorationTask", "build_task"]
