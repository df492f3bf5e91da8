"""What ranks send each other in a step, and how long it takes on a network.

    engine               each step                                             with each micro batch
    accelerate, DDP      all-reduce of the gradients, behind the backward pass
    deepspeed, ZeRO-0    all-reduce of the gradients, after it
    ZeRO-1               all-reduce of the gradients, all-gather of the weights
    ZeRO-2               all-gather of the weights                             all-reduce of the gradients
    ZeRO-3                                                                     all-gather of the weights, reduce-scatter

DeepSpeed's stages 1 and 2 all-reduce their buckets although a reduce-scatter would do
(`use_multi_rank_bucket_allreduce`). With recomputation ZeRO-3 gathers no more often, because weights stay until the end
of the backward pass. Every step has the word besides (`engine.word`).

A ring of N ranks moves 2 (N - 1) / N of the tensor through each link for an all-reduce, and half of that for the
others (Patarasuk and Yuan, J. Parallel Distrib. Comput. 69(2), 2009). Inside a node the link is that of the GPU; among
nodes it is the slower of that and of what the node's ports carry together.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from crate_graph.config.schema import EngineConfig
from crate_graph.planning.hardware import Assumptions, Device, Network
from crate_graph.planning.state import FP32, Layout, gathered_by_zero3

_DDP_BUCKET = 25 * 2**20  # bytes; DistributedDataParallel's default of bucket_cap_mb
_STARTS = {"all-reduce": 2, "all-gather": 1, "reduce-scatter": 1}  # times round the ring


class Message(NamedTuple):
    """One kind of collective in a step."""

    collective: str
    bytes: int  # of the whole tensor, each time
    times: int
    hidden: bool  # behind the backward pass


class Cluster(NamedTuple):
    nodes: int
    gpus_per_node: int
    device: Device
    network: Network
    assumed: Assumptions

    @property
    def world(self) -> int:
        return self.nodes * self.gpus_per_node


def messages(layout: Layout, engine: EngineConfig, world: int, accumulation: int) -> list[Message]:
    """What every rank hands to collectives in a step."""
    if world == 1:
        return []
    whole = FP32 * layout.elements
    word = Message("all-reduce", word_bytes(world), 1, hidden=False)
    if engine.name == "accelerate":
        return [Message("all-reduce", whole, 1, hidden=True), word]
    if engine.zero_stage == 0:
        return [Message("all-reduce", whole, 1, hidden=False), word]
    if engine.zero_stage < 3:
        multiple = 2 * world
        padded = FP32 * sum(-(-sum(group) // multiple) * multiple for group in layout.groups)
        times = accumulation if engine.zero_stage == 2 else 1
        return [
            Message("all-reduce", whole, times, hidden=False),
            Message("all-gather", padded, 1, hidden=False),
            word,
        ]
    padded = FP32 * sum(-(-n // world) * world for group in layout.groups for n in group)
    return [
        Message("all-gather", gathered_by_zero3(layout, world), accumulation, hidden=False),
        Message("reduce-scatter", padded, accumulation, hidden=True),
        word,
    ]


def word_bytes(world: int) -> int:
    """Of `engine.word`: seven numbers, and two for each rank, in float64."""
    return 8 * (7 + 2 * world)


def seconds(message: Message, cluster: Cluster) -> float:
    """Of all its times together, nothing hidden."""
    world = cluster.world
    if world == 1:
        return 0.0
    rounds = _STARTS[message.collective]
    rate = ring_rate(cluster)
    hops = math.ceil(math.log2(world))  # NCCL goes along trees where messages are small
    latency = cluster.network.latency if cluster.nodes > 1 else cluster.assumed.kernel_seconds
    return message.times * (rounds * (world - 1) / world * message.bytes / rate + rounds * hops * latency)


def ring_rate(cluster: Cluster) -> float:
    """Bytes/s that go through the slowest link of the ring."""
    link = cluster.device.link
    if cluster.nodes > 1:
        ports = cluster.gpus_per_node if cluster.network.per_gpu else 1
        link = min(link, cluster.network.rate * ports)
    return link * cluster.assumed.network_utilisation


def exposed_seconds(sent: list[Message], cluster: Cluster, backward: float) -> float:
    """What the step waits for: what is not hidden, the last bucket of DDP, and what the backward pass is too short for.

    Args:
        backward: seconds of the last micro batch's backward pass.
    """
    waited = 0.0
    for message in sent:
        taken = seconds(message, cluster)
        if message.hidden:
            last = taken * min(1.0, _DDP_BUCKET / max(message.bytes, 1))
            taken = max(last, taken - backward)
        waited += taken
    return waited
