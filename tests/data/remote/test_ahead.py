"""What comes next is fetched before it is needed, as the plan says, and what is over is let go."""

import os
import time

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from crate_graph.data import plan_epoch
from crate_graph.data.dataset import open_dataset
from crate_graph.data.outlook import Outlook
from crate_graph.data.stream import SampleReader

DEADLINE = 60  # seconds


def wait_for(condition):
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def needed(plan, slots, step, first):
    """The shards of the samples that the slots give to a step."""
    window = slice(step * plan.per_slot, (step + 1) * plan.per_slot)
    numbers = np.concatenate([plan.slot(slot)[window] for slot in slots])
    return set((np.searchsorted(first, numbers[numbers >= 0], side="right") - 1).tolist())


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=12),
    slots=st.sampled_from([1, 2, 4]),
    q=st.integers(1, 3),
    block=st.integers(1, 20),
    ahead=st.integers(0, 3),
    shuffle=st.booleans(),
)
@example(counts=[1, 1, 1], slots=1, q=2, block=1, ahead=1, shuffle=False)  # a step that is longer than a block
@example(counts=[1, 1], slots=1, q=2, block=1, ahead=1, shuffle=False)  # and over the end of the epoch
def test_the_shards_of_each_step_come_first_and_the_next_are_known_before(counts, slots, q, block, ahead, shuffle):
    counts = np.array([*counts, slots * q])
    first = np.cumsum(counts) - counts
    arguments = dict(
        seed=3, slots=slots, global_batch=slots * q, block=block, shuffle=shuffle, tail="drop" if shuffle else "pad"
    )
    plan, after = plan_epoch(counts, epoch=0, **arguments), plan_epoch(counts, epoch=1, **arguments)
    outlook = Outlook(first, block, ahead)
    group = range(slots // 2, slots)
    before = None
    for step in range(plan.steps):
        now = needed(plan, group, step, first)
        found = outlook.shards(plan, group, step, after)
        assert now <= set(found) and len(set(found)) == len(found)
        if ahead == 0:  # no more than that, and what is needed on both sides of the step
            past, later = (
                set().union(*(needed(plan, [slot], s, first) for s in steps for slot in group))
                for steps in (range(step), range(step, plan.steps))
            )
            assert set(found) <= now | (past & later)
        elif before is not None:
            assert now <= before  # each shard was in sight one step earlier
        before = set(found)
    if ahead:
        assert needed(after, group, 0, first) <= before  # over the end of the epoch, too


def test_the_look_ahead_is_bounded():
    counts = [10] * 100
    first = np.arange(100) * 10
    plan = plan_epoch(counts, seed=0, epoch=0, slots=4, global_batch=4, block=10)
    outlook = Outlook(first, 10, 1)
    for step in range(plan.steps):
        assert len(outlook.shards(plan, [1], step)) <= 4  # two for each of two blocks


def held(reader):
    return set(reader._remote._held)


def test_the_next_shard_is_here_before_it_is_asked_for(dataset, server, cache):
    remote = open_dataset(server.url, cache=cache())
    reader = SampleReader(remote, remote.split("train"))
    reader.expect([2, 0, 3])
    wait_for(lambda: held(reader) == {0, 2, 3})  # and nobody has read a sample
    local = SampleReader(dataset, dataset.split("train"))
    assert reader.read(0)[0].tobytes() == local.read(0)[0].tobytes()
    assert len(server.answered("/train-000000.tar")) == 1
    reader.expect([3])
    assert held(reader) == {3}
    reader.close()
    local.close()
    assert not held(reader)


def test_without_a_plan_shards_are_expected_in_their_order(server, cache):
    remote = open_dataset(server.url, cache=cache())
    reader = SampleReader(remote, remote.split("train"))
    reader.read(8)  # of the second shard
    wait_for(lambda: held(reader) == {1, 2})
    reader.read(12)
    wait_for(lambda: held(reader) == {2, 3})
    reader.close()
    assert not server.answered("/train-000000.tar")


def test_a_fetch_ahead_that_fails_is_tried_again_when_it_is_needed(server, cache, caplog):
    remote = open_dataset(server.url, cache=cache(retries=0, timeout=0.3))
    reader = SampleReader(remote, remote.split("train"))
    server.fail("/train-000003.tar", "503")
    reader.expect([3])
    wait_for(lambda: "not read ahead" in caplog.text)
    assert reader.read(22)[1] == 22 % 5
    reader.close()


def test_without_room_nothing_is_read_ahead_and_the_log_says_so_once(server, cache, caplog):
    remote = open_dataset(server.url, cache=cache(gigabytes=1e-9))
    reader = SampleReader(remote, remote.split("train"))
    reader.expect([0])
    assert reader.read(0)[1] == 0
    for following in ([0, 1], [0, 2], [0, 3]):
        reader.expect(following)
        wait_for(lambda number=following[1]: number in reader._remote._put_off)
    assert held(reader) == {0} and not server.answered("/train-000003.tar")
    assert caplog.text.count("no room to read ahead; raise data.cache.gigabytes") == 1
    assert reader.read(22)[1] == 22 % 5  # what is needed comes all the same
    reader.close()


def test_closing_ends_what_is_under_way(server, cache):
    remote = open_dataset(server.url, cache=cache(timeout=30.0))
    reader = SampleReader(remote, remote.split("train"))
    server.chunk_pause = 0.2
    reader.expect([0, 1])
    wait_for(lambda: server.answered("/train-000001.tar"))
    reader.close()
    threads = reader._remote._threads
    for thread in threads:
        thread.join(DEADLINE)
    assert threads and not any(thread.is_alive() for thread in threads)
    assert list(cache().folder.glob("*/*.part"))  # what came is kept


@pytest.mark.parametrize("workers", [0, 2])
def test_a_small_cache_carries_an_epoch(make_dataset, serve, cache, workers):
    """The cap holds what is in use and little more; every sample comes, and no shard twice in an epoch."""
    from crate_graph.config.schema import EvalTransform
    from crate_graph.data import PlannedLoader
    from crate_graph.data.augment import build_eval_transform

    dataset = make_dataset((4,) * 24, size=(64, 64))
    server = serve(dataset.root)
    size = max(path.stat().st_size for path in dataset.root.glob("*.tar"))
    cap = 10 * size + 24 * 1500
    remote = open_dataset(server.url, cache=cache(gigabytes=cap / 1e9))
    view = build_eval_transform(
        EvalTransform(size=64, resize=None), mean=dataset.mean, std=dataset.std, channels=3, num_classes=5
    )
    loader = PlannedLoader(
        "train", dataset=remote, transform=view, slots=2, global_batch=4, block=4, seed=1, workers=workers
    )
    samples = [number for batch in loader.epoch(0) for number in batch.samples.tolist()]
    loader.close()
    assert sorted(samples) == list(range(96))
    fetched = [len(server.answered(f"/train-{number:06d}.tar")) for number in range(24)]
    # Besides: a shard across the border of two slots is needed at both ends of the epoch; the next epoch has begun.
    assert min(fetched) == 1 and sum(fetched) <= 24 + 2 + 4
    # a fetch that was under way may still make room, and a file go while the folder is listed
    kept = [os.path.join(folder, name) for folder, _, names in os.walk(cache().folder) for name in names]
    assert sum(os.path.getsize(path) for path in kept if path.endswith(".tar") and os.path.exists(path)) <= cap
