"""Export of restoration networks: safetensors and ONNX compute the same; the rest is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from crate_graph.checkpoint import load_model
from crate_graph.cli import main
from crate_graph.errors import UserError
from crate_graph.export import export
from crate_graph.export.restorer import Restorer
from crate_graph.weights import load_restorer


def observation(channels: int, height: int, width: int, batch: int = 1) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(1)
    mask = (generator.random((batch, channels, height, width)) < 0.4).astype(np.float32)
    return generator.random(mask.shape, dtype=np.float32) * mask, mask


@pytest.mark.parametrize("problem", ["bayer", "decimate", "denoise"])
def test_safetensors(problem, restorers, tmp_path):
    output = tmp_path / "out.safetensors"
    result = export(str(restorers[problem]), "safetensors", output)
    assert result["max_difference"] == 0 and list(tmp_path.iterdir()) == [output]
    assert result["files"] == {"out.safetensors": output.stat().st_size}
    restorer, (model, _) = load_restorer(output), load_model(restorers[problem])
    given = [torch.from_numpy(part) for part in observation(restorer.model.in_chans, 21, 34)]
    with torch.no_grad():
        assert torch.equal(restorer.model(*given), model(*given))


def test_onnx_takes_pictures_of_any_size(restorers, tmp_path):
    output = tmp_path / "out.onnx"
    result = export(str(restorers["bayer"]), "onnx", output)
    assert result["max_difference"] <= result["allowed_difference"] == pytest.approx(1e-4, rel=0.5)
    session = onnxruntime.InferenceSession(output, providers=["CPUExecutionProvider"])
    assert [given.name for given in session.get_inputs()] == ["observed", "mask"]
    model, _ = load_model(restorers["bayer"])
    for height, width, batch in ((5, 5, 1), (33, 48, 3), (70, 61, 1)):
        observed, mask = observation(model.in_chans, height, width, batch)
        found = session.run(["estimate"], {"observed": observed, "mask": mask})[0]
        with torch.no_grad():
            expected = model(torch.from_numpy(observed), torch.from_numpy(mask)).numpy()
        assert np.abs(found - expected).max() < 1e-5
    held = {entry.key: entry.value for entry in onnx.load(output).metadata_props}
    assert json.loads(held["description"])["architecture"] == "conv_restorer"
    assert str(Path(__file__).parents[2]).encode() not in output.read_bytes()  # no paths of this machine


def test_a_graph_network_is_refused_as_onnx_by_name(restorers, tmp_path, capsys):
    words = ["export", str(restorers["denoise"]), "--format", "onnx", "--output", str(tmp_path / "out.onnx")]
    assert main(words) == 2
    says = capsys.readouterr().err.splitlines()[-1]
    assert "ugtv_fast: the ONNX exporter cannot trace it for pictures of any size; use --format safetensors" in says
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", ["timm", "hf"])
def test_formats_for_classification_are_refused(format, restorers, tmp_path):
    with pytest.raises(
        UserError, match=f"a restoration network; --format {format} is for classification, use safetens"
    ):
        export(str(restorers["bayer"]), format, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (1e-3, RuntimeError, "safetensors export: estimates differ from the checkpoint's"),
        (float("nan"), UserError, "exit.bias holds values that are not finite"),
    ],
)
def test_a_network_that_differs_is_not_exported(wrong, error, message, restorers, tmp_path, monkeypatch):
    def spoilt(self: Restorer):
        weights = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        weights["exit.bias"] += wrong
        return weights

    monkeypatch.setattr(Restorer, "weights", spoilt)
    with pytest.raises(error, match=message):
        export(str(restorers["bayer"]), "safetensors", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_training_starts_from_an_export(restorers, tmp_path):
    """model.init_from takes the file."""
    from crate_graph import create_model
    from crate_graph.checkpoint.initial import load_initial_weights

    export(str(restorers["bayer"]), "safetensors", tmp_path / "out.safetensors")
    model = create_model("conv_restorer", dim=8, depth=1)
    load_initial_weights(model, str(tmp_path / "out.safetensors"))
    expected, _ = load_model(restorers["bayer"])
    assert all(torch.equal(model.state_dict()[key], tensor) for key, tensor in expected.state_dict().items())
