import random
import time

import numpy as np
import pytest
import torch

from crate_graph.config.schema import EvalTransform, TrainTransform
from crate_graph.data import PlannedLoader
from crate_graph.data.augment import build_eval_transform, build_train_transform
from crate_graph.errors import UserError

MIXED = {"mixup": 0.8, "cutmix": 1.0, "random_erasing": 0.5, "rand_augment": "rand-m9-n2-mstd0.5"}


def train_view(dataset, **config):
    config = TrainTransform(**{"size": 12, "crop": "pad_and_crop", "padding": 2, **config})
    return build_train_transform(
        config, mean=dataset.mean, std=dataset.std, channels=dataset.channels, num_classes=dataset.num_classes
    )


def eval_view(dataset):
    return build_eval_transform(
        EvalTransform(size=12, resize=None),
        mean=dataset.mean,
        std=dataset.std,
        channels=dataset.channels,
        num_classes=dataset.num_classes,
    )


@pytest.fixture
def loader():
    """Makes loaders and closes them."""
    made = []

    def make(dataset, view, **change):
        arguments = dict(slots=4, global_batch=8, block=3, seed=1) | change
        made.append(PlannedLoader("train", dataset=dataset, transform=view, **arguments))
        return made[-1]

    yield make
    for one in made:
        one.close()


def global_batches(loader, dataset, view, epoch, world, workers, start=0, **change):
    """The global batches, put together from the shares of all ranks."""
    ranks = [loader(dataset, view, rank=rank, world=world, workers=workers, **change) for rank in range(world)]
    assert len({one.steps(epoch) for one in ranks}) == 1
    for shares in zip(*(one.epoch(epoch, start) for one in ranks), strict=True):
        yield {
            name: torch.cat([getattr(share, name) for share in shares])
            for name in ("images", "targets", "weights", "samples")
        }


def same(one, other):
    one, other = list(one), list(other)
    return len(one) == len(other) and all(
        torch.equal(x[name], y[name]) for x, y in zip(one, other, strict=True) for name in x
    )


@pytest.mark.parametrize("config", [{}, MIXED], ids=["plain", "mixed"])
@pytest.mark.parametrize(("world", "workers"), [(1, 1), (1, 2), (2, 0), (2, 2), (4, 0), (4, 1)])
def test_batches_are_the_same_on_any_layout(make_dataset, loader, config, world, workers):
    dataset = make_dataset((7, 1, 9, 4))
    view = train_view(dataset, **config)
    for epoch in (0, 1):
        reference = global_batches(loader, dataset, view, epoch, 1, 0)
        assert same(reference, global_batches(loader, dataset, view, epoch, world, workers))


def test_batches_follow_the_plan(make_dataset, loader):
    dataset = make_dataset((7, 1, 9, 4))
    one = loader(dataset, train_view(dataset))
    batches = list(one.epoch(2))
    assert len(batches) == one.steps(2) == 2
    for step, batch in enumerate(batches):
        assert batch.samples.tolist() == one.plan(2).batch(step).tolist()
        assert batch.targets.tolist() == [n % 5 for n in batch.samples.tolist()]
        assert batch.images.shape == (8, 3, 12, 12) and batch.images.dtype == torch.float32
        assert batch.targets.dtype == batch.samples.dtype == torch.int64 and batch.weights.tolist() == [1.0] * 8


@pytest.mark.parametrize("workers", [0, 2])
def test_restart_at_a_step_on_another_layout(make_dataset, loader, workers):
    dataset = make_dataset((20, 30))
    view = train_view(dataset, **MIXED)
    whole = list(global_batches(loader, dataset, view, 3, 1, 0))
    assert same(whole[4:], global_batches(loader, dataset, view, 3, 2, workers, start=4))
    assert list(global_batches(loader, dataset, view, 3, 1, workers, start=len(whole))) == []


def test_restart_reads_nothing_that_it_skips(make_dataset, loader, monkeypatch):
    dataset = make_dataset((20, 30))
    one = loader(dataset, train_view(dataset))
    read = []
    plain = one._reader._samples.read
    monkeypatch.setattr(one._reader._samples, "read", lambda sample: read.append(sample) or plain(sample))
    list(one.epoch(0, start=one.steps(0) - 1))
    assert len(read) == 8


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_that_is_left_early_leaves_no_trace(make_dataset, loader, workers):
    dataset = make_dataset((20, 30))
    view = train_view(dataset)
    one = loader(dataset, view, workers=workers)
    for _ in range(3):
        next(iter(one.epoch(0)))
    assert [b.samples.tolist() for b in one.epoch(1)] == [one.plan(1).batch(t).tolist() for t in range(one.steps(1))]


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_counts_every_sample_once(make_dataset, loader, workers):
    dataset = make_dataset((7, 1, 9, 4))
    batches = list(
        global_batches(
            loader, dataset, eval_view(dataset), 0, 2, workers, shuffle=False, tail="pad", replace_damaged=False
        )
    )
    samples = torch.cat([batch["samples"] for batch in batches])
    weights = torch.cat([batch["weights"] for batch in batches])
    assert sorted(samples[weights == 1].tolist()) == list(range(21)) and weights.sum() == 21
    assert all((batch["images"][batch["weights"] == 0] == 0).all() for batch in batches)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("replace", [True, False])
