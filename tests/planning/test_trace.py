"""What is predicted of a step on fake tensors is what a real step holds, computes and writes."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode, is_fake
from torch.utils.flop_counter import FlopCounterMode

from crate_graph.cluster.ranks import Ranks
from crate_graph.config.schema import ActivationCheckpointing
from crate_graph.data import open_dataset
from crate_graph.engine.objective import Objective
from crate_graph.models.checkpointing import MODES, available_modes
from crate_graph.ops.memory import saved_bytes
from crate_graph.planning.check import check, compare, missed, predict
from crate_graph.planning.measure import measure, random_batch
from crate_graph.planning.report import as_text
from crate_graph.planning.tally import Tally
from crate_graph.planning.trace import trace_step
from crate_graph.tasks import build_task
from crate_graph.train.run import build_model

FAKE = 0.005  # a LayerNorm of bf16 tokens and fp32 weights keeps its means in fp32 on a CPU, in bf16 on fake tensors
RATES = {"half": 1e11, "single": 1e11, "tf32": 1e11, "bandwidth": 1e10, "operation": 1e-6, "ring": 1e9}


def kept_by_a_real_step(recipe, dataset, samples):
    objective = Objective(
        build_model(recipe, dataset), build_task(recipe, dataset.mean, dataset.std), recipe.precision
    ).train()
    batch = random_batch(recipe, dataset, samples)
    tensors = (batch.images, batch.targets, batch.weights)
    return saved_bytes(lambda: objective(*tensors)[0], [*objective.parameters(), *tensors])


@pytest.mark.parametrize(
    ("model", "precision"), [("crate", "fp32"), ("crate", "bf16"), ("vit", "bf16"), ("ugtv_fast", "bf16")]
)
def test_bytes_kept_for_the_backward_pass_in_each_mode(small_recipe, model, precision):
    dataset = open_dataset(small_recipe(model).data.dataset)
    modes = available_modes(build_model(small_recipe(model), dataset))
    assert len(modes) >= 3
    kept = []
    for mode in modes:
        asked = ActivationCheckpointing(mode=mode, k=2)
        recipe = small_recipe(model, precision=precision, activation_checkpointing=asked.model_dump())
        kept.append(trace_step(recipe, dataset, 8, cuda=False).kept)
        assert kept[-1] == pytest.approx(kept_by_a_real_step(recipe, dataset, 8), rel=FAKE), mode
    assert len(set(kept)) == len(modes)  # the modes differ, so an ignored one would be seen
    assert set(modes) <= set(MODES)


@pytest.mark.parametrize("model", ["crate", "ugtv_fast"])
def test_a_measured_step(small_recipe, model):
    recipe = small_recipe(model, batch={"global_batch": 8, "micro_batch": 4})
    dataset = open_dataset(recipe.data.dataset)
    with FakeTensorMode():
        left = torch.ones(3)  # as an exported program keeps them, in a process that measures afterwards
    measured = measure(recipe, Ranks(), steps=1, rates=False)
    assert is_fake(left)
    predicted = predict(recipe, dataset, 1, RATES)
    assert measured["state"] == predicted["state"]
    assert measured["held"] == pytest.approx(predicted["held"], rel=0.05)  # masks of windows are not foreseen
    assert measured["gradients"] == predicted["gradients"]
    assert measured["kept"] == pytest.approx(predicted["kept"], rel=FAKE)
    assert measured["flops"] == pytest.approx(predicted["flops"], rel=0.02)
    assert measured["peak_of_step"] == pytest.approx(predicted["peak_of_step"], rel=0.1)
    for name, size in measured["checkpoint"].items():
        if name.endswith(".safetensors") or name == "recipe.yaml":
            assert size == predicted["checkpoint"][name], name
    assert sum(measured["checkpoint"].values()) == pytest.approx(sum(predicted["checkpoint"].values()), abs=4096)
    assert not missed(compare(predicted, measured), "one process")


def test_a_check_in_a_process_of_its_own(small_recipe):
    plan = check(small_recipe("vit"), 4, worlds=[1])
    assert plan.runs
    (section,) = plan.sections
    assert {"weights, bytes", "peak beyond state, bytes", "step, ms"} <= {row["what"] for row in section.rows}
    assert "as promised: peak beyond state within 10%, products per step within 2%" in as_text(plan)


def test_a_prediction_further_off_than_promised_is_said():
    figures = dict.fromkeys(("held", "gradients", "kept", "peak_of_step", "flops"), 1000)
    predicted = {**figures, "state": {"weights": 1000}, "sent": {}, "checkpoint": {"a": 1000}, "step_seconds": 1.0}
    for changes, words in [
        ({"peak_of_step": 1110}, ["peak beyond state, bytes: 1,110 measured, 1,000 predicted, over 10% apart"]),
        ({"peak_of_step": 890}, ["over 10% apart"]),
        ({"flops": 1021}, ["products per step, FLOP: 1,021 measured, 1,000 predicted, over 2% apart"]),
        ({"peak_of_step": 1090, "flops": 1019, "step_seconds": 5.0}, []),
    ]:
        found = missed(compare(predicted, predicted | changes), "one process")
        assert len(found) == len(words)
        for finding, word in zip(found, words, strict=True):
            assert finding.stops
            assert word in finding.text


def test_products_are_those_that_pytorch_counts(small_recipe):
    """In a whole micro batch, in which ISTA takes another order of products than for a single image."""
    recipe = small_recipe("crate")
    dataset = open_dataset(recipe.data.dataset)
    objective = Objective(
        build_model(recipe, dataset), build_task(recipe, dataset.mean, dataset.std), recipe.precision
    ).train()
    batch = random_batch(recipe, dataset, 8)
    with FlopCounterMode(display=False) as counter:
        objective(batch.images, batch.targets, batch.weights)[0].backward()
    traced = trace_step(recipe, dataset, 8, cuda=False)
    assert traced.flops("forward", "backward") == counter.get_total_flops() > 0


def test_autocast_of_cuda_keeps_layer_norms_in_float32(small_recipe):
    recipe = small_recipe("crate")  # whose patches pass through a LayerNorm in bf16
    dataset = open_dataset(recipe.data.dataset)
    on_cpu, on_cuda = (trace_step(recipe, dataset, 8, cuda=cuda).kept for cuda in (False, True))
    assert on_cuda > on_cpu


def test_a_tally_sees_memory_come_and_go():
    with Tally() as tally:
        kept = torch.zeros(1000)
        for _ in range(3):
            torch.ones(5000).sum()
        view = kept[:10].view(2, 5)
    assert tally.live["activations"] == kept.untyped_storage().nbytes() == 4000
    assert 4000 + 20000 <= tally.peak < 4000 + 2 * 20000
    assert [op.name for op in tally.operations] == ["zeros", *(["ones", "sum"] * 3)]
    tally.name("weights", [view])
    assert tally.live["weights"] == 4000
    assert tally.live["activations"] == 0
    del kept, view
    assert tally.live["weights"] == 0
