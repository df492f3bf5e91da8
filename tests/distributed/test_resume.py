"""A run that goes on with other processes, or under another engine, equals one that was never cut, to 1e-5.

Runs that are killed and go on where they were are in tests/faults/test_fault_table.py: they are equal in every bit.
"""

import pytest

STEPS = "schedule.max_steps=60"
SAVE = "checkpoint.every_steps=5"


@pytest.fixture(scope="module")
def unbroken(runner):
    return runner.trained("unbroken", STEPS, SAVE, "ema.decay=0.9")


def test_worlds_1_2_1(runner, unbroken):
    run = "worlds"
    runner.trained(run, SAVE, "ema.decay=0.9", "schedule.max_steps=20")
    runner.trained(run, SAVE, "ema.decay=0.9", "schedule.max_steps=40", world=2)
    last = runner.trained(run, SAVE, "ema.decay=0.9", STEPS)
    assert_same(last, unbroken)


@pytest.mark.parametrize("stage, world", [(2, 2), (3, 2), (0, 1)])
def test_accelerate_deepspeed_accelerate(runner, unbroken, stage, world):
    run = f"engines-{stage}-{world}"
    other = ["engine.name=deepspeed", f"engine.zero_stage={stage}"]
    runner.trained(run, SAVE, "ema.decay=0.9", "schedule.max_steps=20")
    runner.trained(run, SAVE, "ema.decay=0.9", "schedule.max_steps=40", *other, world=world)
    last = runner.trained(run, SAVE, "ema.decay=0.9", STEPS)
    assert_same(last, unbroken)


def assert_same(run, unbroken):
    assert list(run.losses) == list(unbroken.losses)
    assert list(run.losses.values()) == pytest.approx(list(unbroken.losses.values()), rel=1e-5)
    assert run.summary["metrics"]["loss"] == pytest.approx(unbroken.summary["metrics"]["loss"], rel=1e-5)


def test_another_stream_is_refused(runner, unbroken):
    run = runner.train("unbroken", STEPS, "seed=5")
    assert run.code == 2
    assert "seed=0" in run.err and "model.init_from" in run.err
    other = runner.train("unbroken", STEPS, "optimizer={name: lion, lr: 2.0e-3, clip_norm: 1.0}")
    assert other.code == 2 and "optimizer.name=lion" in other.err
    assert unbroken.losses == run.losses and (unbroken.run_dir / "summary.json").exists()  # nothing was changed
