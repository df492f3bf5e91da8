"""The verb `plan`: what it prints, what it finds, and its exit code."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest

from crate_graph.cli import main
from crate_graph.cluster.ranks import Ranks
from crate_graph.config import load_recipe
from crate_graph.config.load import dump_recipe, shipped_recipes
from crate_graph.data import open_dataset
from crate_graph.planning import patience
from crate_graph.planning.contradictions import of_batches
from crate_graph.planning.hardware import DEVICES, NETWORKS
from crate_graph.planning.memory import peak_bytes, trace_for
from crate_graph.planning.readers import know_split, micro_batch_of
from crate_graph.planning.report import quantity
from crate_graph.planning.trace import FORWARD
from crate_graph.train.flops import _PEAK_16_BIT
from crate_graph.train.run import _clock, check_model


@pytest.fixture
def tiny(small_recipe, tmp_path):
    path = tmp_path / "tiny.yaml"
    shallow = small_recipe("crate").model.model_dump()
    shallow["kwargs"]["depth"] = 2
    path.write_text(dump_recipe(small_recipe("crate", model=shallow, batch={"global_batch": 64})))
    return str(path)


@pytest.fixture
def impatient(monkeypatch):
    """Whatever is said of slow work is said of all."""
    monkeypatch.setattr(patience, "SILENT", 0.0)


def assert_tracing(err):
    (line,) = err.splitlines()
    assert line.startswith("tracing steps of crate_small_patch16_224 with img_size=28, ") and "embed_dim=" in line


def planned(capsys, *words):
    """Exit code and JSON."""
    code = main(["plan", *words, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_a_plan_that_runs(tiny, impatient, capsys):
    code, plan = planned(capsys, tiny, "--nodes", "2", "--gpus-per-node", "2", "--device", "a100-80g")
    assert code == 0
    assert plan["runs"]
    assert plan["batches"]["product"]["value"] == "16 x 1 x 4 = 64"
    assert plan["stream"]["samples"]["value"] == 10_000
    assert plan["stream"]["steps per epoch"]["value"] == 10_000 // 64
    memory = plan["memory per GPU"]
    kinds = ("weights", "moments", "ema", "gradients", "activations", "batch")
    assert memory["peak"]["value"] == sum(memory[kind]["value"] for kind in kinds)
    assert memory["weights"]["value"] == 4 * plan["model"]["parameters"]["value"]
    assert [row["mode"] for row in plan["activation checkpointing"]["table"]["rows"]] == [
        "none (asked)",
        "layer",
        "block",
        "every_k, k=2",
    ]
    assert len(plan["engines and ZeRO stages"]["table"]["rows"]) == 5
    time = plan["time"]
    assert time["epoch"]["value"] == pytest.approx(156 * time["step"]["value"])
    assert time["images per second"]["value"] == pytest.approx(64 / time["step"]["value"])
    assert all(entry["basis"] for entry in time.values())
    assert main(["plan", tiny, "--gpus-per-node", "4"]) == 0
    text, err = capsys.readouterr()
    assert_tracing(err)
    assert "datasheet" in text
    assert "assumed" in text


def test_a_masked_autoencoder_is_planned(capsys):
    code, plan = planned(capsys, "mae_quickstart", "model.kwargs.depth=1", "model.kwargs.decoder_depth=1")
    assert code == 0 and plan["runs"] and plan["memory per GPU"]["activations"]["value"] > 0


def test_everything_that_contradicts_is_listed_and_the_exit_code_is_2(tiny, capsys):
    words = ("--gpus-per-node", "3", "data.workers=2", "engine={name: deepspeed, zero_stage: 1}", "--samples", "50")
    words += ("activation_checkpointing.mode=block", "model.name=vit_small_patch16_224")
    code, plan = planned(capsys, tiny, *words, "--usable-memory", "1e-7", "--shards", "2")
    assert code == 2
    assert not plan["runs"]
    stops = " | ".join(finding["text"] for finding in plan["findings"] if finding["stops"])
    assert "batch.global_batch=64 does not divide among 3 processes" in stops
    assert "2 or 4 processes" in stops
    assert "data.slots=4 do not divide among 3 processes x 2 workers" in stops
    assert "50 samples, fewer than one batch.global_batch=64" in stops
    assert "vit_small_patch16_224 has no activation checkpointing 'block'; choose from 'none', 'layer'" in stops
    assert "a step needs" in stops
    assert "evaluation.batch_size=256 needs" in stops
    notes = " | ".join(finding["text"] for finding in plan["findings"] if not finding["stops"])
    assert "6 readers share 2 shards" in notes
    assert plan["time"]["step"]["value"] > 0  # the whole plan is there all the same


def test_a_micro_batch_that_does_not_fit_is_told_one_that_does(tiny, capsys):
    recipe = load_recipe(tiny)
    traces = (trace_for(recipe, open_dataset("fashion_mnist"), 1, micro, 64 // micro) for micro in (64, 32))
    between = sum(sum(peak_bytes(trace, recipe.engine, 1).values()) for trace in traces) / 2
    words = (tiny, "--gpus-per-node", "1", "evaluation.batch_size=1", "--usable-memory")
    code, plan = planned(capsys, *words, str(between / DEVICES["h100"].memory))
    assert code == 2
    assert "set batch.micro_batch=32 or activation_checkpointing.mode=" in plan["findings"][0]["text"]


def test_a_restoration_recipe_without_its_data(small_recipe, tmp_path, capsys):
    path = tmp_path / "restoration.yaml"
    path.write_text(dump_recipe(small_recipe("ugtv_fast", activation_checkpointing={"mode": "block"})))
    code, plan = planned(capsys, str(path), "data.dataset=div2k", "--gpus-per-node", "2")
    assert code == 0
    assert plan["stream"]["samples"]["value"] is None
    assert plan["time"]["epoch"]["value"] is None
    assert quantity(None, "s") == "unknown"


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_batches_and_data_of_every_shipped_recipe_are_known_without_its_data(name):
    recipe = load_recipe(name)
    split = know_split(open_dataset(recipe.data.dataset), recipe.data.train_split)
    assert split.samples is None or split.samples > 0
    assert micro_batch_of(recipe, 1)[0] == (recipe.batch.micro_batch or recipe.batch.global_batch)
    assert not [finding for finding in of_batches(recipe, 1) if finding.stops]


def test_a_run_logs_its_utilisation_by_the_flops_of_its_plan(tiny, capsys):
    """ISTA's matrix is made once a pass, so that a single image takes more arithmetic than one of a micro batch."""
    recipe = load_recipe(tiny)
    dataset = open_dataset("fashion_mnist")
    logged = _clock(recipe, check_model(recipe, dataset, 16), Ranks(0, 4, 0)).flops_per_image
    _, plan = planned(capsys, tiny, "--gpus-per-node", "4")
    assert plan["model"]["training FLOPs per image"]["value"] == int(logged)
    assert logged == 3 * trace_for(recipe, dataset, 4, 16, 1).flops(FORWARD) / 16
    assert logged < 0.98 * 3 * check_model(recipe, dataset, 1)


