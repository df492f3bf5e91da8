"""Times of collectives against closed forms."""

from __future__ import annotations

from dataclasses import replace

import pytest

from crate_graph.config.schema import EngineConfig
from crate_graph.planning.hardware import Assumptions, find_device, find_network
from crate_graph.planning.state import Layout, gradient_bytes, state_bytes
from crate_graph.planning.traffic import Cluster, Message, exposed_seconds, messages, ring_rate, seconds, word_bytes

LAYOUT = Layout(groups=((10, 5), (4,)), frozen=(), buffers=0, moments=2, average=True)
ASSUMED = replace(Assumptions(), network_utilisation=0.5)


def cluster(nodes, gpus, network="100gbe"):
    return Cluster(nodes, gpus, find_device("h100"), find_network(network), ASSUMED)


def test_a_ring_moves_twice_the_tensor_for_an_all_reduce_and_once_for_the_others():
    here = cluster(2, 4)
    assert ring_rate(here) == 0.5 * 12.5e9  # one port a node, shared
    assert ring_rate(cluster(2, 4, "ndr")) == 0.5 * 4 * 50e9
    assert ring_rate(cluster(1, 8)) == 0.5 * 450e9
    size = 10**12  # so large that latency does not count
    once = 7 / 8 * size / ring_rate(here)
    assert seconds(Message("all-reduce", size, 1, False), here) == pytest.approx(2 * once, rel=1e-4)
    assert seconds(Message("all-gather", size, 3, False), here) == pytest.approx(3 * once, rel=1e-4)
    assert seconds(Message("all-reduce", size, 1, False), cluster(1, 1)) == 0


def test_what_hides_behind_the_backward_pass():
    here, message = cluster(2, 4), Message("all-reduce", 10**10, 1, True)
    taken = seconds(message, here)
    assert exposed_seconds([message], here, backward=0.0) == taken
    assert exposed_seconds([message], here, backward=taken / 2) == pytest.approx(taken / 2)
    last_bucket = taken * 25 * 2**20 / 10**10
    assert exposed_seconds([message], here, backward=2 * taken) == pytest.approx(last_bucket)
    assert exposed_seconds([message._replace(hidden=False)], here, backward=2 * taken) == taken


def test_messages_of_each_engine():
    def sent(accumulation=3, **engine):
        parts = messages(LAYOUT, EngineConfig(**engine), 2, accumulation)
        return [(m.collective, m.bytes, m.times) for m in parts if m.bytes != word_bytes(2)]

    assert sent() == [("all-reduce", 76, 1)]
    assert sent(name="deepspeed") == [("all-reduce", 76, 1)]
    assert sent(name="deepspeed", zero_stage=1) == [("all-reduce", 76, 1), ("all-gather", 80, 1)]
    assert sent(name="deepspeed", zero_stage=2) == [("all-reduce", 76, 3), ("all-gather", 80, 1)]
    assert sent(name="deepspeed", zero_stage=3) == [("all-gather", 80, 3), ("reduce-scatter", 80, 3)]
    assert messages(LAYOUT, EngineConfig(), 1, 1) == []


def test_state_of_uneven_shares():
    """15 and 4 elements on 2 ranks: groups are padded to 16 and 4, parameters to 10, 6 and 4."""
    one, three = (EngineConfig(name="deepspeed", zero_stage=stage) for stage in (1, 3))
    assert state_bytes(LAYOUT, one, 2) == {
        "weights": 4 * 20,
        "buffers": 0,
        "master": 4 * 10,
        "moments": 2 * 4 * 10 + 8,
        "ema": 4 * 19,
    }
    assert gradient_bytes(LAYOUT, one, 2) == 4 * (10 + 5 + 4 + 1)  # rank 1: of the first a part, the others, padding
    assert state_bytes(LAYOUT, three, 2)["weights"] == 4 * (5 + 3 + 2)
