import copy

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed
from timm.optim import param_groups_layer_decay

from crate_graph.errors import UserError
from crate_graph.models.crate import CRATE, CRATEBlock, PatchEmbed
from crate_graph.ops import ista_reference, mssa_reference

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 10}


@pytest.fixture
def images():
    torch.manual_seed(0)
    return torch.randn(2, 3, 32, 32)


def _make(**kwargs) -> CRATE:
    torch.manual_seed(1)
    return timm.create_model("crate_tiny_patch16_224", **{**SMALL, **kwargs}).eval()


def test_patches_are_flattened_with_the_channel_fastest():
    embed = PatchEmbed((2, 3), 2, 12)
    embed.norm_in, embed.proj, embed.norm_out = torch.nn.Identity(), torch.nn.Identity(), torch.nn.Identity()
    image = torch.arange(2 * 4 * 6.0).reshape(1, 2, 4, 6)
    patches = embed(image)  # (1, 4, 12)
    assert patches.shape == (1, 4, 12)
    for index, (row, column) in enumerate([(0, 0), (0, 3), (2, 0), (2, 3)]):
        corner = image[0, :, row : row + 2, column : column + 3]  # (C, p, q)
        assert torch.equal(patches[0, index], corner.permute(1, 2, 0).flatten())


@pytest.mark.parametrize("residual", ["pre_norm", "norm_on_skip"])
def test_layer_is_the_two_steps_of_the_papers(residual):
    torch.manual_seed(0)
    block, z = CRATEBlock(24, 3, eta=0.2, lambd=0.3, residual=residual), torch.randn(2, 50, 24)
    x = block.norm1(z)
    w = (x @ block.mssa.subspaces.weight.T).reshape(2, 50, 3, 8).transpose(1, 2)
    attended = mssa_reference(w).transpose(1, 2).reshape(2, 50, 24)
    half = (z if residual == "pre_norm" else x) + block.mssa.proj(attended)
    expected = ista_reference(block.norm2(half), block.ista.dictionary, 0.2, 0.3)
    torch.testing.assert_close(block(z), expected, rtol=0, atol=1e-5)


def test_options_change_the_model(images):
    logits = _make()(images)
    for option in (
        {"eta": 0.2},
        {"lambd": 0.5},
        {"activation": "soft_threshold"},
        {"residual": "norm_on_skip"},
        {"global_pool": "avg"},
    ):
        assert not torch.allclose(_make(**option)(images), logits, atol=1e-3), option


def test_published_average_includes_the_class_token(images):
    for include, start in ((True, 0), (False, 1)):
        model = _make(global_pool="avg", pool_include_prefix=include)
        tokens = model.forward_features(images)
        expected = model.head(model.fc_norm(tokens[:, start:].mean(dim=1)))
        torch.testing.assert_close(model(images), expected)


def test_published_initialisation():
    model = timm.create_model("crate_tiny_patch16_224", depth=1)
    dictionary = model.blocks[0].ista.dictionary
    bound = (6 / 384) ** 0.5
    assert 0.999 * bound < dictionary.abs().max() <= bound
    assert 0.9 < model.pos_embed.std() < 1.1
    assert 0.8 < model.cls_token.std() < 1.2
    assert {module.eps for module in model.modules() if isinstance(module, torch.nn.LayerNorm)} == {1e-5}


def test_layer_outputs_are_sparse_and_not_negative(images):
    tokens = _make().forward_features(images)
    assert tokens.min() == 0
    assert 0.2 < (tokens == 0).float().mean() < 0.8


def test_intermediates(images):
    model = _make()
    tokens, maps = model.forward_intermediates(images)
    assert [tuple(m.shape) for m in maps] == [(2, 48, 4, 4)] * 3
    torch.testing.assert_close(model.forward_head(tokens), model(images))
    torch.testing.assert_close(maps[-1].flatten(2).transpose(1, 2), tokens[:, 1:])

    rows = model.forward_intermediates(
        images, [0, -1], return_prefix_tokens=True, norm=True, output_fmt="NLC", intermediates_only=True
    )
    patches, prefix = rows[1]
    assert patches.shape == (2, 16, 48)
    torch.testing.assert_close(torch.cat((prefix, patches), dim=1), model.fc_norm(tokens))

    early, first = model.forward_intermediates(images, [0], stop_early=True)
    torch.testing.assert_close(first[0], maps[0])
    torch.testing.assert_close(early[:, 1:], maps[0].flatten(2).transpose(1, 2))
    with pytest.raises(UserError, match="NCHW"):
        model.forward_intermediates(images, output_fmt="NHWC")


