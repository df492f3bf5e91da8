"""Mixed precision, activation checkpointing and baselines take the same path as everything else."""

import json

import pytest
import torch

from crate_graph.engine.objective import slow_precision


@pytest.fixture(scope="module")
def reference(runner):
    return runner.trained("reference")


def test_bf16_is_near_fp32_and_alike_under_every_engine(runner, reference):
    """Autocast rounds to 8 bits of mantissa; the engines add nothing of their own to that."""
    alone = runner.trained("bf16", "precision=bf16")
    assert list(alone.losses.values()) == pytest.approx(list(reference.losses.values()), rel=0.02)
    assert alone.losses != reference.losses
    assert ("no fast bf16" in alone.err) is not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    zero = runner.trained("bf16-zero", "precision=bf16", "engine.name=deepspeed", "engine.zero_stage=2", world=2)
    assert list(zero.losses.values()) == pytest.approx(list(alone.losses.values()), rel=0.01)


def test_a_precision_that_crawls_on_this_device_is_said(monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert "precision=fp32" in slow_precision("bf16", torch.device("cpu"))
    assert slow_precision("fp32", torch.device("cpu")) is None
    assert slow_precision("bf16", torch.device("cuda")) is None
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    assert slow_precision("bf16", torch.device("cpu")) is None


def test_fp16_finds_its_loss_scale_and_resumes_with_it(runner, reference):
    steps = ["precision=fp16", "checkpoint.every_steps=6"]
    whole = runner.trained("fp16", *steps, "schedule.max_steps=12")
    runner.trained("fp16-cut", *steps, "schedule.max_steps=6")
    cut = runner.trained("fp16-cut", *steps, "schedule.max_steps=12")
    assert cut.losses == whole.losses
    trained = [(step, loss) for step, loss in whole.losses.items() if loss is not None]
    assert [loss for _, loss in trained] == pytest.approx([reference.losses[step] for step, _ in trained], rel=0.02)
    states = [
        json.loads((run.run_dir / "checkpoints" / "step-00000012" / "state.json").read_text()) for run in (whole, cut)
    ]
    assert states[0]["loss_scale"] == states[1]["loss_scale"]
    assert states[0]["loss_scale"]["good_steps"] > 6  # the count did not start anew


@pytest.mark.parametrize(
    "mode, overrides, world",
    [
        ("layer", [], 1),
        ("block", [], 2),
        ("every_k", ["engine.name=deepspeed", "engine.zero_stage=3"], 2),
    ],
)
def test_activation_checkpointing_changes_no_loss(runner, reference, mode, overrides, world):
    run = runner.trained(f"checkpointing-{mode}", f"activation_checkpointing.mode={mode}", *overrides, world=world)
    assert list(run.losses.values()) == pytest.approx(list(reference.losses.values()), rel=1e-5)


def test_a_vit_baseline_with_lion_mixup_and_drop_path_resumes_exactly(runner):
    """Random numbers of the model and of the data are keyed to their place in the run."""
    overrides = [
        "model.name=vit_tiny_patch16_224",
        "model.kwargs.drop_path_rate=0.3",
        "optimizer={name: lion, lr: 3e-4, layer_decay: 0.8}",
        "data.train_transform={size: 28, crop: random_resized, mixup: 0.8, cutmix: 1.0, rand_augment: rand-m5-n2, "
        "random_erasing: 0.25}",
        "task.label_smoothing=0.1",
    ]
    whole = runner.trained("vit", *overrides, "data.workers=2")
    runner.trained("vit-cut", *overrides, "schedule.max_steps=7")
    assert runner.trained("vit-cut", *overrides).losses == whole.losses
