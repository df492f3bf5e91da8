import subprocess
import sys

import pytest
import timm
import torch

import crate_graph
from crate_graph.errors import UserError
from crate_graph.models import list_models

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}

SIZES = {"alpha": ("tiny", "small", "base", "large", "huge"), "mae": ("tiny", "small", "base", "large")}


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("crate_tiny_patch16_224", 6_090_856),
        ("crate_small_patch16_224", 13_116_328),
        ("crate_base_patch16_224", 22_796_008),
        ("crate_large_patch16_224", 77_641_192),
        ("crate_in21k_tiny_patch8_224", 5_743_250),  # published: 5.74 M
        ("crate_in21k_small_patch8_224", 14_118_482),  # published: 14.12 M
        ("crate_in21k_base_patch8_224", 38_831_570),  # published: 38.83 M
        ("crate_alpha_tiny_patch16_224", 4_811_944),
        ("crate_alpha_small_patch16_224", 40_975_912),
        ("crate_alpha_base_patch8_224", 72_338_152),
        ("crate_alpha_large_patch14_224", 253_650_920),
        ("crate_alpha_huge_patch14_224", 526_819_560),
        ("tost_tiny_patch16_224", 5_769_328),  # published: 5.8 M
        ("tost_small_patch16_224", 22_589_944),  # published: 22.6 M
        ("tost_medium_patch16_224", 71_481_064),  # published: 68.1 M, which its code does not have
        ("tost_large_patch16_224", 160_286_920),
    ],
)
def test_published_parameter_counts(name, parameters):
    model = timm.create_model(name, device="meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert model.pretrained_cfg["architecture"] == name


def test_every_published_size_and_patch_is_registered():
    expected = {f"crate_{s}_patch{p}_224" for s in ("tiny", "small", "base", "large") for p in (8, 14, 16, 32)}
    expected |= {f"crate_in21k_{s}_patch{p}_224" for s in ("tiny", "small", "base") for p in (8, 16)}
    expected |= {
        f"crate_{kind}_{s}_patch{p}_224" for kind, sizes in SIZES.items() for s in sizes for p in (8, 14, 16, 32)
    }
    assert set(list_models("crate_*")) == expected
    assert set(list_models("tost_*")) == {
        f"tost_{s}_patch{p}_224" for s in ("tiny", "small", "medium", "large") for p in (8, 16)
    }


@pytest.mark.parametrize(
    ("size", "with_what_is_unused"),
    [("tiny", 11_555_328), ("small", 25_405_824), ("base", 44_638_464), ("large", 154_274_560)],
)
def test_published_parameter_counts_of_autoencoders(size, with_what_is_unused):
    """The published figures, 25.4 and 44.6 M for small and base, count what the code keeps without training it."""
    with torch.device("meta"):
        model = crate_graph.create_model(f"crate_mae_{size}_patch16_224")
    width = model.embed_dim
    unused = 2 * model.pos_embed.numel() + width * width + width
    assert sum(parameter.numel() for parameter in model.parameters()) + unused == with_what_is_unused


def test_importing_the_package_is_enough():
    code = "import crate_graph, timm; print(timm.create_model('crate_tiny_patch16_224', device='meta').num_classes)"
    done = subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code], capture_output=True, text=True)
    assert done.stdout == "1000\n", done.stderr


def test_timm_models_come_through():
    model = crate_graph.create_model("vit_tiny_patch16_224", num_classes=7, img_size=32)
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 7)


def test_unknown_name_gives_the_nearest():
    with pytest.raises(UserError, match="did you mean crate_tiny_patch16_224"):
        crate_graph.create_model("crate_tinny_patch16_224")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"dept": 2}, "dept"),
        ({"num_heads": 5}, "num_heads=5"),
        ({"img_size": 36}, "36x36 pixels is not divisible by patches of 8x8; use 32x32"),
        ({"img_size": (32, 30)}, "use 32x32"),
        ({"residual": "none"}, "'pre_norm', 'norm_on_skip'"),
        ({"activation": "gelu"}, "'relu', 'soft_threshold'"),
        ({"global_pool": "max"}, "'token', 'avg', ''"),
        ({"patch_embed": "flat"}, "'linear', 'conv'"),
    ],
)
def test_wrong_argument_names_the_remedy(kwargs, message):
    with pytest.raises(UserError, match=message):
        crate_graph.create_model("crate_tiny_patch16_224", **{**TINY, **kwargs})


def test_wrong_argument_of_a_timm_model():
    with pytest.raises(UserError, match="vit_tiny_patch16_224"):
        crate_graph.create_model("vit_tiny_patch16_224", num_heads=5)


@pytest.mark.parametrize(
    ("name", "kwargs"), [("crate_tiny_patch16_224", {"pretrained": True}), ("vit_tiny_patch16_224.x", {})]
)
def test_weights_that_do_not_exist(name, kwargs):
    with pytest.raises(UserError, match="retrained"):
        crate_graph.create_model(name, **kwargs)
