"""The planned data stream: from shards on disk to batches whose order never depends on who reads them."""

from crate_graph.data.batch import Batch
from crate_graph.data.dataset import Dataset, open_dataset
from crate_graph.data.loader import PlannedLoader
from crate_graph.data.plan import EpochPlan, plan_epoch

__all__ = ["Batch", "Dataset", "EpochPlan", "PlannedLoader", "open_dataset", "plan_epoch"]
