"""The same 20-step fp32 loss trace under every engine, ZeRO stage, world size and number of loader workers."""

import pytest


@pytest.fixture(scope="module")
def reference(runner):
    return runner.trained("reference")


LAYOUTS = [
    pytest.param(1, ["data.workers=1"], id="accelerate-1-workers-1"),
    pytest.param(1, ["data.workers=2"], id="accelerate-1-workers-2"),
    pytest.param(1, ["batch.micro_batch=4"], id="accelerate-1-accumulation-4"),
    pytest.param(2, ["data.workers=2"], id="accelerate-2-workers-2"),
    pytest.param(2, ["batch.micro_batch=2"], id="accelerate-2-accumulation-4"),
    pytest.param(
        2, ["data.workers=1", "engine.name=deepspeed", "batch.micro_batch=4"], id="deepspeed-0-2-accumulation-2"
    ),
    *(
        pytest.param(world, ["engine.name=deepspeed", f"engine.zero_stage={stage}"], id=f"deepspeed-{stage}-{world}")
        for stage in range(4)
        for world in (1, 2)
    ),
    pytest.param(
        2, ["engine.name=deepspeed", "engine.zero_stage=2", "batch.micro_batch=2"], id="deepspeed-2-2-accumulation-4"
    ),
]


@pytest.mark.parametrize("world, overrides", LAYOUTS)
def test_losses_agree(runner, reference, world, overrides, request):
    run = runner.trained(request.node.callspec.id, *overrides, world=world)
    assert list(run.losses) == list(range(1, 21))
    assert list(run.losses.values()) == pytest.approx(list(reference.losses.values()), rel=1e-5)
    assert run.summary["metrics"]["loss"] == pytest.approx(reference.summary["metrics"]["loss"], rel=1e-5)


def test_the_trace_is_worth_comparing(reference):
    """Losses move, so agreement says something."""
    assert len(set(reference.losses.values())) == 20
    assert reference.losses[20] < reference.losses[1]
