"""A run that is cut and goes on equals one that was never cut: bit for bit alone, to 1e-5 across worlds and engines."""

import os
import random
import signal
import time

import pytest
from safetensors.torch import load_file

STEPS = "schedule.max_steps=60"
SAVE = "checkpoint.every_steps=5"


@pytest.fixture(scope="module")
def unbroken(runner):
    return runner.trained("unbroken", STEPS, SAVE, "ema.decay=0.9")


def killed_after(runner, run, step, *overrides):
    """Start or go on with a run and SIGKILL it (and its loader workers) once `step` is in its metrics."""
    process = runner.start(run, *overrides)
    metrics = runner.folder / run / "metrics.jsonl"
    while f'"step": {step},' not in (metrics.read_text() if metrics.exists() else ""):
        assert process.poll() is None, f"{run} ended before step {step}:\n{process.communicate()[1]}"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_twice_in_one_epoch(runner, unbroken, workers):
    run = f"killed-{workers}"
    overrides = [STEPS, SAVE, "ema.decay=0.9", f"data.workers={workers}"]
    first, second = sorted(random.SystemRandom().sample(range(8, 56), 2))
    print(f"killed after steps {first} and {second}")
    killed_after(runner, run, first, *overrides)
    killed_after(runner, run, second, *overrides)
    resumed = runner.trained(run, *overrides)
    assert "going on from" in resumed.err
    assert resumed.losses == unbroken.losses  # every bit of every loss, steps 1 to 60
    for name in ("model.safetensors", "optimizer.safetensors", "ema.safetensors"):
        ours, theirs = (load_file(r.run_dir / "checkpoints" / "step-00000060" / name) for r in (resumed, unbroken))
        assert all(ours[key].equal(theirs[key]) for key in theirs)


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
