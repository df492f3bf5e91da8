import pytest
import timm
import torch

from crate_graph.errors import UserError
from crate_graph.models.checkpointing import available_modes, set_activation_checkpointing
from crate_graph.ops.memory import saved_bytes

CRATE = ("crate_tiny_patch16_224", ("none", "layer", "block", "every_k"))
VIT = ("vit_tiny_patch16_224", ("none", "layer", "every_k"))
SIZE = {"img_size": 32, "patch_size": 4, "embed_dim": 48, "depth": 4, "num_heads": 3, "num_classes": 10}


def _gradients(model, images):
    torch.manual_seed(2)  # stochastic depth drops the same paths
    model.zero_grad()
    model(images).square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(("name", "modes"), [CRATE, VIT])
@pytest.mark.parametrize("drop_path_rate", [0.0, 0.5])
def test_gradients_are_equal_in_every_mode(name, modes, drop_path_rate):
    torch.manual_seed(0)
    model = timm.create_model(name, **SIZE, drop_path_rate=drop_path_rate).train()
    images, names = torch.randn(3, 3, 32, 32), list(model.state_dict())
    assert available_modes(model) == modes
    expected = _gradients(model, images)
    for mode in (*modes, "none"):
        set_activation_checkpointing(model, mode, k=3)
        for parameter, gradient in _gradients(model, images).items():
            assert torch.equal(gradient, expected[parameter]), (mode, parameter)
        assert list(model.state_dict()) == names


@pytest.mark.parametrize("name", [CRATE[0], VIT[0]])
def test_kept_bytes_fall_in_the_documented_order(name):
    model = timm.create_model(name, **SIZE).train()
    images = torch.randn(2, 3, 32, 32)
    kept = {}
    for mode in [mode for mode in ("none", "block", "layer", "every_k") if mode in available_modes(model)]:
        set_activation_checkpointing(model, mode, k=2)
        kept[mode] = saved_bytes(lambda: model(images), model.parameters())
    assert list(kept.values()) == sorted(kept.values(), reverse=True)
    assert len(set(kept.values())) == len(kept)
    assert kept["layer"] < kept["none"] / 3
    if "block" in kept:  # Z_half of each of 4 layers, (2, 65, 48) in float32
        assert kept["block"] - kept["layer"] == 4 * 2 * 65 * 48 * 4
    set_activation_checkpointing(model, "none")
    assert saved_bytes(lambda: model(images), model.parameters()) == kept["none"]


def test_segments_have_k_layers():
    model = timm.create_model(CRATE[0], **SIZE)
    images, tokens = torch.randn(2, 3, 32, 32), 2 * 65 * 48 * 4
    kept = {}
    for k in (1, 2, 4):
        set_activation_checkpointing(model, "every_k", k)
        kept[k] = saved_bytes(lambda: model(images), model.parameters())
    assert kept[1] - kept[2] == 2 * tokens  # the inputs of 4 segments, then of 2, then of 1
    assert kept[2] - kept[4] == tokens


def test_missing_mode_names_the_model_and_its_modes():
    vit = timm.create_model(VIT[0], **SIZE)
    with pytest.raises(UserError, match="vit_tiny_patch16_224.*'block'; choose from 'none', 'layer', 'every_k'"):
        set_activation_checkpointing(vit, "block")
    with pytest.raises(UserError, match="choose from 'none'"):
        set_activation_checkpointing(torch.nn.Linear(2, 2), "layer")
    with torch.device("meta"):
        convolutional = timm.create_model("dla34")
    with pytest.raises(UserError, match=r"dla34.*choose 'none'"):
        set_activation_checkpointing(convolutional, "layer")
    set_activation_checkpointing(torch.nn.Linear(2, 2), "none")
