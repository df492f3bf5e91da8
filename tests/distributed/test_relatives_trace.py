"""CRATE's relatives take the path of everything else: one loss trace under every engine and layout, batch norms too.

The rate is small where Adam would let rounding grow in weights whose gradient is near zero.
"""

import pytest
import torch
from safetensors.torch import load_file

KWARGS = "{img_size: 28, in_chans: 1, embed_dim: 32, depth: 2, num_heads: 2, PATCH}"
TOST = [
    "model.name=tost_tiny_patch16_224",
    "model.kwargs=null",
    f"model.kwargs={KWARGS.replace('PATCH', 'patch_size: 4')}",
    "optimizer.lr=2e-4",
]
MAE = [
    "task.kind=masked_autoencoding",
    "model.name=crate_mae_tiny_patch16_224",
    "model.kwargs=null",
    f"model.kwargs={KWARGS.replace('PATCH', 'patch_size: 4')}",
    "optimizer.lr=2e-4",
]


@pytest.fixture(scope="module")
def tost(runner):
    return runner.trained("tost", *TOST)


@pytest.mark.parametrize("engine", [["engine.name=accelerate"], ["engine.name=deepspeed", "engine.zero_stage=2"]])
def test_batch_norms_see_the_whole_batch(runner, tost, engine):
    shared = runner.trained(f"tost-{len(engine)}", *TOST, *engine, world=2)
    assert list(shared.losses) == list(range(1, 21))
    assert list(shared.losses.values()) == pytest.approx(list(tost.losses.values()), rel=1e-5)
    assert shared.summary["metrics"]["loss"] == pytest.approx(tost.summary["metrics"]["loss"], rel=1e-5)
    ours, theirs = (
        load_file(run.run_dir / "checkpoints" / "step-00000020" / "model.safetensors") for run in (shared, tost)
    )
    assert ours.keys() == theirs.keys()
    statistics = [name for name in ours if "running" in name]
    assert len(statistics) == 4
    for name in statistics:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def autoencoder(runner):
    return runner.trained("mae", *MAE)


LAYOUTS = [
    pytest.param(2, ["data.workers=2", "batch.micro_batch=4"], id="accelerate-2-workers-2-accumulation-2"),
    pytest.param(2, ["engine.name=deepspeed", "engine.zero_stage=3"], id="deepspeed-3-2"),
]


@pytest.mark.parametrize("world, overrides", LAYOUTS)
def test_the_same_patches_are_hidden_on_any_world_size(runner, autoencoder, world, overrides, request):
    run = runner.trained(f"mae-{request.node.callspec.id}", *MAE, *overrides, world=world)
    assert list(run.losses.values()) == pytest.approx(list(autoencoder.losses.values()), rel=1e-5)
    assert run.summary["metrics"] == pytest.approx(autoencoder.summary["metrics"], rel=1e-5)


def test_the_traces_are_worth_comparing(tost, autoencoder):
    for run in (tost, autoencoder):
        assert len(set(run.losses.values())) == 20
        assert run.losses[20] < run.losses[1]


def test_a_run_does_not_go_on_with_another_mask_ratio(runner, autoencoder):
    run = runner.train("mae", *MAE, "task.mask_ratio=0.5", "schedule.max_steps=30")
    assert run.code == 2 and "task.mask_ratio=0.75, the recipe says 0.5" in run.err