def test_damage_is_replaced_or_weighs_nothing_and_is_told(make_dataset, loader, workers, replace):
    dataset = make_dataset((8, 8), change=lambda n, m: {**m, "png": b"junk"} if n in (3, 9) else m)
    one = loader(dataset, eval_view(dataset), workers=workers, tail="pad", replace_damaged=replace)
    batches = list(one.epoch(0))
    damaged = sorted(item for batch in batches for item in batch.damaged)
    assert damaged == [
        ("train-000000.tar", "s0003", "unknown image format"),
        ("train-000001.tar", "s0009", "unknown image format"),
    ]
    for batch in batches:
        for sample, target, weight in zip(
            *(x.tolist() for x in (batch.samples, batch.targets, batch.weights)), strict=True
        ):
            hurt = sample in (3, 9)
            assert weight == (0 if hurt and not replace else 1)
            if not hurt or replace:
                assert target == (sample + hurt) % 5


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_users_mistake_reaches_the_user_as_one_line(make_dataset, loader, workers):
    dataset = make_dataset((8, 8), change=lambda n, m: {**m, "cls": b"9"} if n == 5 else m)
    one = loader(dataset, train_view(dataset), workers=workers)
    with pytest.raises(UserError) as error:
        list(one.epoch(0))
    assert "train-000000.tar: sample 's0005' has label 9" in str(error.value)
    assert "Traceback" not in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_callers_generators_are_not_touched(make_dataset, loader, workers):
    dataset = make_dataset((20,))
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    one = loader(dataset, train_view(dataset, **MIXED), workers=workers)
    for epoch in (0, 1):
        list(one.epoch(epoch))
    drawn = random.random(), np.random.rand(), torch.rand(()).item()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    assert drawn == (random.random(), np.random.rand(), torch.rand(()).item())


def test_mixed_targets_are_distributions(make_dataset, loader):
    dataset = make_dataset((20,))
    for batch in loader(dataset, train_view(dataset, mixup=1.0)).epoch(0):
        assert batch.targets.shape == (8, 5) and batch.targets.dtype == torch.float32
        torch.testing.assert_close(batch.targets.sum(1), torch.ones(8))


def test_a_mixture_is_keyed_by_seed_epoch_step_and_slot(make_dataset, loader):
    dataset = make_dataset((20, 30))
    view = train_view(dataset, mixup=1.0)
    plain = loader(dataset, train_view(dataset)).epoch(2)
    for step, (mixed, batch) in enumerate(zip(loader(dataset, view).epoch(2), plain, strict=True)):
        for slot, (images, targets) in enumerate(zip(batch.images.split(2), batch.targets.split(2), strict=True)):
            expected = view.mix(images, targets, (1, 2, step, slot))
            assert torch.equal(mixed.images[2 * slot : 2 * slot + 2], expected[0])
            assert torch.equal(mixed.targets[2 * slot : 2 * slot + 2], expected[1])


@pytest.mark.parametrize(("world", "workers"), [(3, 0), (1, 3), (2, 4)])
def test_readers_must_divide_the_slots(make_dataset, loader, world, workers):
    dataset = make_dataset((20,))
    with pytest.raises(UserError, match=rf"4 slots do not divide among {world} processes x {max(1, workers)} workers"):
        loader(dataset, train_view(dataset), world=world, workers=workers)


def test_too_few_samples_is_said_at_once(make_dataset, loader):
    dataset = make_dataset((5,))
    with pytest.raises(UserError, match="5 samples are fewer than one global batch of 8"):
        loader(dataset, train_view(dataset))


def test_mixup_with_padding_is_refused(make_dataset, loader):
    dataset = make_dataset((20,))
    with pytest.raises(ValueError, match="tail='drop'"):
        loader(dataset, train_view(dataset, mixup=1.0), tail="pad")


def test_split_cuts_in_order_without_copying(make_dataset, loader):
    dataset = make_dataset((8, 8), change=lambda n, m: {**m, "png": b"junk"} if n == 3 else m)
    batches = [batch for batch in loader(dataset, train_view(dataset)).epoch(0) if batch.damaged]
    pieces = batches[0].split(4)
    assert torch.equal(torch.cat([piece.samples for piece in pieces]), batches[0].samples)
    assert [len(piece) for piece in pieces] == [2] * 4 and [len(piece.damaged) for piece in pieces] == [1, 0, 0, 0]
    assert pieces[1].images.data_ptr() == batches[0].images[2:].data_ptr()
    assert pieces[0].to("meta").images.device.type == "meta"
    with pytest.raises(ValueError, match="3 equal parts"):
        batches[0].split(3)


def test_close_ends_the_workers_though_an_epoch_is_under_way(make_dataset, loader):
    dataset = make_dataset((40,))
    one = loader(dataset, train_view(dataset), workers=2)
    batches = one.epoch(0)
    next(batches)
    workers = list(one._results._workers)
    one.close()
    assert len(workers) == 2 and not any(worker.is_alive() for worker in workers)


def test_close_ends_a_worker_that_is_stuck(make_dataset, loader, monkeypatch):
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)
    dataset = make_dataset((40,))
    view = eval_view(dataset)
    view.view = lambda image, key: time.sleep(1000)
    one = loader(dataset, view, workers=2)
    one._tasks.tasks = [(0, 0, 0), (0, 0, 1)]
    one._results = iter(one._workers)
    workers = list(one._results._workers)
    time.sleep(0.5)
    one.close()
    for worker in workers:
        worker.join(5)
    codes = [worker.exitcode for worker in workers]
    for worker in workers:
        worker.kill()  # only after a failure is there anything to kill
    assert codes == [0, 0]
