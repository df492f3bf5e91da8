"""CRATE-alpha, CRATE-MAE and ToST: their layers by the equations, and the calls that timm's users know."""

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed
from timm.optim import param_groups_layer_decay

from crate_graph.errors import UserError
from crate_graph.models import create_model
from crate_graph.models.checkpointing import available_modes, set_activation_checkpointing
from crate_graph.models.crate_alpha import CRATEAlphaBlock
from crate_graph.models.crate_mae import CRATEDecoderBlock, from_patches, sine_positions, to_patches
from crate_graph.models.tost import FourierPositions, ToSTBlock
from crate_graph.models.weights import load_pretrained
from crate_graph.ops import mssa_reference, overcomplete_ista_reference, tssa_reference
from crate_graph.ops.memory import saved_bytes

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3}
CLASSIFIERS = ["crate_alpha_base_patch16_224", "tost_tiny_patch16_224"]
MAE = "crate_mae_tiny_patch16_224"


def _make(name, seed=1, **kwargs):
    torch.manual_seed(seed)
    classes = {} if name == MAE else {"num_classes": 10}
    return create_model(name, **{**SMALL, **classes, **kwargs}).eval()


@pytest.fixture
def images():
    torch.manual_seed(0)
    return torch.randn(2, 3, 32, 32)


def _subspaces(attention, x):
    return attention.subspaces(x).unflatten(-1, (3, 8)).transpose(1, 2)


def _back(attention, w):
    return attention.proj(w.transpose(1, 2).flatten(2))


def test_alpha_layer_is_the_two_steps_of_the_paper():
    torch.manual_seed(0)
    block, z = CRATEAlphaBlock(24, 3, eta=0.2, lambd=0.3), torch.randn(2, 50, 24)
    for dictionary in (block.ista.dictionary, block.ista.decoder):
        torch.nn.init.kaiming_uniform_(dictionary)
    half = z + _back(block.mssa, mssa_reference(_subspaces(block.mssa, block.norm1(z))))
    code = block.norm2(half)
    expected = half + overcomplete_ista_reference(code, block.ista.dictionary, block.ista.decoder, 0.2, 0.3)
    torch.testing.assert_close(block(z), expected, rtol=0, atol=1e-5)
    assert block.mssa.proj.bias is None


def test_tost_layer_is_the_two_steps_of_the_paper():
    torch.manual_seed(0)
    block, z = ToSTBlock(24, 3, scale=0.5), torch.randn(2, 50, 24)
    torch.nn.init.uniform_(block.tssa.temperature)
    attended = tssa_reference(_subspaces(block.tssa, block.norm1(z)), block.tssa.temperature)
    half = z + 0.5 * _back(block.tssa, attended)
    torch.testing.assert_close(block(z), half + 0.5 * block.mlp(block.norm2(half)), rtol=0, atol=1e-5)


def test_decoder_layer_of_the_autoencoder_subtracts():
    torch.manual_seed(0)
    block, y = CRATEDecoderBlock(24, 3), torch.randn(2, 50, 24)
    half = block.norm1(y) @ block.dictionary.T
    expected = half - _back(block.mssa, mssa_reference(_subspaces(block.mssa, block.norm2(half))))
    torch.testing.assert_close(block(y), expected, rtol=0, atol=1e-5)


def test_hidden_patches_are_those_that_mask_tokens_are_appended_for(images):
    """The published way: keep the visible patches, append mask tokens, put all back in their places."""
    model, order = _make(MAE), torch.rand(2, 16).argsort(dim=1)
    mask = (order.argsort(dim=1) >= 4).float()
    patches = model.patch_embed(images)
    visible = patches.gather(1, order[:, :4].unsqueeze(-1).expand(-1, -1, 48))
    shuffled = torch.cat((visible, model.mask_token.expand(2, 12, -1)), dim=1)
    tokens = shuffled.gather(1, order.argsort(dim=1).unsqueeze(-1).expand(-1, -1, 48))
    expected = torch.cat((model.cls_token.expand(2, -1, -1), tokens), dim=1) + model.pos_embed
    assert torch.equal(model.embed(images, mask), expected)
    changed = torch.where(from_patches(mask.unsqueeze(-1).expand(-1, -1, 192), (8, 8), (32, 32)) > 0, 7.0, images)
    assert torch.equal(model(changed, mask), model(images, mask))  # nothing of a hidden patch is seen


