"""The planned data stream: from shards on disk to batches whose order never depends on who reads them."""

from typing import TYPE_CHECKING

from crate_graph.data.dataset import Dataset, open_dataset
from crate_graph.data.plan import EpochPlan, plan_epoch
from crate_graph.deferred import on_demand

if TYPE_CHECKING:
    from crate_graph.data.batch import Batch
    from crate_graph.data.loader import PlannedLoader

__all__ = ["Batch", "Dataset", "EpochPlan", "PlannedLoader", "open_dataset", "plan_epoch"]
__getattr__ = on_demand(__name__, {"Batch": "batch", "PlannedLoader": "loader"})  # they load PyTorch
