"""From a checkpoint to shipped weights."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from crate_graph.checkpoint import load_model
from crate_graph.config.load import load_recipe
from crate_graph.errors import UserError
from crate_graph.weights import load_restorer, ship

ABOUT = {
    "command": "crate-graph train restoration/toy seed=5",
    "data": "toy, 3 photographs under CC0",
    "metrics": {"Kodak, PSNR": "40.1 dB"},
}


def test_the_folder_holds_average_description_and_card(restorers, tmp_path):
    folder = ship.ship_weights(restorers["bayer"], "toy_demosaic", folder=tmp_path, **ABOUT)
    assert folder == tmp_path / "toy_demosaic"
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", "model.json", "model.safetensors"]
    average, _ = load_model(restorers["bayer"], use_ema=True)
    raw, _ = load_model(restorers["bayer"], use_ema=False)
    found = load_restorer(folder).model.state_dict()
    assert all(torch.equal(found[key], tensor) for key, tensor in average.state_dict().items())
    assert not torch.equal(found["exit.weight"], raw.state_dict()["exit.weight"])
    assert json.loads((folder / "model.json").read_text())["degradation"]["phase"] == "RGGB"


def test_the_card_says_all_that_is_asked(restorers, tmp_path):
    card = (ship.ship_weights(restorers["bayer"], "toy_demosaic", folder=tmp_path, **ABOUT) / "README.md").read_text()
    parameters = sum(tensor.numel() for tensor in load_model(restorers["bayer"])[0].parameters())
    for part in (
        "crate-graph restore toy_demosaic photo.png --degrade bayer:RGGB --compare",
        f"`conv_restorer`, {parameters:,} parameters",
        "Trained on | toy, 3 photographs under CC0",
        "toy_restorer, seed 5, step 30",
        "`crate-graph train restoration/toy seed=5`",
        "Licence of the weights | Apache-2.0",
        "| Kodak, PSNR | 40.1 dB |",
        "| validation, psnr | 31.5 |",
        "Noise | none in training",
    ):
        assert part in card
    (tmp_path / "recipe.yaml").write_text(re.search(r"```yaml\n(.*?)```", card, re.DOTALL)[1])
    recipe = load_recipe(tmp_path / "recipe.yaml")  # the card's recipe is one
    assert recipe.data.dataset == "pictures" and "/somewhere" not in card


def test_the_card_of_a_denoiser(restorers, tmp_path):
    card = (ship.ship_weights(restorers["denoise"], "toy", folder=tmp_path, **ABOUT) / "README.md").read_text()
    assert "--degrade none --noise 25 --compare" in card
    assert "Gaussian in training, sigma 0 to 50 of 255; the network is told its level" in card


def test_what_cannot_be_shipped_is_refused(restorers, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="'Toy Net': no name for weights; use small letters"):
        ship.ship_weights(restorers["bayer"], "Toy Net", folder=tmp_path, **ABOUT)
    (tmp_path / "toy").mkdir()
    with pytest.raises(UserError, match="toy: exists already; remove it first"):
        ship.ship_weights(restorers["bayer"], "toy", folder=tmp_path, **ABOUT)
    monkeypatch.setattr(ship, "LARGEST", 10_000)
    with pytest.raises(UserError, match="MB of weights; at most"):
        ship.ship_weights(restorers["bayer"], "large", folder=tmp_path, **ABOUT)
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


def test_weights_that_came_out_otherwise_are_not_shipped(restorers, tmp_path, monkeypatch):
    honest = ship.save_file
    monkeypatch.setattr(
        ship, "save_file", lambda weights, path: honest({key: 1.001 * value for key, value in weights.items()}, path)
    )
    with pytest.raises(UserError, match="changed after they were written"):
        ship.ship_weights(restorers["bayer"], "toy", folder=tmp_path, **ABOUT)
    assert list(tmp_path.iterdir()) == []


def test_the_tool_reports_a_mistake_in_one_line(tmp_path):
    tool = Path(ship.__file__).parents[2] / "tools/ship_weights.py"
    words = [tmp_path / "nothing", "toy", "--command", "x", "--data", "y"]
    done = subprocess.run([sys.executable, tool, *words], capture_output=True, text=True, timeout=200)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith("ship_weights: error: ") and "checkpoint" in line