def test_patches_lie_row_by_row_with_the_channel_fastest():
    image = torch.arange(2 * 4 * 6.0).reshape(1, 2, 4, 6)
    patches = to_patches(image, (2, 3))
    assert patches.shape == (1, 4, 12)
    for index, (row, column) in enumerate([(0, 0), (0, 3), (2, 0), (2, 3)]):
        assert torch.equal(
            patches[0, index], image[0, :, row : row + 2, column : column + 3].permute(1, 2, 0).flatten()
        )
    assert torch.equal(from_patches(patches, (2, 3), (4, 6)), image)


def test_fixed_positions_tell_columns_first():
    table = sine_positions((2, 3), 8)[0]  # (7, 8)
    assert torch.equal(table[0], torch.zeros(8))
    row, column = torch.tensor([1.0, 0.01]), torch.tensor([2.0, 0.02])  # of the last patch, times the two frequencies
    torch.testing.assert_close(table[6], torch.cat((column.sin(), column.cos(), row.sin(), row.cos())))


def test_fourier_positions_have_no_fixed_size():
    positions = FourierPositions(12)
    assert positions((3, 5)).shape == (1, 12, 3, 5)
    waves = positions._waves(4, torch.device("cpu"))
    torch.testing.assert_close(waves[3, :2], torch.tensor([2 * torch.pi, 2 * torch.pi]).sin() + torch.tensor([0, 1]))


def test_published_initialisation():
    alpha = _make(CLASSIFIERS[0], embed_dim=96)
    for dictionary in (alpha.blocks[0].ista.dictionary, alpha.blocks[0].ista.decoder):
        assert 0.99 * (6 / 96) ** 0.5 < dictionary.abs().max() <= (6 / 96) ** 0.5
    assert alpha.cls_token.abs().max() < 1e-5
    assert 0.018 < alpha.pos_embed.std() < 0.022
    alpha.reset_classifier(200)
    assert 0.019 < alpha.head.weight.std() < 0.021 and not alpha.head.bias.any()
    tost = _make(CLASSIFIERS[1], layer_scale=0.25)
    assert (tost.blocks[1].gamma2 == 0.25).all() and (tost.class_blocks[0].gamma1 == 0.25).all()
    assert 0.018 < tost.blocks[0].mlp.fc1.weight.std() < 0.022
    mae = _make(MAE)
    assert mae.blocks[0].ista.lambd == 0.5
    assert 0.9 * (6 / 96) ** 0.5 < mae.blocks[0].mssa.proj.weight.abs().max() <= (6 / 96) ** 0.5  # Xavier


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_intermediates_and_features(name, images):
    model = _make(name)
    tokens, maps = model.forward_intermediates(images)
    assert [tuple(m.shape) for m in maps] == [(2, 48, 4, 4)] * 3
    torch.testing.assert_close(model.forward_head(tokens), model(images))
    torch.testing.assert_close(tokens, model.forward_features(images))
    assert tokens.shape == (2, 17, 48)
    features = _make(name, features_only=True, out_indices=(0, 1))
    assert len(features.model.blocks) == 2
    for feature, expected in zip(features(images), maps, strict=False):
        torch.testing.assert_close(feature, expected)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifier_sizes_and_channels(name, images):
    model = _make(name)
    model.reset_classifier(4, "avg")
    assert model(images).shape == (2, 4)
    model.reset_classifier(0)
    assert model(images).shape == (2, 48)
    other = _make(name, img_size=(16, 40), in_chans=1)
    assert other(torch.randn(1, 1, 16, 40)).shape == (1, 10)
    with pytest.raises(UserError, match="16x40 pixels and was given 32x32"):
        other(torch.randn(1, 1, 32, 32))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_input_size_is_changed(name):
    fixed, dynamic = _make(name), _make(name, dynamic_img_size=True)
    image = torch.randn(2, 3, 48, 24)
    fixed.set_input_size((48, 24))
    torch.testing.assert_close(fixed(image), dynamic(image))
    with pytest.raises(UserError, match="patch_size"):
        fixed.set_input_size(patch_size=4)
    with pytest.raises(UserError, match="not divisible"):
        fixed.set_input_size(36)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_stochastic_depth_drops_both_steps(name):
    model = _make(name, drop_path_rate=0.5)
    assert [getattr(block.drop_path, "drop_prob", 0.0) for block in model.blocks] == [0.0, 0.25, 0.5]
    block, z = model.blocks[2].train(), torch.rand(8, 17, 48)
    block.drop_path.drop_prob = 0.999999
    torch.testing.assert_close(block(z), z)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_layer_decay_groups_follow_the_depth(name):
    model = _make(name)
    names = {parameter: name for name, parameter in model.named_parameters()}
    scale = {
        names[parameter]: group["lr_scale"]
        for group in param_groups_layer_decay(model, 0.1, model.no_weight_decay(), layer_decay=0.5)
        for parameter in group["params"]
    }
    assert scale["head.weight"] == 1
    attention = "mssa" if "alpha" in name else "tssa"
    ordered = [scale["blocks.0.norm1.weight"], scale[f"blocks.2.{attention}.proj.weight"], scale["fc_norm.weight"]]
    assert ordered == sorted(ordered) and len(set(ordered)) > 1
    assert min(scale.values()) == min(s for n, s in scale.items() if n.startswith("patch_embed"))


