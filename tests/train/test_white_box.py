"""telemetry.whitebox: the same measures under every engine and world size, and a training that does not notice."""

import pytest
import torch
from safetensors.torch import load_file

from crate_graph import create_model
from crate_graph.analysis.layers import activations
from crate_graph.config.load import load_recipe
from crate_graph.train.white_box import Probe, measure, shell_of

STEPS = 5
SHORT = [f"schedule.max_steps={STEPS}", "ema.decay=0.9"]
ON = [*SHORT, "telemetry.whitebox.every=2", "telemetry.whitebox.samples=3"]
ZERO_3 = ["engine.name=deepspeed", "engine.zero_stage=3"]
UGTV_FAST = ["model.name=ugtv_fast", "model.kwargs=null", "model.kwargs={depth: 1, dim: 8, convs: 1, features: 2}"]


@pytest.fixture(scope="module")
def runs(runner, restoration):
    """All runs of this file, by name; on one process, or on two."""
    jobs = {
        "unwatched": (runner, 2, SHORT),
        "watched": (runner, 2, [*ON, "telemetry.tensorboard=true"]),
        "unwatched-zero-3": (runner, 2, [*SHORT, *ZERO_3]),
        "watched-zero-3": (runner, 2, [*ON, *ZERO_3]),
        "watched-zero-2": (runner, 2, [*ON, "engine.name=deepspeed", "engine.zero_stage=2"]),
        "watched-1": (runner, 1, ON),
        "graph": (restoration, 2, [*ON, *UGTV_FAST]),
        "refused": (restoration, 1, ON),
        "too-many": (restoration, 1, [*ON, *UGTV_FAST, "telemetry.whitebox.samples=33"]),
    }
    found = {}
    for name, (who, world, overrides) in jobs.items():
        found[name] = run = who.train(name, *overrides, world=world)
        assert run.code == (2 if name in ("refused", "too-many") else 0), f"{name}: {run.code}\n{run.err}"
    return found


def looks(run):
    """(step, name, layer) -> mean of every record of the white box."""
    return {
        (record["step"], m["name"], *m["layer"]): m["mean"]
        for record in run.records
        for m in record.get("white_box", ())
    }


def same_bytes(run, other):
    for name in ("model.safetensors", "optimizer.safetensors", "ema.safetensors"):
        path = f"checkpoints/step-{STEPS:08d}/{name}"
        assert (run.run_dir / path).read_bytes() == (other.run_dir / path).read_bytes(), name
    assert run.losses == other.losses and len(run.losses) == STEPS
    return True


@pytest.mark.parametrize("engine", ["", "-zero-3"])
def test_training_on_two_processes_ends_with_the_same_bytes(runs, engine):
    assert same_bytes(runs[f"watched{engine}"], runs[f"unwatched{engine}"])


@pytest.mark.parametrize("other", ["watched", "watched-zero-2", "watched-zero-3"])
def test_every_engine_and_world_size_measures_the_same(runs, other):
    alone, found = looks(runs["watched-1"]), looks(runs[other])
    assert {key[0] for key in alone} == {0, 2, 4, STEPS}
    assert len(alone) == 4 * 2 * 8  # looks, layers, measures
    assert found.keys() == alone.keys()
    assert all(found[key] == alone[key] for key in alone if key[0] == 0), "the same weights, samples and formulas"
    assert list(found.values()) == pytest.approx(list(alone.values()), rel=1e-3)
    assert alone[0, "rc_half_step", 2] != alone[STEPS, "rc_half_step", 2]


def test_records_say_what_a_look_costs_and_tensorboard_shows_it(runs):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    watched = runs["watched"]
    records = [record for record in watched.records if "white_box" in record]
    assert "white_box_share" not in records[0] and all(record["white_box_share"] > 0 for record in records[1:])
    board = EventAccumulator(str(watched.run_dir / "tensorboard")).Reload()
    shown = {event.step: event.value for event in board.Scalars("white_box_nonzero_output/02")}
    assert shown == pytest.approx({step: looks(watched)[step, "nonzero_output", 2] for step in (0, 2, 4, STEPS)})


def test_what_is_measured_at_the_end_are_the_weights_of_the_checkpoint(runs):
    """The probe's values come again from the saved weights and the same samples."""
    from crate_graph.cluster.ranks import discover
    from crate_graph.data import open_dataset
    from crate_graph.train.run import build_model
    from crate_graph.train.white_box import build_probe

    watched = runs["watched"]
    recipe = load_recipe(watched.run_dir / "recipe.yaml")
    dataset = open_dataset(recipe.data.dataset)
    with torch.random.fork_rng():
        model = build_model(recipe, dataset)
    probe = build_probe(recipe, dataset, model, discover())
    model.load_state_dict(load_file(watched.run_dir / f"checkpoints/step-{STEPS:08d}/model.safetensors"))
    expected = {(STEPS, m.name, *m.layer): m.mean for m in activations(model, *probe.inputs)}
    found = looks(watched)
    assert expected == pytest.approx({key: found[key] for key in expected}, rel=1e-5)


def test_a_graph_network_on_two_processes(runs):
    found = looks(runs["graph"])
    assert {key[1] for key in found} >= {"gtv", "edge_entropy", "data_residual", "threshold", "metric_trace"}
    assert found[0, "metric_trace", 1] == pytest.approx(2 * 1.5)
    assert found[0, "threshold", 1, 2] == pytest.approx(1e-3) != found[STEPS, "threshold", 1, 2]


@pytest.mark.parametrize("name, kwargs", [("crate_tiny_patch16_224", {"img_size": 32}), ("ugtv", {"depth": 1})])
def test_a_shell_holds_weights_only_while_it_is_looked_at(name, kwargs):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = create_model(name, **kwargs)
        inputs = (torch.randn(2, 3, 32, 32),) if name != "ugtv" else (torch.rand(1, 3, 8, 8), torch.ones(1, 3, 8, 8))
    shell = shell_of(model)
    weights = {name: p.data for name, p in model.named_parameters()}
    before = {name: (p.data_ptr(), p.requires_grad, p.clone()) for name, p in model.named_parameters()}
    found = measure(Probe(shell, inputs), weights | dict(model.named_buffers()))
    assert activations(model, *inputs) == found[: len(activations(model, *inputs))]
    assert all(p.is_meta for p in shell.parameters())
    for name, p in model.named_parameters():
        pointer, trained, values = before[name]
        assert p.data_ptr() == pointer and p.requires_grad is trained and p.equal(values) and p.grad is None


def test_what_cannot_be_measured_is_said_before_training(runs):
    message = runs["refused"].err
    assert "model.name=conv_restorer" in message and "leave telemetry.whitebox out" in message
    assert "telemetry.whitebox.samples=33: the training split has 32" in runs["too-many"].err
    assert not any((runs[name].run_dir / "metrics.jsonl").exists() for name in ("refused", "too-many"))
