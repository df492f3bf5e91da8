"""The timm folder: what timm makes of it beyond the logits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from crate_graph.config.schema import EvalTransform
from crate_graph.data.augment import build_eval_transform
from crate_graph.export import export
from crate_graph.export.timm_folder import timm_transform


@pytest.fixture(params=["crate", "crate_rgb", "vit"])
def folder(request, checkpoints, tmp_path):
    export(str(checkpoints[request.param]), "timm", tmp_path / "out")
    return f"local-dir:{tmp_path / 'out'}"


def test_timm_resolves_our_transform(folder):
    model = timm.create_model(folder, pretrained=True)
    resolved = timm.data.resolve_model_data_config(model)
    channels = model.in_chans
    assert tuple(resolved["input_size"]) == (channels, 24, 24)
    pixels = np.random.default_rng(0).integers(0, 256, (50, 37, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert("L" if channels == 1 else "RGB")
    theirs = timm.data.create_transform(**resolved, is_training=False)(image)
    assert torch.allclose(theirs, evaluation_pixels(image, EvalTransform(size=24, resize=31), resolved), atol=1e-6)
    assert list(model.pretrained_cfg["label_names"]) == ["shirt", "coat", "bag", "boot"]


def test_features_only(folder):
    maps = timm.create_model(folder, pretrained=True, features_only=True, out_indices=(0, 1))
    whole = timm.create_model(folder, pretrained=True).eval()
    images = torch.randn(2, whole.in_chans, 24, 24)
    with torch.no_grad():
        found, expected = maps.eval()(images), whole.forward_intermediates(images, intermediates_only=True)
    assert [tuple(feature.shape) for feature in found] == [(2, 32, 3, 3)] * 2
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_another_number_of_classes_keeps_the_body(folder):
    whole = timm.create_model(folder, pretrained=True).state_dict()
    other = timm.create_model(folder, pretrained=True, num_classes=7)
    assert other.get_classifier().out_features == 7
    body = {name: tensor for name, tensor in other.state_dict().items() if not name.startswith("head.")}
    assert all(torch.equal(tensor, whole[name]) for name, tensor in body.items()) and len(body) > 10


def test_another_image_size_resamples_the_positions(folder):
    model = timm.create_model(folder, pretrained=True, img_size=48).eval()
    assert model.pos_embed.shape[1] == 37
    assert model(torch.randn(1, model.in_chans, 48, 48)).shape == (1, 4)


def test_training_arguments_are_left_behind(folder):
    model = timm.create_model(folder, pretrained=True)
    assert not any(isinstance(module, timm.layers.DropPath) for module in model.modules())


@given(size=st.integers(1, 1024), resize=st.integers(1, 2048))
def test_crop_pct_says_exactly_our_resize(size, resize):
    described = timm_transform(EvalTransform(size=size, resize=resize))
    assert math.floor(size / described["crop_pct"]) == resize and described["crop_mode"] == "center"


def test_resizing_straight_to_the_size_is_timms_squash():
    transform = EvalTransform(size=24, resize=None, interpolation="bilinear")
    config = {"input_size": (3, 24, 24), "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7), **timm_transform(transform)}
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 37, 3), dtype=np.uint8))
    theirs = timm.data.create_transform(**config, is_training=False)(image)
    assert torch.allclose(theirs, evaluation_pixels(image, transform, config), atol=1e-6)


def evaluation_pixels(image: Image.Image, transform: EvalTransform, config: dict) -> torch.Tensor:
    """What evaluation shows the model: (C, H, W)."""
    channels = len(config["mean"])
    view = build_eval_transform(transform, mean=config["mean"], std=config["std"], channels=channels, num_classes=4)
    return view.finish(np.stack([view.view(image, ())]), [()])[0]