def test_features_only(images):
    model = _make(features_only=True, out_indices=(0, 1))
    features = model(images)
    assert [tuple(f.shape) for f in features] == [(2, 48, 4, 4)] * 2
    assert model.feature_info.channels() == [48, 48]
    assert model.feature_info.reduction() == [8, 8]
    assert len(model.model.blocks) == 2  # the layer that no feature needs is gone
    torch.testing.assert_close(features[1], _make().forward_intermediates(images)[1][1])


def test_classifier_is_replaced(images):
    model = _make()
    model.reset_classifier(4, "avg")
    assert model(images).shape == (2, 4)
    assert model.get_classifier() is model.head
    assert (model.num_classes, model.global_pool) == (4, "avg")
    model.reset_classifier(0)
    assert model(images).shape == (2, model.num_features)


def test_other_sizes_and_channels():
    model = _make(img_size=(16, 40), in_chans=1)
    image = torch.randn(1, 1, 16, 40)
    assert model(image).shape == (1, 10)
    assert model.forward_intermediates(image)[1][0].shape == (1, 48, 2, 5)
    with pytest.raises(UserError, match="set in_chans"):
        model(torch.randn(1, 3, 16, 40))


def test_wrong_image_size_names_the_remedy(images):
    with pytest.raises(UserError, match="images of 32x32 pixels and was given 40x32.*dynamic_img_size"):
        _make()(torch.randn(1, 3, 40, 32))
    with pytest.raises(UserError, match="not divisible"):
        _make(dynamic_img_size=True)(torch.randn(1, 3, 36, 32))


def test_input_size_is_changed_by_resampling_positions():
    fixed, dynamic = _make(), _make(dynamic_img_size=True)
    image = torch.randn(2, 3, 48, 24)
    expected = resample_abs_pos_embed(fixed.pos_embed, (6, 3), (4, 4))
    fixed.set_input_size((48, 24))
    torch.testing.assert_close(fixed.pos_embed, expected)
    torch.testing.assert_close(fixed(image), dynamic(image))
    with pytest.raises(UserError, match="patch_size"):
        fixed.set_input_size(patch_size=4)


def test_stochastic_depth_drops_only_the_compression():
    model = _make(drop_path_rate=0.5)
    assert [getattr(block.drop_path, "drop_prob", 0.0) for block in model.blocks] == [0.0, 0.25, 0.5]
    block, z = model.blocks[2].train(), torch.rand(64, 17, 48)
    block.drop_path.drop_prob = 0.999999
    torch.testing.assert_close(block(z), block.sparsify(z))


def test_head_dropout(images):
    model = _make(drop_rate=0.5).train()
    assert not torch.equal(model(images), model(images))
    assert torch.equal(model.eval()(images), model(images))


def test_layer_decay_groups_follow_the_depth():
    model = _make()
    names = {parameter: name for name, parameter in model.named_parameters()}
    scale = {
        names[parameter]: (group["lr_scale"], group["weight_decay"])
        for group in param_groups_layer_decay(model, 0.1, model.no_weight_decay(), layer_decay=0.5)
        for parameter in group["params"]
    }
    assert scale["pos_embed"] == (0.5**4, 0.0)
    assert scale["cls_token"] == (0.5**4, 0.0)
    assert scale["patch_embed.proj.weight"] == (0.5**4, 0.1)
    assert scale["blocks.0.ista.dictionary"] == (0.5**3, 0.1)
    assert scale["blocks.2.mssa.proj.bias"] == (0.5, 0.0)
    assert scale["head.weight"] == (1.0, 0.1)


def test_copies_are_independent(images):
    model = _make()
    twin = copy.deepcopy(model)
    before = twin(images)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(twin(images), before)


def test_exported_program_takes_any_batch(images):
    model = _make()
    program = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for batch in (1, 2, 5):
        image = torch.randn(batch, 3, 32, 32)
        torch.testing.assert_close(program.module()(image), model(image), rtol=0, atol=1e-5)
