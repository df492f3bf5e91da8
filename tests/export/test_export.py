"""What holds for every format: the same logits, all or nothing, and clear refusals."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from crate_graph.checkpoint import load_model
from crate_graph.errors import UserError
from crate_graph.export import FORMATS, export
from crate_graph.export.source import Source

KINDS = ("crate", "crate_rgb", "vit", "vit_grey")


def write_images(folder: Path, channels: int) -> torch.Tensor:
    images = torch.randn(5, channels, 24, 24, generator=torch.Generator().manual_seed(7))
    np.save(folder / "images.npy", images.numpy())
    return images


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("format", FORMATS)
def test_every_format_gives_the_same_logits(format, kind, checkpoints, tmp_path):
    output = tmp_path / "out"
    result = export(str(checkpoints[kind]), format, output)

    assert result["max_difference"] <= result["allowed_difference"]
    assert result["format"] == format and Path(result["output"]) == output
    found = [output] if output.is_file() else list(output.iterdir())
    assert {file.name: file.stat().st_size for file in found} == result["files"]
    assert list(tmp_path.iterdir()) == [output]  # and nothing beside it

    model, _ = load_model(checkpoints[kind])
    images = write_images(tmp_path, 1 if kind in ("crate", "vit_grey") else 3)
    reloaded = importlib.import_module(f"crate_graph.export.{FORMATS[format]}").reload(output)
    with torch.no_grad():
        assert torch.allclose(reloaded(images), model(images), atol=1e-5)


def test_exported_files_are_as_readable_as_any_new_file(checkpoints, tmp_path):
    (tmp_path / "plain").write_text("")
    export(str(checkpoints["crate"]), "timm", tmp_path / "out")
    for file in (tmp_path / "out").iterdir():
        assert file.stat().st_mode == (tmp_path / "plain").stat().st_mode, file


LOAD_CRATE = """
import sys
import numpy as np, timm, torch
import crate_graph, crate_graph.export
assert not any(name in sys.modules for name in ("transformers", "onnx", "onnxruntime"))
import onnxruntime
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

images = torch.from_numpy(np.load("images.npy"))
onnx_logits = onnxruntime.InferenceSession(onnx).run(["logits"], {"image": images.numpy()})[0]
with torch.no_grad():
    np.savez(
        "logits.npz",
        timm=timm.create_model("local-dir:" + timm_folder, pretrained=True).eval()(images).numpy(),
        safetensors=crate_graph.export.load_safetensors(safetensors)(images).numpy(),
        hf=AutoModelForImageClassification.from_pretrained(hf).eval()(pixel_values=images).logits.numpy(),
        onnx=onnx_logits,
    )
assert AutoConfig.from_pretrained(hf).model_type == "crate_graph"
assert type(AutoImageProcessor.from_pretrained(hf)).__name__ == "CrateImageProcessor"
"""

LOAD_VIT = """
import sys
import numpy as np, timm, torch, onnxruntime
from transformers import AutoImageProcessor, AutoModelForImageClassification

images = torch.from_numpy(np.load("images.npy"))
onnx_logits = onnxruntime.InferenceSession(onnx).run(["logits"], {"image": images.numpy()})[0]
with torch.no_grad():
    np.savez(
        "logits.npz",
        timm=timm.create_model("local-dir:" + timm_folder, pretrained=True).eval()(images).numpy(),
        hf=AutoModelForImageClassification.from_pretrained(hf).eval()(pixel_values=images).logits.numpy(),
        onnx=onnx_logits,
    )
AutoImageProcessor.from_pretrained(hf)
assert "crate_graph" not in sys.modules
"""


@pytest.mark.parametrize(("kind", "channels", "script"), [("crate", 1, LOAD_CRATE), ("vit", 3, LOAD_VIT)])
def test_a_fresh_interpreter_gives_the_same_logits(kind, channels, script, checkpoints, run_fresh, tmp_path):
    """A stranger's process. For CRATE it imports crate_graph, which stays light; for a ViT it need not."""
    outputs = {"timm_folder": "timm", "hf": "hf", "safetensors": "safetensors", "onnx": "onnx"}
    for name, format in outputs.items():
        export(str(checkpoints[kind]), format, tmp_path / name)
    images = write_images(tmp_path, channels)
    run_fresh(script, **{name: tmp_path / name for name in outputs})

    model, _ = load_model(checkpoints[kind])
    with torch.no_grad():
        expected = model(images).numpy()
    found = np.load(tmp_path / "logits.npz")
    assert len(found.files) >= 3
    for name in found.files:
        assert np.abs(found[name] - expected).max() <= 1e-5, name


