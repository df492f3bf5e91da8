"""Restoration takes the path of everything else: one loss trace under every engine and layout, exact resume."""

import os
import signal
import time

import pytest
from safetensors.torch import load_file

# A mosaic in any phase and noise of any level: what is random must not depend on who reads a sample.
RANDOM = ["data.degradation.phase=any", "data.degradation.sigma=[0, 25]"]


@pytest.fixture(scope="module")
def reference(restoration):
    return restoration.trained("reference", *RANDOM)


LAYOUTS = [
    pytest.param(2, ["data.workers=2"], id="accelerate-2-workers-2"),
    pytest.param(2, ["batch.micro_batch=2"], id="accelerate-2-accumulation-4"),
    pytest.param(1, ["engine.name=deepspeed"], id="deepspeed-0-1"),
    pytest.param(2, ["engine.name=deepspeed", "engine.zero_stage=2", "batch.micro_batch=4"], id="deepspeed-2-2"),
    pytest.param(2, ["engine.name=deepspeed", "engine.zero_stage=3"], id="deepspeed-3-2"),
]


@pytest.mark.parametrize("world, overrides", LAYOUTS)
def test_losses_and_metrics_agree(restoration, reference, world, overrides, request):
    run = restoration.trained(request.node.callspec.id, *RANDOM, *overrides, world=world)
    assert list(run.losses) == list(range(1, 21))
    assert list(run.losses.values()) == pytest.approx(list(reference.losses.values()), rel=1e-5)
    assert run.summary["metrics"] == pytest.approx(reference.summary["metrics"], rel=1e-5)


@pytest.mark.parametrize(
    "name, kwargs",
    [
        ("ugtv", "{depth: 1, layers: 2, steps: 3}"),
        ("ugtv_fast", "{depth: 1, dim: 12, noise_aware: true}"),
    ],
)
def test_graph_networks_agree_too(restoration, name, kwargs):
    """At the rate above, Adam lets rounding grow in weights whose gradient is near zero: 1e-4 in 20 steps, also where
    one process accumulates the same micro batches."""
    model = [f"model.name={name}", "model.kwargs=null", f"model.kwargs={kwargs}", "optimizer.lr=2e-4"]
    model.append("schedule.max_steps=8")  # one of UGTV takes a second
    alone = restoration.trained(f"{name}-1", *RANDOM, *model)
    shared = restoration.trained(f"{name}-2", *RANDOM, *model, world=2)
    assert list(shared.losses.values()) == pytest.approx(list(alone.losses.values()), rel=1e-5)
    assert len(set(alone.losses.values())) == 8


def test_the_trace_is_worth_comparing(reference):
    assert len(set(reference.losses.values())) == 20
    assert reference.losses[20] < reference.losses[1]
    assert reference.summary["metrics"]["psnr"] > 15


def test_killed_and_gone_on_with_equals_unbroken(restoration):
    overrides = [*RANDOM, "schedule.max_steps=60", "checkpoint.every_steps=4", "ema.decay=0.9", "data.workers=1"]
    unbroken = restoration.trained("unbroken", *overrides)
    process = restoration.start("killed", *overrides)
    metrics = restoration.folder / "killed" / "metrics.jsonl"
    while '"step": 9,' not in (metrics.read_text() if metrics.exists() else ""):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    resumed = restoration.trained("killed", *overrides)
    assert "going on from" in resumed.err
    assert resumed.losses == unbroken.losses
    for name in ("model.safetensors", "optimizer.safetensors", "ema.safetensors"):
        ours, theirs = (load_file(r.run_dir / "checkpoints" / "step-00000060" / name) for r in (resumed, unbroken))
        assert all(ours[key].equal(theirs[key]) for key in theirs)


def test_a_run_does_not_go_on_with_another_degradation(restoration, reference):
    run = restoration.train("reference", "schedule.max_steps=30")
    assert run.code == 2
    assert "'phase': 'any'" in run.err and "'phase': 'RGGB'" in run.err and "Traceback" not in run.err
    assert run.losses == reference.losses
    run = restoration.train("reference", *RANDOM, "schedule.max_steps=30", "data.patch=24")
    assert run.code == 2 and "data.patch=32, the recipe says 24" in run.err
