"""The Hugging Face folder: processor, labels, fine-tuning, saving again."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

import crate_graph
from crate_graph.analysis.pictures import Sample, View
from crate_graph.analysis.subject import open_subject
from crate_graph.config.schema import EvalTransform
from crate_graph.data.augment import build_eval_transform
from crate_graph.export import export
from crate_graph.export.hf.configuration import CrateConfig
from crate_graph.export.hf.modeling import CrateForImageClassification

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


@pytest.fixture(params=["crate", "crate_rgb", "vit_grey"])
def folder(request, checkpoints, tmp_path):
    export(str(checkpoints[request.param]), "hf", tmp_path / "out")
    return tmp_path / "out"


def channels_of(folder) -> int:
    return len(AutoImageProcessor.from_pretrained(folder).image_mean)


def random_image(seed: int, height: int = 50, width: int = 37) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def evaluation_pixels(image: Image.Image, channels: int, resize: int | None = 31) -> torch.Tensor:
    view = build_eval_transform(
        EvalTransform(size=24, resize=resize),
        mean=MEAN[:channels],
        std=STD[:channels],
        channels=channels,
        num_classes=4,
    )
    return view.finish(np.stack([view.view(image.convert("L" if channels == 1 else "RGB"), ())]), [()])[0]


def test_the_processor_is_our_evaluation_transform(folder):
    processor = AutoImageProcessor.from_pretrained(folder)
    images = [random_image(0), random_image(1, 24, 90)]
    found = processor(images, return_tensors="pt")["pixel_values"]
    expected = torch.stack([evaluation_pixels(image, channels_of(folder)) for image in images])
    assert torch.equal(found, expected)
    from_arrays = processor([np.asarray(image) for image in images], return_tensors="pt")["pixel_values"]
    assert torch.equal(from_arrays, expected)


def test_analyze_takes_the_folder_with_its_pictures(folder):
    subject, channels = open_subject(str(folder)), channels_of(folder)
    expected = AutoModelForImageClassification.from_pretrained(folder).model.state_dict()
    assert all(tensor.equal(expected[name]) for name, tensor in subject.model.state_dict().items())
    assert subject.view == EvalTransform(size=24, resize=31) and tuple(subject.mean) == MEAN[:channels]
    seen = View(subject).images([Sample("a", random_image(0).convert("L" if channels == 1 else "RGB"))])
    torch.testing.assert_close(seen[0], evaluation_pixels(random_image(0), channels))


def test_the_processor_survives_saving_even_without_a_crop(checkpoints, tmp_path):
    export(str(checkpoints["crate_rgb"]), "hf", tmp_path / "out")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    processor.shortest_edge = None
    processor.save_pretrained(tmp_path / "again")
    found = AutoImageProcessor.from_pretrained(tmp_path / "again")(random_image(0), return_tensors="pt")["pixel_values"]
    assert torch.equal(found[0], evaluation_pixels(random_image(0), 3, resize=None))
    processor.save_pretrained(tmp_path / "out")
    assert open_subject(str(tmp_path / "out")).view == EvalTransform(size=24, resize=None)


def test_timms_own_vit_is_read_by_transformers_itself(checkpoints, tmp_path):
    export(str(checkpoints["vit"]), "hf", tmp_path / "out")
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    assert type(model).__module__.startswith("transformers.")
    assert model.config.id2label == {0: "shirt", 1: "coat", 2: "bag", 3: "boot"}
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    found = processor(random_image(0), return_tensors="pt")["pixel_values"][0]
    assert torch.allclose(found, evaluation_pixels(random_image(0), 3), atol=1e-6)


def test_labels_and_configuration(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "crate_graph" and "auto_map" not in config
    model = AutoModelForImageClassification.from_pretrained(folder)
    assert model.config.id2label == {0: "shirt", 1: "coat", 2: "bag", 3: "boot"}
    assert model.config.label2id["boot"] == 3


def test_loss_and_hidden_states(folder):
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    pixels = torch.randn(2, channels_of(folder), 24, 24)
    with torch.no_grad():
        output = model(pixel_values=pixels, labels=torch.tensor([1, 3]), output_hidden_states=True)
        plain = model(pixels)
        as_tuple = model(pixels, return_dict=False)
    assert torch.allclose(output.logits, plain.logits, atol=1e-6) and torch.equal(as_tuple[0], plain.logits)
    assert torch.allclose(output.loss, torch.nn.functional.cross_entropy(output.logits, torch.tensor([1, 3])))
    assert [tuple(state.shape) for state in output.hidden_states] == [(2, 32, 3, 3)] * 2
    assert plain.loss is None and plain.hidden_states is None


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
def test_fine_tuning_on_other_classes(folder, tmp_path):
    """A new head, gradients everywhere (with recomputation too), a falling loss, and a round trip through a folder."""
    before = AutoModelForImageClassification.from_pretrained(folder).model.state_dict()
    torch.manual_seed(0)
    model = AutoModelForImageClassification.from_pretrained(folder, num_labels=6, ignore_mismatched_sizes=True)
    head = model.model.get_classifier()
    assert tuple(head.weight.shape) == (6, 32) and 0.01 < head.weight.std() < 0.03 and not head.bias.any()
    after = model.model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before if not name.startswith("head."))

    model.train()
    model.gradient_checkpointing_enable()
    assert model.model.grad_checkpointing
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    pixels, labels = torch.randn(6, channels_of(folder), 24, 24), torch.arange(6)
    losses = []
    for _ in range(5):
        loss = model(pixel_values=pixels, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]

    model.eval().save_pretrained(tmp_path / "tuned")
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "tuned").eval()
    assert again.config.num_labels == 6
    with torch.no_grad():
        assert torch.equal(again(pixels).logits, model(pixels).logits)


def test_another_image_size_resamples_the_positions_and_is_saved(folder, tmp_path):
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    small = model.model.pos_embed.detach().clone()
    model.set_image_size(48)
    assert model.model.pos_embed.shape == (1, 37, 32)
    pooled = model.model.pos_embed[:, 1:].unflatten(1, (6, 6)).unflatten(1, (3, 2)).unflatten(3, (3, 2)).mean((2, 4))
    assert torch.corrcoef(torch.stack([pooled.flatten(), small[:, 1:].flatten()]))[0, 1] > 0.9
    model.save_pretrained(tmp_path / "larger")
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "larger").eval()
    pixels = torch.randn(1, channels_of(folder), 48, 48)
    with torch.no_grad():
        assert torch.equal(again(pixels).logits, model(pixels).logits)


def test_a_model_from_scratch_keeps_its_own_initialisation():
    arguments = {"img_size": 24, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
    torch.manual_seed(0)
    ours = CrateForImageClassification(
        CrateConfig("crate_tiny_patch16_224", arguments, num_labels=3)
    ).model.state_dict()
    torch.manual_seed(0)
    plain = crate_graph.create_model("crate_tiny_patch16_224", num_classes=3, **arguments).state_dict()
    assert all(torch.equal(ours[name], plain[name]) for name in plain)
