"""Training starts from every form in which weights travel: ours, exported, and published."""

from __future__ import annotations

import json
import pickle
import warnings
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForImageClassification

import crate_graph
from crate_graph.checkpoint import load_model
from crate_graph.checkpoint.initial import load_initial_weights, read_origin
from crate_graph.errors import UserError
from crate_graph.export import export

CLASSES = ("shirt", "coat", "bag", "boot")
GOLDEN = Path(__file__).parents[1] / "golden"
KINDS = {"timm": "timm folder", "hf": "Hugging Face folder", "safetensors": "safetensors file"}


def blank(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    return model


def equal(model, other):
    return all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("kind", ["crate", "vit"])
@pytest.mark.parametrize("format", KINDS)
def test_what_was_exported(format, kind, checkpoints, tmp_path):
    output = tmp_path / ("out.safetensors" if format == "safetensors" else "out")
    export(str(checkpoints[kind]), format, output)
    source, manifest = load_model(checkpoints[kind])
    model = blank(load_model(checkpoints[kind])[0])
    start = load_initial_weights(model, output, classes=CLASSES)
    assert equal(model, source) and not (start.transfer.replaced or start.transfer.initial or start.transfer.ignored)
    expected = "timm folder" if (format, kind) == ("hf", "vit") else KINDS[format]
    assert (start.kind, start.architecture) == (expected, manifest["model"]["name"])
    assert read_origin(output).classes == CLASSES


def test_what_a_user_of_transformers_saved(checkpoints, tmp_path):
    export(str(checkpoints["vit"]), "hf", tmp_path / "out")
    AutoModelForImageClassification.from_pretrained(tmp_path / "out").save_pretrained(tmp_path / "saved")
    model = blank(load_model(checkpoints["vit"])[0])
    assert load_initial_weights(model, tmp_path / "saved").kind == "Hugging Face folder"
    assert equal(model, load_model(checkpoints["vit"])[0])


def test_a_head_for_other_classes_is_new_although_as_many(checkpoints):
    model = load_model(checkpoints["crate"])[0]
    assert not load_initial_weights(model, checkpoints["crate"], classes=CLASSES).transfer.replaced
    assert not load_initial_weights(model, checkpoints["crate"], classes=("0", "1", "2", "3")).transfer.replaced
    start = load_initial_weights(model, checkpoints["crate"], classes=("cat", "dog", "cow", "elk"))
    assert "shirt ... in the weights and cat ... here" in start.transfer.replaced["head"]
    assert start.record()["initial"] == ("head.weight", "head.bias")


@pytest.mark.parametrize("family", ["crate", "crate_alpha", "crate_mae", "tost"])
def test_what_was_published(family, tmp_path):
    with safe_open(GOLDEN / f"{family}.safetensors", "pt") as file:
        held, config = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    state = {name.removeprefix("state."): tensor for name, tensor in held.items() if name.startswith("state.")}
    source, model = (crate_graph.models.load_published(family, state, **config) for _ in range(2))
    wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({"epoch": 3, "state_dict": wrapped, "optimizer": {"param_groups": []}}, tmp_path / "published.pth")
    start = load_initial_weights(blank(model), tmp_path / "published.pth")
    assert start.kind == "state dict" and equal(model, source)
    unused = {"pos_embed", "decoder_embed.weight", "decoder_embed.bias"} if family == "crate_mae" else set()
    assert set(start.transfer.ignored) == unused

    other = crate_graph.create_model("crate_tiny_patch16_224" if family != "crate" else "tost_tiny_patch16_224")
    with pytest.raises(UserError) as refused:
        load_initial_weights(other, tmp_path / "published.pth")
    said = str(refused.value)
    assert str(tmp_path / "published.pth") in said and "\n" not in said
    if family == "crate_mae":
        assert "set model.kwargs.patch_embed=conv" in said
    else:
        assert f"they are of the family {family}, use model.name={family}_..." in said and "is missing" in said


@pytest.mark.parametrize("name", ["there is none", "README.md", "out.onnx"])
def test_what_is_no_weights(name, tmp_path):
    if name != "there is none":
        (tmp_path / name).write_bytes(b"no weights")
    with pytest.raises(UserError, match="does not exist; name|cannot be read as weights"):
        read_origin(tmp_path / name)


def test_files_of_another_kind_or_shape(tmp_path):
    """Text that unpickles, tensors without names, descriptions that are no objects."""
    (tmp_path / "text.pth").write_text("hello")
    torch.save({1: torch.zeros(1)}, tmp_path / "numbers.pth")
    for folder, config in (
        ("list", {"model_type": ["x"]}),
        ("labels", {"model_type": "crate_graph", "id2label": ["a"]}),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text(json.dumps(config))
        save_file({"weight": torch.zeros(1)}, tmp_path / folder / "model.safetensors")
    said = {"description": "[1]", "classes": '{"a": 1}'}
    save_file({"weight": torch.zeros(1)}, tmp_path / "said.safetensors", metadata=said)
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"weight": [1.0]}))
    (tmp_path / "newer.pth").write_bytes(pickle.dumps({"weight": [1.0]}, protocol=5))
    for name in ("text.pth", "numbers.pth", "plain.pth", "newer.pth", "list", "labels", "said.safetensors"):
        with pytest.raises(UserError, match="cannot be read as weights|holds no state dict"), warnings.catch_warnings():
            warnings.simplefilter("error")
            read_origin(tmp_path / name)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.complex64, torch.qint8])
@pytest.mark.parametrize("name", ["head.weight", "blocks.0.norm1.weight", "pos_embed"])
def test_numbers_that_are_no_weights(kind, name, checkpoints, tmp_path):
    model = load_model(checkpoints["crate"])[0]
    state = model.state_dict()
    given = torch.quantize_per_tensor(state[name], 0.1, 0, kind) if kind == torch.qint8 else state[name].to(kind)
    torch.save({**state, name: given}, tmp_path / "model.pth")
    with pytest.raises(UserError, match=f"model.pth: {name} holds {kind} and not .* numbers; name weights as trained"):
        load_initial_weights(model, tmp_path / "model.pth")
