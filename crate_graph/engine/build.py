"""From a recipe's engine section to an engine."""

from __future__ import annotations

from crate_graph.cluster.ranks import Ranks
from crate_graph.config.schema import EngineConfig
from crate_graph.engine.base import Engine, OptimizerFactory
from crate_graph.engine.batch_norm import share_batch_norms
from crate_graph.engine.objective import Objective


def build_engine(
    config: EngineConfig,
    objective: Objective,
    make_optimizer: OptimizerFactory,
    ranks: Ranks,
    *,
    micro_batch: int,
    accumulation: int,
) -> Engine:
    """The engine that the recipe names. Imports are local: DeepSpeed takes seconds to import."""
    if ranks.world > 1:
        share_batch_norms(objective.model)
    if config.name == "deepspeed":
        from crate_graph.engine.deepspeed import DeepSpeedEngine

        return DeepSpeedEngine(
            objective,
            make_optimizer,
            ranks,
            stage=config.zero_stage,
            micro_batch=micro_batch,
            accumulation=accumulation,
        )
    from crate_graph.engine.accelerate import AccelerateEngine

    return AccelerateEngine(objective, make_optimizer, ranks)
