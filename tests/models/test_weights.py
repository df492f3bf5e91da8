import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed

from crate_graph.errors import UserError
from crate_graph.models.published import to_published
from crate_graph.models.weights import load_pretrained

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 10}
NAMES = ["crate_tiny_patch16_224", "vit_tiny_patch16_224"]


def _make(name, seed=0, **kwargs):
    torch.manual_seed(seed)
    return timm.create_model(name, **{**SMALL, **kwargs}).eval()


def assert_whole(transfer, model):
    assert set(transfer.loaded) == model.state_dict().keys()
    assert not (transfer.resized or transfer.replaced or transfer.initial or transfer.ignored)
    assert transfer.elements == sum(tensor.numel() for tensor in model.state_dict().values())


def test_a_new_head_is_left_as_it_was_although_one_fits():
    source, target = _make(NAMES[0]), _make(NAMES[0], seed=1)
    head = target.head.weight.clone()
    transfer = load_pretrained(target, source.state_dict(), new_head="the classes are others")
    assert transfer.replaced == {"head": "the classes are others"} and torch.equal(target.head.weight, head)
    assert set(transfer.ignored) == {"head.weight", "head.bias"} and torch.equal(target.cls_token, source.cls_token)


@pytest.mark.parametrize("name", NAMES)
def test_same_shapes_load_whole(name):
    source, target = _make(name), _make(name, seed=1)
    wrapped = {f"module.{key}": tensor for key, tensor in source.state_dict().items()}
    assert_whole(load_pretrained(target, wrapped), target)
    image = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(target(image), source(image))


@pytest.mark.parametrize("name", NAMES)
def test_other_size_and_classes(name):
    source, target = _make(name), _make(name, seed=1, img_size=(48, 40), num_classes=4)
    head = target.head.weight.clone()
    transfer = load_pretrained(target, source.state_dict())
    assert transfer.resized == {"pos_embed": ((4, 4), (6, 5))}
    assert transfer.replaced == {"head": "10 classes in the weights, 4 classes here"}
    assert set(transfer.initial) == set(transfer.ignored) == {"head.weight", "head.bias"}
    assert {*transfer.loaded, *transfer.initial} == target.state_dict().keys()
    expected = resample_abs_pos_embed(source.pos_embed, (6, 5), (4, 4))
    torch.testing.assert_close(target.pos_embed, expected)
    assert torch.equal(target.head.weight, head)
    assert torch.equal(target.cls_token, source.cls_token)
    assert target(torch.randn(1, 3, 48, 40)).shape == (1, 4)


def test_heads_that_one_side_lacks():
    whole, headless = _make(NAMES[0]), _make(NAMES[0], seed=1, num_classes=0)
    transfer = load_pretrained(headless, whole.state_dict())
    assert transfer.replaced == {"head": "10 classes in the weights, no head here"} and transfer.initial == ()
    fresh = _make(NAMES[0], seed=2)
    transfer = load_pretrained(fresh, headless.state_dict())
    assert transfer.replaced == {"head": "no head in the weights, 10 classes here"} and transfer.ignored == ()
    assert torch.equal(fresh.cls_token, whole.cls_token)


def test_published_names_are_accepted():
    source, target = _make(NAMES[0]), _make(NAMES[0], seed=1)
    assert_whole(load_pretrained(target, to_published(source.state_dict())), target)
    assert torch.equal(target.blocks[1].ista.dictionary, source.blocks[1].ista.dictionary)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"depth": 3}, r"blocks\.2\.norm1\.weight is not known"),
        ({"depth": 1}, r"blocks\.1\.norm1\.weight is missing"),
        ({"embed_dim": 24}, r"has shape \(1, 1, 24\) instead of \(1, 1, 48\)"),
        ({"img_size": (32, 40)}, "position embedding|pos_embed"),
    ],
)
def test_misfit_is_named_and_changes_nothing(name, kwargs, message):
    source, target = _make(name, **kwargs), _make(name, seed=1)
    before = {key: tensor.clone() for key, tensor in target.state_dict().items()}
    with pytest.raises(UserError, match=message):
        load_pretrained(target, source.state_dict())
    assert all(torch.equal(tensor, before[key]) for key, tensor in target.state_dict().items())


def test_another_architecture_is_refused():
    with pytest.raises(UserError, match="do not fit crate_tiny_patch16_224"):
        load_pretrained(_make(NAMES[0]), _make(NAMES[1]).state_dict())
