"""What every section of a plan is made from."""

from __future__ import annotations

from dataclasses import dataclass

from crate_graph.config.schema import Recipe
from crate_graph.data import Dataset
from crate_graph.planning.readers import Split
from crate_graph.planning.timing import ComputeTime, compute_time
from crate_graph.planning.trace import Trace
from crate_graph.planning.traffic import Cluster, exposed_seconds, messages
from crate_graph.train.flops import passes_of_training

TRACED = "traced step on fake tensors"


@dataclass(frozen=True)
class Given:
    """A recipe, where it is to run, and a trace of what one process would do there."""

    recipe: Recipe
    dataset: Dataset
    cluster: Cluster
    split: Split
    micro_batch: int
    accumulation: int
    trace: Trace
    forward_flops: float  # of one image of a micro batch, as a run logs its utilisation

    @property
    def steps(self) -> int | None:
        """Of an epoch."""
        if self.split.samples is None:
            return None
        return self.split.samples // self.recipe.batch.global_batch

    @property
    def training_flops(self) -> float:
        """Of one image, forward and backward, nothing recomputed."""
        return passes_of_training(self.recipe.model.freeze) * self.forward_flops

    @property
    def compute(self) -> ComputeTime:
        ranks = self.cluster.world if self.recipe.engine.zero_stage else 1
        return compute_time(self.trace, self.cluster.device, self.cluster.assumed, shares=ranks)

    @property
    def step_seconds(self) -> float:
        return self.compute.of_step(self.accumulation) + self.waiting

    @property
    def waiting(self) -> float:
        sent = messages(self.trace.layout, self.recipe.engine, self.cluster.world, self.accumulation)
        return exposed_seconds(sent, self.cluster, self.compute.backward)
