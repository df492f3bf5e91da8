"""What each rank holds between two steps, and what gradients take, by engine and ZeRO stage. Bytes.

The rules are those of `engine.deepspeed` with DeepSpeed 0.18 to 0.19 over fp32 weights:

    stage     weights      master copy    moments    average    gradients
    0         all          -              all        all        all
    1         all          a share        a share    all        all until they are reduced, then a share
    2         all          a share        a share    all        in the reduce bucket, then a share
    3         a share      a share        a share    a share    in the reduce bucket, then a share

A share is 1/world, rounded up: stages 1 and 2 pad a parameter group to a multiple of 2 x world, stage 3 each parameter
to a multiple of world. The reduce bucket is `engine.deepspeed.reduce_bucket`; stages 1 and 2 reserve it in every
backward pass, stage 3 once and for all. At stage 3 weights are gathered for the forward pass, and as long as they are
fewer than `max_live_parameters` (a thousand million) they stay until the end of the backward pass. Frozen weights have
no gradient, moments, master copy or average; stage 3 shares and gathers them like others, and no other stage does.
"""

from __future__ import annotations

from dataclasses import dataclass

from crate_graph.config.schema import EngineConfig
from crate_graph.engine.deepspeed import reduce_bucket

FP32 = 4
_MAX_LIVE = 1_000_000_000  # elements; of stage3_max_live_parameters
_PREFETCHED = 50_000_000  # elements; of stage3_prefetch_bucket_size


@dataclass(frozen=True)
class Layout:
    """The parameters of a model as the optimizer has them."""

    groups: tuple[tuple[int, ...], ...]  # elements of each trained parameter, by parameter group
    frozen: tuple[int, ...]  # elements of each that is not trained; ZeRO shares these at stage 3 only
    buffers: int  # bytes
    moments: int  # tensors of the optimizer per parameter, beyond its step count
    average: bool  # whether a moving average is kept

    @property
    def elements(self) -> int:
        """That are trained."""
        return sum(map(sum, self.groups))

    @property
    def tensors(self) -> int:
        return sum(map(len, self.groups))


def state_bytes(layout: Layout, engine: EngineConfig, world: int) -> dict[str, int]:
    """By kind: weights, buffers, master, moments, ema."""
    stage = engine.zero_stage
    whole = FP32 * layout.elements
    if stage == 0:
        weights, share, steps, ema = whole, 0, layout.tensors, whole
        moments = whole * layout.moments
    elif stage == 3:
        share = FP32 * sum(-(-n // world) for group in layout.groups for n in group)
        weights, steps, ema, moments = share, len(layout.groups), share, share * layout.moments
    else:
        weights = FP32 * sum(_padded(group, world) for group in layout.groups)
        share, steps, ema = weights // world, len(layout.groups), whole
        moments = share * layout.moments
    return {
        "weights": weights + FP32 * sum(-(-n // world) if stage == 3 else n for n in layout.frozen),
        "buffers": layout.buffers,
        "master": share,
        "moments": moments + FP32 * steps,
        "ema": ema if layout.average else 0,
    }


def gradient_bytes(layout: Layout, engine: EngineConfig, world: int) -> int:
    """At the end of a backward pass, on the rank that has most."""
    if engine.zero_stage == 0:
        return FP32 * layout.elements
    if engine.zero_stage == 3:
        return FP32 * sum(-(-n // world) for group in layout.groups for n in group)
    return FP32 * max(
        sum(_overlapping(group, _padded(group, world) // world, rank) for group in layout.groups)
        for rank in range(world)
    )


def buffer_bytes(layout: Layout, engine: EngineConfig) -> int:
    """The reduce bucket: stages 1 and 2 reserve it in each backward pass, stage 3 once and for all."""
    return FP32 * reduce_bucket(layout.elements) if engine.zero_stage else 0


def gathered_bytes(layout: Layout, engine: EngineConfig, world: int) -> int:
    """Weights that ZeRO-3 brings together for a pass."""
    if engine.zero_stage < 3 or world == 1:
        return 0
    return min(gathered_by_zero3(layout, world), FP32 * _MAX_LIVE)


def arriving_bytes(layout: Layout, engine: EngineConfig, world: int) -> int:
    """The buffer in which ZeRO-3 receives weights, before it gives each its own memory."""
    return min(gathered_bytes(layout, engine, world), FP32 * _PREFETCHED)


def gathered_by_zero3(layout: Layout, world: int) -> int:
    """All weights, padded so that they divide among the ranks; of those that are frozen too."""
    return FP32 * sum(-(-n // world) * world for group in (*layout.groups, layout.frozen) for n in group)


def _padded(group: tuple[int, ...], world: int) -> int:
    return -(-sum(group) // (2 * world)) * 2 * world


def _overlapping(group: tuple[int, ...], share: int, rank: int) -> int:
    """Elements of the parameters, whole, that reach into the rank's share of the group, and of the padding in it."""
    first, last, total, start = rank * share, (rank + 1) * share, 0, 0
    for elements in group:
        if start < last and start + elements > first:
            total += elements
        start += elements
    return total + max(0, last - max(first, start))  # the padding
