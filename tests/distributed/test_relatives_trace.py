"""ToST on one process and on two: its batch norms see the whole batch, so the losses agree."""

import pytest
import torch
from safetensors.torch import load_file

# At a larger rate Adam lets rounding grow in weights whose gradient is near zero.
TOST = [
    "model.name=tost_tiny_patch16_224",
    "model.kwargs=null",
    "model.kwargs={img_size: 28, in_chans: 1, patch_size: 4, embed_dim: 32, depth: 2, num_heads: 2}",
    "optimizer.lr=2e-4",
    "schedule.max_steps=8",
]


def test_batch_norms_see_the_whole_batch(runner):
    alone = runner.trained("alone", *TOST)
    shared = runner.trained("shared", *TOST, world=2)
    assert list(shared.losses.values()) == pytest.approx(list(alone.losses.values()), rel=1e-5)
    assert len(set(alone.losses.values())) == 8
    assert shared.summary["metrics"]["loss"] == pytest.approx(alone.summary["metrics"]["loss"], rel=1e-5)
    ours, theirs = (
        load_file(run.run_dir / "checkpoints" / "step-00000008" / "model.safetensors") for run in (shared, alone)
    )
    assert ours.keys() == theirs.keys()
    statistics = [name for name in ours if "running" in name]
    assert len(statistics) == 4
    for name in statistics:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-6)
