"""From a name to a network: shipped weights, checkpoints, exported files; and what else is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from crate_graph.checkpoint import load_model
from crate_graph.checkpoint.initial import read_weights
from crate_graph.checkpoint.manifest import seal
from crate_graph.cli import main
from crate_graph.config.schema import Degradation
from crate_graph.errors import UserError
from crate_graph.evaluation.run import evaluate
from crate_graph.export import export
from crate_graph.weights import list_weights, load_restorer, names
from crate_graph.weights.ship import LARGEST, ship_weights


def ship(checkpoint, name, folder):
    return ship_weights(checkpoint, name, command="crate-graph train toy", data="toy (CC0)", metrics={}, folder=folder)


@pytest.fixture
def shipped(tmp_path, monkeypatch, restorers):
    """A folder of shipped weights with three in it."""
    folder = tmp_path / "shipped"
    folder.mkdir()
    monkeypatch.setattr(names, "SHIPPED", folder)
    for name, problem in (("demosaic", "bayer"), ("demosaic_noisy", "any_phase"), ("enlarge", "decimate")):
        ship(restorers[problem], name, folder)
    return folder


def same(one, other) -> bool:
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_every_way_gives_the_same_network(shipped, restorers, tmp_path):
    export(str(restorers["decimate"]), "safetensors", tmp_path / "exported.safetensors")
    shutil.copytree(shipped / "enlarge", tmp_path / "copied")
    expected, manifest = load_model(restorers["decimate"])
    run_folder = restorers["decimate"].parent
    for place in ("enlarge", restorers["decimate"], run_folder, tmp_path / "exported.safetensors", tmp_path / "copied"):
        restorer = load_restorer(place)
        assert same(restorer.model, expected) and not restorer.model.training, place
        assert restorer.degradation == Degradation(kind="decimate") and restorer.color == "y"
        assert (restorer.recipe, restorer.dataset, restorer.step) == ("toy_restorer", "toy", 30)
        assert restorer.metrics == manifest["metrics"]


def test_the_noise_of_training_is_kept(restorers, tmp_path):
    folder = ship(restorers["denoise"], "denoise", tmp_path)
    restorer = load_restorer(folder)
    assert restorer.degradation == Degradation(kind="none", sigma=(0.0, 50.0)) and restorer.model.noise_aware


def test_shipped_names_work_everywhere(shipped, tmp_path, capsys):
    assert list_weights() == ["demosaic", "demosaic_noisy", "enlarge"]
    from PIL import Image

    photo = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(photo)
    words = ["restore", "demosaic", str(photo), "--degrade", "bayer:RGGB", "--output", str(tmp_path / "out"), "--json"]
    assert main(words) == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert result["psnr"] == pytest.approx(evaluate("demosaic", str(photo))["psnr"], abs=1e-4)
    with pytest.raises(SystemExit) as stop:
        main(["restore", "--list"])
    listed = capsys.readouterr().out.splitlines()
    assert stop.value.code == 0 and listed[0].startswith("demosaic  conv_restorer, bayer:RGGB, rgb")


def test_an_unknown_name_names_the_nearest(shipped):
    with pytest.raises(UserError, match="demosiac: neither shipped weights nor a checkpoint; did you mean demosaic"):
        load_restorer("demosiac")
    for far in ("xyz", "runs/noisy_crate"):
        with pytest.raises(UserError, match=f"{far}: .*no file or folder has that name; name a run folder") as refused:
            load_restorer(far)
        assert "demosaic" not in str(refused.value) and "restore --list" in str(refused.value)
    shutil.rmtree(shipped)
    with pytest.raises(UserError, match="no file or folder has that name; name a run folder") as refused:
        load_restorer("xyz")
    assert "--list" not in str(refused.value)


def test_what_holds_no_restorer_is_refused(shipped, restorers, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        UserError, match="empty: neither a checkpoint nor a run folder .*: there are no checkpoints in it"
    ):
        load_restorer(tmp_path / "empty")
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(UserError, match="text.safetensors: cannot be read as safetensors"):
        load_restorer(tmp_path / "text.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "bare.safetensors")
    with pytest.raises(
        UserError, match="bare.safetensors: does not describe a restoration network .*; use a file that"
    ):
        load_restorer(tmp_path / "bare.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "class.safetensors", metadata={"format": "crate-graph-model/1"})
    with pytest.raises(UserError, match="class.safetensors: a classification model; name a file exported from a resto"):
        load_restorer(tmp_path / "class.safetensors")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d.update(format="other/1"), "not of the format crate-graph-restorer/2"),
        (lambda d: d.update(color="y"), "changed after they were written"),
        (lambda d: d["degradation"].update(phase="BGGR"), "changed after they were written"),
        (lambda d: d.pop("color"), "changed after they were written"),
        (lambda d: d["degradation"].update(kind="fog"), "kind"),
        (lambda d: d["model_args"].update(dim=16), "another architecture than conv_restorer"),
    ],
)
def test_a_damaged_description_is_refused(change, says, shipped):
    file = shipped / "demosaic" / names.DESCRIPTION
    described = json.loads(file.read_text())
    change(described)
    file.write_text(json.dumps(described))
    with pytest.raises(UserError, match=f"demosaic.*{says}"):
        load_restorer("demosaic")
    file.write_text("{")
    with pytest.raises(UserError, match="does not describe a restoration network"):
        load_restorer("demosaic")


def test_a_flipped_bit_in_the_weights_is_found(shipped):
    file = shipped / "demosaic" / names.WEIGHTS
    data = bytearray(file.read_bytes())
    data[-3] ^= 1  # of the last weight's mantissa
    file.write_bytes(data)
    with pytest.raises(UserError, match="the weights were changed after they were written"):
        load_restorer("demosaic")


def test_a_checkpoint_that_classifies_is_refused(tmp_path, restorers):
    folder = tmp_path / "classifier"
    shutil.copytree(restorers["bayer"], folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["task"]  # as before there was a second one
    (folder / "manifest.json").write_text(json.dumps(seal(manifest)))
    with pytest.raises(UserError, match="was trained for classification; name a checkpoint of a restoration recipe"):
        load_restorer(folder)


def test_the_shipped_weights_are_whole():
    """Those in the package itself: loadable, small, each with a card that names data, terms, seed and command."""
    for name in list_weights():
        folder = names.SHIPPED / name
        load_restorer(name)
        assert (folder / names.WEIGHTS).stat().st_size <= LARGEST
        card = (folder / names.CARD).read_text()
        assert all(word in card for word in ("Trained on", "Licence of the weights", "seed", "crate-graph train"))


def test_training_does_not_start_from_changed_weights(shipped):
    folder = shipped / "demosaic"
    assert read_weights(folder) and read_weights(folder / names.WEIGHTS)
    described = json.loads((folder / names.DESCRIPTION).read_text())
    (folder / names.DESCRIPTION).write_text(json.dumps({**described, "color": "y"}))
    for place in (folder, folder / names.WEIGHTS):
        with pytest.raises(UserError, match="was changed after it was written"):
            read_weights(place)


def test_training_does_not_start_from_weights_that_are_not_finite(tmp_path):
    save_file({"good": torch.zeros(2), "bad": torch.tensor([0.0, torch.nan])}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="w.safetensors: bad holds values that are not finite"):
        read_weights(tmp_path / "w.safetensors")


def test_the_file_inside_a_folder_stands_for_the_folder(shipped):
    assert same(load_restorer(shipped / "enlarge" / names.WEIGHTS).model, load_restorer("enlarge").model)


def test_a_description_nested_without_end_is_refused(shipped):
    (shipped / "demosaic" / names.DESCRIPTION).write_text("[" * 100_000)
    with pytest.raises(UserError, match="does not describe a restoration network"):
        load_restorer("demosaic")
