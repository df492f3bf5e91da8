"""Most bytes that a GPU holds at once, by kind, from a trace and the rules of the engine."""

from __future__ import annotations

from crate_graph.config.schema import ActivationCheckpointing, EngineConfig, Recipe
from crate_graph.data import Dataset
from crate_graph.engine.deepspeed import reduce_bucket
from crate_graph.planning.state import (
    FP32,
    arriving_bytes,
    buffer_bytes,
    gathered_bytes,
    gradient_bytes,
    state_bytes,
)
from crate_graph.planning.tally import OTHER
from crate_graph.planning.trace import Trace, trace_step


def trace_for(
    recipe: Recipe,
    dataset: Dataset,
    world: int,
    micro_batch: int,
    accumulation: int,
    *,
    checkpointing: ActivationCheckpointing | None = None,
    cuda: bool = True,
) -> Trace:
    """A trace of what one of `world` ranks does. Raises as `trace_step`."""
    ddp = recipe.engine.name == "accelerate" and world > 1
    return trace_step(
        recipe,
        dataset,
        micro_batch,
        share=micro_batch * accumulation,
        keeps_gradients=ddp or accumulation > 1,
        checkpointing=checkpointing,
        cuda=cuda,
    )


def peak_bytes(trace: Trace, engine: EngineConfig, world: int, *, gloo: bool = False) -> dict[str, int]:
    """Of the worst moment of a step: while weights are gathered, gradients are made, or gradients are applied.

    With `gloo` a reduce-scatter takes a copy of what it is given; NCCL takes none.

    Kinds: those of `state_bytes`, gathered (weights, ZeRO-3), gradients, bucket (DeepSpeed's), batch, activations.
    """
    layout, stage = trace.layout, engine.zero_stage
    held = {
        **state_bytes(layout, engine, world),
        "gathered": gathered_bytes(layout, engine, world),
        "batch": trace.peak["batch"],
    }
    share, bucket = gradient_bytes(layout, engine, world), buffer_bytes(layout, engine)
    growing = trace.peak.get("gradients", 0)  # when activations are most
    made = {0: growing, 1: growing, 2: share, 3: share}[stage]
    while_made = {**held, "gradients": made, "bucket": bucket, OTHER: trace.peak[OTHER]}

    whole = FP32 * layout.elements
    temporary = trace.peak_of_update[OTHER] // (world if stage else 1)
    if engine.name == "deepspeed" and world > 1:
        # A bucket is reduced in a copy. What it does not hold waits, unless it is reduced meanwhile: stages 2 and 3.
        copied = min(whole, FP32 * reduce_bucket(layout.elements))
        ready = {0: whole, 1: share + whole - copied, 2: share, 3: share}[stage]
        copies = 2 if gloo and stage == 3 else 1
        while_applied = {**held, "gradients": ready, "bucket": bucket + copies * copied, OTHER: 0}
    else:
        kept_bucket = bucket if stage == 3 else 0
        while_applied = {**held, "gradients": share, "bucket": kept_bucket, OTHER: temporary}
    arriving = {**held, "gathered": held["gathered"] + arriving_bytes(layout, engine, world)}
    while_gathered = {**arriving, "gradients": made, "bucket": bucket, OTHER: 0}
    return max(while_made, while_applied, while_gathered, key=lambda kinds: sum(kinds.values()))


def largest_micro_batch(
    recipe: Recipe, dataset: Dataset, world: int, share: int, limit: float, *, cuda: bool = True
) -> int | None:
    """The largest divisor of `share` whose peak stays within `limit` bytes; None where not even one sample does.

    Memory grows linearly with the micro batch, so two traces say where to look, and a third one proves it.
    """
    divisors = [n for n in range(share, 0, -1) if share % n == 0]

    def peak(micro_batch: int) -> int:
        trace = trace_for(recipe, dataset, world, micro_batch, share // micro_batch, cuda=cuda)
        return sum(peak_bytes(trace, recipe.engine, world).values())

    small, large = divisors[-1], divisors[min(len(divisors) - 1, len(divisors) // 2)]
    low, high = peak(small), peak(large)
    slope = (high - low) / max(large - small, 1)
    for micro_batch in divisors:
        if low + slope * (micro_batch - small) <= limit and peak(micro_batch) <= limit:
            return micro_batch
    return None