def test_temperatures_do_not_decay():
    model = _make(CLASSIFIERS[1])
    spared = model.no_weight_decay()
    assert {"cls_token", "blocks.2.tssa.temperature"} <= spared <= {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize(("size", "remedy"), [(12, "2, 4, 8 or 16"), (32, "2, 4, 8 or 16"), ((8, 16), "2, 4, 8 or 16")])
def test_stem_halves(size, remedy):
    with pytest.raises(UserError, match=remedy):
        _make(CLASSIFIERS[1], patch_size=size, img_size=96)


def test_autoencoder_names_what_is_wrong(images):
    with pytest.raises(UserError, match="dept"):
        _make(MAE, dept=2)
    with pytest.raises(UserError, match="multiple of 4"):
        _make(MAE, embed_dim=42)
    with pytest.raises(UserError, match="decoder_depth=0"):
        _make(MAE, decoder_depth=0)
    with pytest.raises(UserError, match="set in_chans"):
        _make(MAE, in_chans=1)(images)


@pytest.mark.parametrize("name", [*CLASSIFIERS, MAE])
def test_gradients_are_equal_and_fewer_bytes_kept_in_every_mode(name, images):
    model = _make(name).train()
    names, kept, expected = list(model.state_dict()), {}, None
    assert available_modes(model) == ("none", "layer", "block", "every_k")
    for mode in ("none", "block", "layer", "every_k", "none"):
        set_activation_checkpointing(model, mode)
        kept[mode] = saved_bytes(lambda: model(images), model.parameters())
        model.zero_grad()
        model(images).square().sum().backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        expected = expected or gradients
        assert gradients.keys() == expected.keys()
        assert all(torch.equal(gradients[name], expected[name]) for name in expected), mode
        assert list(model.state_dict()) == names
    assert kept["none"] > kept["block"] > kept["layer"] > kept["every_k"]


def test_copies_are_independent(images):
    model = _make(MAE)
    twin = _make(MAE, seed=2)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin(images), model(images))


def test_encoder_of_the_autoencoder_becomes_a_classifier(images):
    source, conv = _make(MAE), {"patch_embed": "conv", "lambd": 0.5}
    target = _make("crate_tiny_patch16_224", seed=2, **conv)
    transfer = load_pretrained(target, source.state_dict())
    assert transfer.replaced == {"head": "no head in the weights, 10 classes here"}
    assert {name.split(".")[0].split("_")[0] for name in transfer.ignored} == {"decoder", "mask"}
    features = target.forward_head(target.forward_features(images), pre_logits=True)
    source.norm.eps = 1e-5  # CRATE's; the autoencoder's 1e-6 would differ in the fifth digit
    torch.testing.assert_close(features, source.forward_features(images)[:, 0], rtol=0, atol=1e-5)

    larger = _make("crate_tiny_patch16_224", seed=2, img_size=48, **conv)
    load_pretrained(larger, source.state_dict())
    torch.testing.assert_close(larger.pos_embed, resample_abs_pos_embed(source.pos_embed, (6, 6), (4, 4)))
    with pytest.raises(UserError, match=r"patch_embed=conv.*lambd"):
        load_pretrained(_make("crate_tiny_patch16_224"), source.state_dict())


@pytest.mark.parametrize("name", [*CLASSIFIERS, MAE])
def test_weights_of_another_image_size(name):
    source, target = _make(name), _make(name, seed=2, img_size=48)
    transfer = load_pretrained(target, {f"module.{key}": tensor for key, tensor in source.state_dict().items()})
    if name == CLASSIFIERS[1]:
        assert transfer.resized == {}  # positions are computed
        source.set_input_size(48)
        image = torch.randn(1, 3, 48, 48)
        torch.testing.assert_close(target(image), source(image))
    else:
        assert transfer.resized == {"pos_embed": ((4, 4), (6, 6))}
        assert torch.equal(target.cls_token, source.cls_token)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_exported_program_takes_any_batch(name, images):
    model = timm.create_model(name, **SMALL, num_classes=10).eval()
    program = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    image = torch.randn(5, 3, 32, 32)
    torch.testing.assert_close(program.module()(image), model(image), rtol=0, atol=1e-5)