def test_peaks_of_gpus_are_one_figure():
    """Those of a plan, and those that a run compares with by the name that the driver gives."""
    for named, device in {"h100-pcie": "H100 PCIe", "a100-80g": "A100", "v100-32g": "V100", "l40s": "L40S"}.items():
        assert DEVICES[named].half == 1e12 * _PEAK_16_BIT[device]
    for name in ("b200", "h200", "h100", "l4", "a10"):
        assert DEVICES[name].half == 1e12 * _PEAK_16_BIT[name.upper()]


def test_scaling(tiny, tmp_path, impatient, capsys):
    picture, page = tmp_path / "scaling.svg", tmp_path / "scaling.html"
    code, plan = planned(capsys, tiny, "--scaling", "--output", str(picture), "--device", "h200")
    assert code == 0
    rows = plan["scaling"]["table"]["rows"]
    assert [row["GPUs"] for row in rows] == [8, 16, 32, 64]  # no sample is left for more
    assert [row["micro batch"] for row in rows] == ["8 x 1", "4 x 1", "2 x 1", "1 x 1"]
    assert rows[0]["efficiency"] == 1
    assert all(after["efficiency"] < before["efficiency"] for before, after in zip(rows, rows[1:], strict=False))
    assert "no sample to each of more than 64 GPUs" in str(plan["findings"])
    drawn = ElementTree.fromstring(picture.read_text())
    assert len(drawn.findall("{http://www.w3.org/2000/svg}polyline")) == 3
    few = (row["memory"] / DEVICES["h200"].memory for row in rows[1:3])
    _, tight = planned(capsys, tiny, "--scaling", "--device", "h200", "--usable-memory", str(sum(few) / 2))
    unfit = ["does not fit into memory" in row["why not"] for row in tight["scaling"]["table"]["rows"]]
    assert unfit == [True, True, False, False]
    assert main(["plan", tiny, "--scaling", "growing", "--output", str(page)]) == 0
    assert "4,096" in page.read_text()
    said = capsys.readouterr()
    assert_tracing(said.err)
    assert "makes" in said.out or "follow it" in page.read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--device", "h10"), "--device h10: unknown; did you mean h100"),
        (("--network", "token-ring"), f"known: {', '.join(NETWORKS)}"),
        (("--output", "x.svg"), "add --scaling"),
        (("--check", "--scaling"), "choose one of them"),
        (("--nodes", "1000000", "--gpus-per-node", "8"), "8,000,000 processes"),
        (("model.name=resnet_of_dreams",), "resnet_of_dreams"),
        (("data.dataset=nowhere",), "nowhere"),
        (("model.name=resnet_of_dreams", "--scaling"), "resnet_of_dreams"),
        (("data.train_transform.size=27",), "27"),
        (("data.train_transform.size=27", "--scaling"), "27"),
    ],
)
def test_mistakes(tiny, impatient, capsys, words, message):
    assert main(["plan", tiny, *words]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.count("\n") == 1
    assert not said.out
