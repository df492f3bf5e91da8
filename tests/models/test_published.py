from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open

from crate_graph.errors import UserError
from crate_graph.models import create_model, load_published
from crate_graph.models.published import from_published, to_published

GOLDEN = Path(__file__).parents[1] / "golden" / "crate.safetensors"


@pytest.fixture(scope="module")
def golden():
    """Tensors and configuration of one run of the published implementation."""
    with safe_open(GOLDEN, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def _part(tensors, prefix):
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _error(actual, expected):
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("prefix", ["", "module."])
def test_published_run_is_reproduced(golden, prefix):
    tensors, config = golden
    state = {prefix + name: tensor for name, tensor in _part(tensors, "state.").items()}
    model = load_published("crate", state, **config)
    image = tensors["input"].clone().requires_grad_()
    logits = model(image)
    loss = F.cross_entropy(logits, tensors["target"])
    loss.backward()
    assert _error(logits, tensors["logits"]) < 1e-5
    assert _error(loss, tensors["loss"]) < 1e-5
    assert _error(image.grad, tensors["input_grad"]) < 1e-5
    gradients = to_published({name: parameter.grad for name, parameter in model.named_parameters()})
    expected = _part(tensors, "grad.")
    assert gradients.keys() == expected.keys()
    assert {name: e for name in expected if (e := _error(gradients[name], expected[name])) >= 1e-5} == {}


def test_model_of_a_published_size_has_its_name():
    config = {"image_size": 64, "patch_size": 32, "dim": 576, "depth": 12, "heads": 12, "num_classes": 10}
    state = to_published(create_model("crate_small_patch32_224", img_size=64, num_classes=10).state_dict())
    model = load_published("crate", state, **config)
    assert model.pretrained_cfg["architecture"] == "crate_small_patch32_224"
    assert model.num_classes == 10


def test_names_round_trip(golden):
    published = _part(golden[0], "state.")
    ours = from_published(published)
    assert not any(name.startswith(("transformer", "mlp_head", "to_patch")) for name in ours)
    back = to_published(ours)
    assert back.keys() == published.keys()
    assert all(back[name] is published[name] for name in published)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: s.pop("transformer.layers.1.1.fn.weight"), r"transformer\.layers\.1\.1\.fn\.weight is missing"),
        (lambda s: s.update(extra=torch.zeros(1)), "extra is not known"),
        (
            lambda s: s.update({"mlp_head.1.bias": torch.zeros(7)}),
            r"mlp_head\.1\.bias has shape \(7,\) instead of \(10,\)",
        ),
    ],
)
def test_misfit_is_named(golden, damage, message):
    state = _part(golden[0], "state.")
    damage(state)
    with pytest.raises(UserError, match=message):
        load_published("crate", state, **golden[1])


def test_wrong_configuration_is_named(golden):
    state, config = _part(golden[0], "state."), golden[1]
    with pytest.raises(UserError, match="image_size"):
        load_published("crate", state, **{key: config[key] for key in config if key != "image_size"})
    with pytest.raises(UserError, match="two"):
        load_published("crate", state, **{**config, "depth": "two"})
    with pytest.raises(UserError, match="choose from 'crate'"):
        load_published("crait", state, **config)
