from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open

from crate_graph.checkpoint.initial import read_weights
from crate_graph.errors import UserError
from crate_graph.models import create_model, load_published
from crate_graph.models.crate_mae import to_patches
from crate_graph.models.published import from_published, to_published

GOLDEN = Path(__file__).parents[1] / "golden"
FAMILIES = ("crate", "crate_alpha", "crate_mae", "tost")
STRIDE = 13  # of large gradients of all families but crate each 13th value is kept
UNUSED = {"pos_embed", "decoder_embed.weight", "decoder_embed.bias"}  # in the published CRATE-MAE


def _read(family):
    """Tensors and configuration of one run of the published implementation."""
    with safe_open(GOLDEN / f"{family}.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


@pytest.fixture(scope="module")
def golden():
    return _read("crate")


def _part(tensors, prefix):
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _error(actual, expected):
    if actual.numel() != expected.numel():
        actual = actual.flatten()[::STRIDE]
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def _classification(model, tensors, image):
    logits = model(image)
    return {"logits": logits}, F.cross_entropy(logits, tensors["target"])


def _autoencoding(model, tensors, image):
    """The mean squared error over the hidden patches: those whose noise is not among the least quarter."""
    order = tensors["noise"].argsort(dim=1).argsort(dim=1)
    mask = (order >= 0.25 * order.shape[1]).float()
    pred = model(image, mask)
    errors = (pred - to_patches(image.detach(), (8, 8))).square().mean(dim=-1)
    return {"pred": pred, "mask": mask}, (errors * mask).sum() / mask.sum()


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("family", FAMILIES)
def test_published_run_is_reproduced(family, prefix):
    tensors, config = _read(family)
    state = {prefix + name: tensor for name, tensor in _part(tensors, "state.").items()}
    model = load_published(family, state, **config)
    assert model.training
    model.train(family != "tost")  # whose batch norms used their running statistics
    image = tensors["input"].clone().requires_grad_()
    outputs, loss = (_autoencoding if family == "crate_mae" else _classification)(model, tensors, image)
    loss.backward()
    assert {name: e for name in outputs if (e := _error(outputs[name], tensors[name])) >= 1e-5} == {}
    assert _error(loss, tensors["loss"]) < 1e-5
    if "input_grad" in tensors:
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


@pytest.mark.parametrize("family", FAMILIES)
def test_names_round_trip(family):
    published = _part(_read(family)[0], "state.")
    ours = from_published(published)
    foreign = ("transformer", "mlp_head", "to_patch", "conv1", "decoder_embed", "pos_embeder", "cls_attn")
    assert not any(name.startswith(foreign) or ".layers." in name or ".fn." in name for name in ours)
    back = to_published(ours)
    assert back.keys() == published.keys()
    kept = published.keys() - (UNUSED if family == "crate_mae" else set())
    assert all(back[name] is published[name] for name in kept)


def test_weights_without_published_names_are_refused():
    with pytest.raises(UserError, match="of no model with published names"):
        to_published(create_model("vit_tiny_patch16_224", embed_dim=24, depth=1, num_classes=2).state_dict())


def _as_flax(state, heads):
    """The arrays as CRATE-alpha's JAX code keeps them, by the layouts of flax: (in, out), heads apart."""
    width = state["cls_token"].shape[-1]

    def norm(name):
        return {"scale": state[f"{name}.weight"].numpy(), "bias": state[f"{name}.bias"].numpy()}

    def layer(i):
        name = f"transformer.layers.{i}"
        into = state[f"{name}.0.fn.qkv.weight"].numpy().T.reshape(width, heads, -1)
        out = state[f"{name}.0.fn.to_out.0.weight"].numpy().T.reshape(heads, -1, width)
        return {
            "LayerNorm_0": norm(f"{name}.0.norm"),
            "MultiHeadDotProductSubspaceAttention_0": {"proj": {"kernel": into}, "out": {"kernel": out}},
            "LayerNorm_1": norm(f"{name}.1.norm"),
            "OvercompleteISTABlock_0": {key: state[f"{name}.1.fn.{key}"].numpy() for key in ("D", "D1")},
        }

    return {
        "cls": state["cls_token"].numpy(),
        "pos_embedding": state["pos_embedding"].numpy(),
        "embedding": {
            "kernel": np.moveaxis(state["conv1.weight"].numpy(), (0, 1), (3, 2)),
            "bias": state["conv1.bias"],
        },
        "Transformer": {f"encoderblock_{i}": layer(i) for i in range(2)},
        "encoder_norm": norm("mlp_head.0"),
        "head": {"kernel": state["mlp_head.1.weight"].numpy().T, "bias": state["mlp_head.1.bias"].numpy()},
    }


def _flat(arrays, prefix=""):
    for name, value in arrays.items():
        yield from _flat(value, f"{prefix}{name}/") if isinstance(value, dict) else [(f"{prefix}{name}", value)]


@pytest.mark.parametrize("wrap", [lambda a: a, lambda a: {"params": a}, lambda a: dict(_flat(a, "params/"))])
def test_jax_arrays_of_crate_alpha(wrap):
    tensors, config = _read("crate_alpha")
    arrays = wrap(_as_flax(_part(tensors, "state."), heads=3))
    model = load_published("crate_alpha", arrays, **config)
    assert model.fc_norm.eps == 1e-6  # as trained; the published PyTorch form has 1e-5
    model.fc_norm.eps = 1e-5
    assert _error(model(tensors["input"]), tensors["logits"]) < 1e-5


def test_jax_arrays_in_a_file_are_weights_to_start_from(tmp_path):
    state = _part(_read("crate_alpha")[0], "state.")
    np.savez(tmp_path / "w.npz", **dict(_flat(_as_flax(state, heads=3), "params/")), **{"opt/count": np.zeros(1)})
    found = read_weights(tmp_path / "w.npz")
    assert found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)
    np.savez(tmp_path / "other.npz", a=np.zeros(1))
    with pytest.raises(UserError, match="no arrays as CRATE-alpha's JAX code names them"):
        read_weights(tmp_path / "other.npz")


def test_missing_jax_array_is_named():
    tensors, config = _read("crate_alpha")
    arrays = _as_flax(_part(tensors, "state."), heads=3)
    del arrays["Transformer"]["encoderblock_1"]["OvercompleteISTABlock_0"]["D1"]
    with pytest.raises(UserError, match=r"transformer\.layers\.1\.1\.fn\.D1 is missing"):
        load_published("crate_alpha", arrays, **config)


def test_norms_of_a_published_autoencoder_are_those_of_its_size():
    with torch.device("meta"):
        state = to_published(create_model("crate_mae_tiny_patch16_224", img_size=32).state_dict())
        config = {"image_size": 32, "patch_size": 16, "dim": 384, "depth": 12, "decoder_depth": 12, "heads": 6}
        assert load_published("crate_mae", state, **config).norm.eps == 1e-6


def test_class_attention_without_norms_of_all_tokens_is_refused():
    tensors, config = _read("tost")
    with pytest.raises(UserError, match="tokens_norm=False"):
        load_published("tost", _part(tensors, "state."), **{**config, "tokens_norm": "False"})
    with pytest.raises(UserError, match="neither True nor False"):
        load_published("tost", _part(tensors, "state."), **{**config, "qkv_bias": "0"})


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