@pytest.mark.parametrize("format", ["hf", "onnx"])
def test_standard_output_stays_free_for_the_result(format, checkpoints, run_fresh, tmp_path):
    script = "import json\nfrom crate_graph.export import export\nprint(json.dumps(export(checkpoint, format, output)))"
    names = {"checkpoint": checkpoints["crate"], "format": format, "output": tmp_path / "out"}
    assert json.loads(run_fresh(script, **names))["format"] == format


@pytest.mark.parametrize("kind", ["crate", "vit"])
@pytest.mark.parametrize("format", ["timm", "hf"])
def test_the_model_card_runs(format, kind, checkpoints, run_fresh, tmp_path):
    """The code of the card, pasted into a new interpreter, names the class that the checkpoint predicts."""
    export(str(checkpoints[kind]), format, tmp_path / "out")
    pixels = np.random.default_rng(3).integers(0, 256, (40, 33, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "top1 87.5" in card and "step 30" in card and "toy, 4 classes" in card
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    assert len(code.splitlines()) <= 10
    printed = run_fresh(code.replace("PATH", str(tmp_path / "out")))
    assert printed.split()[-1] in ("shirt", "coat", "bag", "boot")


@pytest.mark.parametrize("format", ["timm", "hf", "safetensors"])
@pytest.mark.parametrize("wrong", [1e-3, float("nan")])
def test_a_model_that_differs_is_not_exported(format, wrong, checkpoints, tmp_path, monkeypatch):
    def spoilt(self: Source):
        weights = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        weights["head.bias"][0] += wrong
        return weights

    monkeypatch.setattr(Source, "weights", spoilt)
    with pytest.raises(RuntimeError, match=f"{format} export: logits differ"):
        export(str(checkpoints["crate"]), format, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_onnx_file_that_differs_is_not_exported(checkpoints, tmp_path, monkeypatch):
    from crate_graph.export import onnx_file

    honest = onnx_file.reload
    monkeypatch.setattr(onnx_file, "reload", lambda path: lambda images: honest(path)(images) * 1.01)
    with pytest.raises(RuntimeError, match="onnx export: logits differ"):
        export(str(checkpoints["crate"]), "onnx", tmp_path / "out.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_nothing(checkpoints, tmp_path, monkeypatch):
    from crate_graph.export import timm_folder

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(timm_folder, "save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        export(str(checkpoints["crate"]), "timm", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", FORMATS)
def test_an_existing_output_is_refused_and_kept(format, checkpoints, tmp_path):
    output = tmp_path / "out"
    output.write_text("precious")
    with pytest.raises(UserError, match="exists already; remove it or choose another --output"):
        export(str(checkpoints["crate"]), format, output)
    assert output.read_text() == "precious"


def test_an_unknown_format_is_refused(checkpoints, tmp_path):
    with pytest.raises(UserError, match="'tflite' is not known; choose one of timm, hf, safetensors, onnx"):
        export(str(checkpoints["crate"]), "tflite", tmp_path / "out")


@pytest.mark.parametrize(("format", "package"), [("hf", "transformers"), ("onnx", "onnxruntime")])
def test_a_missing_package_names_its_extra(format, package, checkpoints, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"needs the package {package} .*pip install 'crate-graph\[{format}\]'"):
        export(str(checkpoints["crate"]), format, tmp_path / "out")


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(UserError, match="checkpoint"):
        export(str(tmp_path / "nothing"), "timm", tmp_path / "out")


def test_a_folder_that_cannot_be_written_is_refused(checkpoints, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written .*choose another --output"):
        export(str(checkpoints["crate"]), "timm", tmp_path / "file" / "out")
