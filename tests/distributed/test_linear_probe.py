"""Only the head learns: the same head under every engine, a backbone that keeps every bit, exact resume."""

import pytest
from safetensors.torch import load_file

LARGER = ["model.kwargs.img_size=35", "data.train_transform.size=35", "data.eval_transform.size=35"]
FROZEN = ["model.freeze=backbone", "model.new_head=true", "schedule.max_steps=8", "checkpoint.every_steps=4"]


@pytest.fixture(scope="module")
def pretrained(runner):
    return runner.trained("pretrained", "schedule.max_steps=3")


@pytest.fixture(scope="module")
def words(pretrained):
    """At another image size. Were the backbone not in evaluation mode, stochastic depth would change every loss."""
    return [f"model.init_from={pretrained.run_dir}", *FROZEN, *LARGER, "model.kwargs.drop_path_rate=0.0"]


@pytest.fixture(scope="module")
def alone(runner, words):
    return runner.trained("alone", *words)


def weights(run, step=8):
    return load_file(run.run_dir / "checkpoints" / f"step-{step:08d}" / "model.safetensors")


def test_the_backbone_keeps_every_bit_and_the_head_learns(alone, pretrained):
    first, last, before = weights(alone, 4), weights(alone), weights(pretrained, 3)
    moved = {name for name in last if not last[name].equal(first[name])}
    assert moved == {"head.weight", "head.bias"}
    assert all(last[name].equal(before[name]) for name in before if name not in moved | {"pos_embed"})
    moments = load_file(alone.run_dir / "checkpoints" / "step-00000008" / "optimizer.safetensors")
    assert {name.split("/")[1] for name in moments} == moved
    assert alone.summary["trained_parameters"] == 330 and "330 of them trained" in alone.err
    for line in ("resized pos_embed from 4 x 4 to 5 x 5", "replaced head: a new one was asked for"):
        assert line in alone.err


def test_two_processes_equal_one(runner, words, alone):
    """Also with activations recomputed, in micro batches, and with stochastic depth, which is off in evaluation."""
    more = ["activation_checkpointing.mode=layer", "batch.micro_batch=4", "model.kwargs.drop_path_rate=0.5"]
    assert_same(runner.trained("two", *words, *more, world=2), alone)


def assert_same(run, alone):
    assert list(run.losses.values()) == pytest.approx(list(alone.losses.values()), rel=1e-5)
    assert run.summary["metrics"]["loss"] == pytest.approx(alone.summary["metrics"]["loss"], rel=1e-5)
    backbone = weights(alone).keys() - {"head.weight", "head.bias"}
    assert all(weights(run)[name].equal(weights(alone)[name]) for name in backbone)


def test_it_goes_on_under_another_engine_and_without_what_it_started_from(runner, words, alone):
    three, two = (f"engine={{name: deepspeed, zero_stage: {stage}}}" for stage in (3, 2))
    runner.trained("cut", *words, "schedule.max_steps=4", three, world=2)
    rest = [word for word in words if "init_from" not in word]
    assert_same(runner.trained("cut", *rest, two), alone)


def test_a_probe_does_not_go_on_as_another_training(runner, words, alone):
    run = runner.train("alone", *words, "schedule.max_steps=12", "model.freeze=none")
    assert run.code == 2 and "model.freeze=backbone, the recipe says none" in run.err
    assert run.err.count("\n") < 4 and "Traceback" not in run.err


def test_what_does_not_fit_is_one_line(runner, words, pretrained):
    run = runner.train("misfit", *words, "model.name=vit_tiny_patch16_224")
    assert run.code == 2 and not run.run_dir.exists()
    (line,) = run.err.strip().splitlines()
    assert f"{pretrained.run_dir}, checkpoint of step 3 of crate_tiny_patch16_224: the weights do not fit vit" in line
    assert "is missing" in line and "check model.name and model.kwargs" in line
