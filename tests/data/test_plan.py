import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crate_graph.data.plan import PAD, plan_epoch
from crate_graph.errors import UserError

counts = st.lists(st.integers(1, 40), min_size=1, max_size=9)
slots = st.sampled_from([1, 2, 4, 8])


def everything(plan):
    return np.concatenate([plan.batch(step) for step in range(plan.steps)])


@settings(deadline=None, max_examples=200)
@given(counts=counts, slots=slots, per_slot=st.integers(1, 4), block=st.integers(1, 20), seed=st.integers(0, 99))
def test_every_sample_comes_once(counts, slots, per_slot, block, seed):
    total, global_batch = sum(counts), slots * per_slot
    plan = plan_epoch(
        counts, seed=seed, epoch=1, slots=slots, global_batch=global_batch, block=block, shuffle=True, tail="pad"
    )
    numbers = everything(plan)
    assert plan.steps == math.ceil(total / global_batch)
    assert sorted(numbers[numbers != PAD]) == list(range(total))
    assert [plan.real(step) for step in range(plan.steps)] == [
        int((plan.batch(step) != PAD).sum()) for step in range(plan.steps)
    ]


@settings(deadline=None, max_examples=200)
@given(counts=counts, slots=slots, per_slot=st.integers(1, 4), block=st.integers(1, 20), seed=st.integers(0, 99))
def test_drop_loses_less_than_a_batch(counts, slots, per_slot, block, seed):
    total, global_batch = sum(counts), slots * per_slot
    arguments = dict(seed=seed, epoch=1, slots=slots, global_batch=global_batch, block=block)
    if total < global_batch:
        with pytest.raises(UserError, match="fewer than one global batch"):
            plan_epoch(counts, **arguments)
        return
    plan = plan_epoch(counts, **arguments)
    numbers = everything(plan)
    assert len(set(numbers.tolist())) == len(numbers) and numbers.min() >= 0
    assert 0 <= total - len(numbers) < global_batch
    assert all(plan.real(step) == global_batch for step in range(plan.steps))


@given(
    counts=counts, slots=slots, per_slot=st.integers(1, 4), world=st.sampled_from([1, 2, 4]), workers=st.integers(1, 2)
)
def test_any_group_of_readers_assembles_the_global_batch(counts, slots, per_slot, world, workers):
    if slots % (world * workers):
        return
    plan = plan_epoch(counts, seed=0, epoch=2, slots=slots, global_batch=slots * per_slot, tail="pad")
    group = slots // (world * workers)
    for step in range(plan.steps):
        window = slice(step * per_slot, (step + 1) * per_slot)
        parts = [
            plan.slot(slot)[window]
            for reader in range(world * workers)
            for slot in range(reader * group, (reader + 1) * group)
        ]
        assert np.array_equal(np.concatenate(parts), plan.batch(step))


def test_the_documented_example_of_block_and_slot():
    plan = plan_epoch([4, 3, 4], seed=5, epoch=0, slots=2, global_batch=4, block=3, tail="pad")
    first, second = plan.slot(0)[:5], plan.slot(1)[:6]
    flat = plan_epoch([4, 3, 4], seed=5, epoch=0, slots=2, global_batch=4, block=1, tail="pad")  # no block is permuted
    assert set(first[:3]) == set(flat.slot(0)[:3]) and set(second[3:]) == set(flat.slot(1)[3:6])
    ring = np.concatenate([flat.slot(0)[:5], flat.slot(1)[:6]])
    shard = np.searchsorted([4, 7, 11], ring, side="right")
    assert np.count_nonzero(np.diff(shard)) in (2, 3)  # whole shards end to end, turned: at most one of them is cut


def test_epochs_and_seeds_differ_and_repeat():
    def numbers(seed, epoch):
        return everything(plan_epoch([50, 50], seed=seed, epoch=epoch, slots=4, global_batch=20, block=8)).tolist()

    assert numbers(0, 0) == numbers(0, 0)
    assert len({tuple(numbers(seed, epoch)) for seed in (0, 1) for epoch in (0, 1, 2)}) == 6


def test_the_sequence_of_today_is_the_sequence_of_tomorrow():
    """A checkpoint holds (epoch, step) only, so a change of these numbers breaks every resumed run."""
    plan = plan_epoch([5, 3, 6], seed=7, epoch=3, slots=2, global_batch=4, block=4)
    assert [plan.batch(step).tolist() for step in range(plan.steps)] == GOLDEN


GOLDEN = [[2, 3, 11, 10], [1, 4, 8, 9], [5, 6, 0, 13]]


def test_natural_order_without_shuffle():
    plan = plan_epoch([5, 3, 6], seed=7, epoch=3, slots=2, global_batch=4, shuffle=False, tail="pad")
    assert plan.slot(0).tolist() == [0, 1, 2, 3, 4, 5, 6, PAD] and plan.slot(1).tolist() == [*range(7, 14), PAD]


def test_a_slot_of_a_large_set_is_planned_alone():
    plan = plan_epoch([10_000] * 1400, seed=0, epoch=0, slots=512, global_batch=4096)
    numbers = plan.slot(17)
    assert len(numbers) == plan.steps * 8 and list(plan._known) == [17]


def test_slots_must_divide_the_batch():
    with pytest.raises(UserError, match="not a multiple of 3 slots"):
        plan_epoch([9], seed=0, epoch=0, slots=3, global_batch=8)
    with pytest.raises(UserError, match="no sample"):
        plan_epoch([], seed=0, epoch=0, slots=1, global_batch=8, tail="pad")
