"""The single-file formats: what stands in the file besides the weights."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
from safetensors import safe_open
from safetensors.torch import save_file

from crate_graph.checkpoint import load_model
from crate_graph.errors import UserError
from crate_graph.export import export, load_safetensors


def test_safetensors_metadata_rebuilds_the_model(checkpoints, tmp_path):
    export(str(checkpoints["crate"]), "safetensors", tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert metadata["architecture"] == "crate_tiny_patch16_224"
    assert json.loads(metadata["classes"]) == ["shirt", "coat", "bag", "boot"]
    assert json.loads(metadata["mean"]) == [0.4] and json.loads(metadata["std"]) == [0.2]
    assert json.loads(metadata["model_args"])["num_classes"] == 4
    assert json.loads(metadata["metrics"]) == {"top1": 87.5, "loss": 0.25}
    model = load_safetensors(tmp_path / "model.safetensors")
    assert not model.training and type(model) is type(load_model(checkpoints["crate"])[0])


def test_a_foreign_or_damaged_safetensors_file_is_refused(checkpoints, tmp_path):
    model, _ = load_model(checkpoints["crate"])
    save_file(model.state_dict(), tmp_path / "bare.safetensors")
    with pytest.raises(UserError, match="does not say how to build its model"):
        load_safetensors(tmp_path / "bare.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "bare.safetensors").read_bytes()[:100])
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        load_safetensors(tmp_path / "cut.safetensors")
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        load_safetensors(tmp_path / "absent.safetensors")


def test_onnx_interface_and_metadata(checkpoints, tmp_path):
    path = tmp_path / "model.onnx"
    export(str(checkpoints["crate"]), "onnx", path)
    assert list(tmp_path.iterdir()) == [path]  # no file of weights beside it
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(metadata["classes"]) == ["shirt", "coat", "bag", "boot"]
    assert json.loads(metadata["mean"]) == [0.4] and json.loads(metadata["std"]) == [0.2]
    assert json.loads(metadata["eval_transform"]) == {"size": 24, "resize": 31, "interpolation": "bicubic"}

    session = onnxruntime.InferenceSession(path)
    (image,), (logits,) = session.get_inputs(), session.get_outputs()
    assert (image.name, image.shape) == ("image", ["batch", 1, 24, 24])
    assert (logits.name, logits.shape) == ("logits", ["batch", 4])
    for batch in (1, 3, 8):
        assert session.run(None, {"image": np.zeros((batch, 1, 24, 24), np.float32)})[0].shape == (batch, 4)


@pytest.mark.parametrize("kind", ["crate", "vit"])
def test_an_onnx_file_tells_no_paths(kind, checkpoints, tmp_path):
    export(str(checkpoints[kind]), "onnx", tmp_path / "model.onnx")
    content = (tmp_path / "model.onnx").read_bytes()
    assert b".py" not in content and str(timm.__file__).rpartition("/")[0].encode() not in content
