"""Collectors measure what the layers do, and leave the model as it was."""

import pytest
import timm
import torch
from torch.nn import functional as F

from crate_graph import create_model
from crate_graph.analysis.layers import activations, matrices, undefined, weights
from crate_graph.analysis.measured import Gathered
from crate_graph.errors import UserError
from crate_graph.measures.graphs import data_residual, glr_value, gtv_value
from crate_graph.measures.rate import (
    coding_rate_reference,
    nonzero_fraction,
    rate_given_subspaces_reference,
    unit_tokens,
)
from crate_graph.ops.window import window

TINY = dict(img_size=16, patch_size=4, embed_dim=24, depth=3, num_heads=3, num_classes=4)


@pytest.fixture(scope="module")
def images():
    return torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def mosaic():
    generator = torch.Generator().manual_seed(0)
    mask = (torch.rand(2, 3, 12, 10, generator=generator) < 0.4).float()
    return torch.rand(2, 3, 12, 10, generator=generator) * mask, mask


def seeded(name, **kwargs):
    torch.manual_seed(0)
    return create_model(name, **kwargs)


def table(measured):
    return {(m.name, m.layer): m for m in measured}


def check(measured, expected):
    """Mean and standard deviation of per-sample values (B,)."""
    assert measured.mean == pytest.approx(expected.mean().item(), rel=1e-5, abs=1e-7)
    assert measured.std == pytest.approx(expected.std().item(), rel=1e-2, abs=1e-5)
    assert measured.over == "samples"


@pytest.mark.parametrize("checkpointing", [False, True])
def test_crate_measures_both_half_steps_by_the_published_formulas(images, checkpointing):
    model = seeded("crate_tiny_patch16_224", **TINY)
    model.blocks[1].checkpoint_steps = checkpointing
    found = table(activations(model, images))
    assert len(found) == 3 * 8
    z = model.embed(images)
    for layer, block in enumerate(model.blocks, start=1):
        half = block.compress(z)
        after = block.sparsify(half)
        bases = block.mssa.subspaces.weight.unflatten(0, (3, 8))  # (K, p, D)
        for name, tokens in (("attention_input", block.norm1(z)), ("half_step", half), ("output", after)):
            w = F.normalize(torch.einsum("kpd,bnd->bknp", bases, tokens), dim=-1)
            check(found[f"rc_{name}", (layer,)], rate_given_subspaces_reference(w))
        for name, tokens in (("half_step", half), ("output", after)):
            check(found[f"coding_rate_{name}", (layer,)], coding_rate_reference(unit_tokens(tokens)))
            check(found[f"nonzero_{name}", (layer,)], nonzero_fraction(tokens))
        total = coding_rate_reference(unit_tokens(after)) - rate_given_subspaces_reference(w)
        count = (after != 0).sum(dim=(1, 2))
        check(found["sparse_rate_reduction", (layer,)], total - 0.1 * count)
        z = after
    outputs = model.forward_intermediates(images, output_fmt="NLC", return_prefix_tokens=True)[1]
    last = torch.cat((outputs[-1][1], outputs[-1][0]), dim=1)
    check(found["nonzero_output", (3,)], nonzero_fraction(last))


def test_a_vit_has_the_same_measures_for_each_projection_of_a_head(images):
    model = seeded("vit_tiny_patch16_224", **TINY)
    found = table(activations(model, images))
    tokens = [torch.cat((prefix, patches), dim=1) for patches, prefix in model.forward_intermediates(
        images, output_fmt="NLC", return_prefix_tokens=True, intermediates_only=True)]  # fmt: skip
    second = model.blocks[1]
    half = tokens[0] + second.attn(second.norm1(tokens[0]))
    key = second.attn.qkv.weight[24:48].unflatten(0, (3, 8))  # (K, p, D)
    w = torch.einsum("kpd,bnd->bknp", key, second.norm1(tokens[0]))
    w = w + second.attn.qkv.bias[24:48].view(3, 1, 8)
    check(found["rc_attention_input_key", (2,)], rate_given_subspaces_reference(F.normalize(w, dim=-1)))
    w = F.normalize(torch.einsum("kpd,bnd->bknp", key, half), dim=-1)
    check(found["rc_half_step_key", (2,)], rate_given_subspaces_reference(w))
    check(found["coding_rate_half_step", (2,)], coding_rate_reference(unit_tokens(half)))
    check(found["coding_rate_output", (3,)], coding_rate_reference(unit_tokens(tokens[2])))
    assert found["nonzero_output", (3,)].mean == 1.0
    assert "sparse_rate_reduction" in " ".join(undefined(model)) and not undefined(seeded("uglr", depth=1))


def test_weights_of_transformers(images):
    model = seeded("crate_tiny_patch16_224", **TINY)
    with torch.no_grad():
        model.blocks[0].mssa.subspaces.weight.copy_(torch.eye(24))  # orthogonal subspaces
        model.blocks[0].ista.dictionary.copy_(3 * torch.eye(24))
    found = table(weights(model))
    assert found["coherence", (1,)].mean == found["overlap", (1,)].mean == pytest.approx(0, abs=1e-6)
    assert found["coherence_largest", (2,)].mean >= found["coherence", (2,)].mean > found["overlap", (2,)].mean > 0.3
    assert found["ista_step_bound", (1,)].mean == pytest.approx(0.9)
    assert found["dictionary_effective_rank", (1,)].mean == pytest.approx(24, rel=1e-5)
    assert found["dictionary_smallest_singular_value", (1,)].mean == pytest.approx(3)
    shapes = {(m.name, m.layer): tuple(m.values.shape) for m in matrices(model)}
    assert shapes["dictionary_spectrum", (1,)] == (24,) and shapes["coherence", (3,)] == (3, 3)
    names = {m.name for m in weights(seeded("vit_tiny_patch16_224", **TINY))}
    assert names == {
        f"{n}_{p}" for n in ("coherence", "coherence_largest", "overlap") for p in ("query", "key", "value")
    }


@pytest.mark.parametrize("name", ["uglr", "ugtv"])
def test_an_admm_layer_is_what_a_shorter_network_ends_with(mosaic, name):
    """With one head and without skips, a network of 2 layers ends where one of 3 has its second; likewise CG steps."""
    long = seeded(name, depth=1, heads=1, features=4, layers=3, steps=3)
    found = table(activations(long, *mosaic, cg_steps=True))
    prior = "glr" if name == "uglr" else "gtv"
    for layers, steps, layer in ((2, 3, (1, 2)), (1, 2, (1, 1, 2)), (1, 1, (1, 1, 1))):
        short = seeded(name, depth=1, heads=1, features=4, layers=layers, steps=steps)
        state = long.state_dict()
        for key, tensor in short.state_dict().items():
            state[key] = state[key][tuple(slice(n) for n in tensor.shape)]
        short.load_state_dict(state)
        if len(layer) == 3:
            short.blocks[0].solver.skip.data.fill_(1)  # a CG step is before the layer's skip
        value = (glr_value if name == "uglr" else gtv_value)(*solution_of(short, mosaic), window(12, 10, 2)) / 120
        check(found[prior, layer], value)
    assert found["constraint_violation", (1, 3)].mean == (0 if name == "uglr" else pytest.approx(0.05, abs=0.05))
    residuals = [found["system_residual", (1, 1, step)].mean for step in (1, 2, 3)]
    assert max(residuals) < 1 and found["system_residual", (1, 1)].mean == residuals[-1]


def solution_of(network, inputs):
    """Edge weights and flat solution of a network of one block and one head."""
    seen = []
    block = network.blocks[0]
    handles = [part.register_forward_hook(lambda _, __, x: seen.append(x)) for part in (block.graphs, block.solver)]
    with torch.no_grad():
        network(*inputs)
    for handle in handles:
        handle.remove()
    return seen[0], window(12, 10, 2).flatten(seen[1])


def test_ugtv_fast_with_noise_is_measured_on_what_its_solver_returns(mosaic):
    model = seeded("ugtv_fast", depth=1, dim=8, convs=1, heads=1, features=2, noise_aware=True)
    torch.nn.init.normal_(model.blocks[0].guide.weight, std=0.1)
    seen = {}
    solver = model.blocks[0].solver
    handle = solver.register_forward_hook(lambda _, inputs, output: seen.update(y=inputs[0], x=output))
    graph = model.blocks[0].graphs.register_forward_hook(lambda _, __, output: seen.update(w=output))
    sigma = torch.tensor([0.0, 0.1])  # the first picture binds hard, the second softly
    found = table(activations(model, *mosaic, sigma))
    handle.remove()
    graph.remove()
    grid = window(12, 10, 1)
    mask = grid.flatten(mosaic[1])
    check(found["data_residual", (1, 2)], data_residual(seen["x"], seen["y"], mask))
    check(found["gtv", (1, 2)], gtv_value(seen["w"], seen["x"], grid) / 120)
    assert found["data_residual", (1, 2)].mean > 0 and found["data_residual", (1, 0)].mean == 0


def test_learned_scalars_are_those_that_the_solver_uses(mosaic):
    model = seeded("ugtv", depth=2, heads=2, features=3, layers=2, steps=2)
    with torch.no_grad():
        model.blocks[1].solver.alpha[1, 0] = torch.tensor([0.2, 1.6])  # clamped to 1
        model.blocks[1].solver.gamma[0] = 4.0
        model.blocks[0].graphs.root[0] *= 2
    found = table(weights(model))
    assert found["alpha", (2, 2, 1)].mean == pytest.approx(0.6) and found["alpha", (2, 2, 1)].over == "heads"
    assert found["gamma", (2, 1)].mean == 4.0 and found["gamma", (2, 1)].std is None
    assert found["metric_trace", (1,)].mean == pytest.approx((4 * 4.5 + 4.5) / 2, rel=1e-5)  # M = 1.5 I at first
    assert found["mix", (1,)].mean == 0.5 and found["skip", (1,)].mean == pytest.approx(0.95)
    assert [m.values.shape for m in matrices(model)] == [(2, 3, 3)] * 2


NETWORKS = {
    "crate": ("crate_tiny_patch16_224", TINY),
    "alpha": ("crate_alpha_base_patch16_224", {**TINY, "drop_path_rate": 0.5}),
    "tost": ("tost_tiny_patch16_224", TINY),
    "mae": ("crate_mae_tiny_patch16_224", {key: TINY[key] for key in TINY if key != "num_classes"}),
    "vit": ("vit_tiny_patch16_224", {**TINY, "drop_path_rate": 0.5}),
    "ugtv": ("ugtv", dict(depth=1, features=3, layers=2, steps=2)),
    "ugtv_fast": ("ugtv_fast", dict(depth=1, dim=8, convs=1, features=2)),
    "igtv": ("igtv", dict(layers=1, steps=2)),
    "vit_restorer": ("vit_restorer", dict(size=16, dim=8, depth=1, num_heads=2)),
}


@pytest.mark.parametrize("network", NETWORKS)
def test_the_model_and_the_random_numbers_stay_as_they_were(network, images, mosaic):
    name, kwargs = NETWORKS[network]
    model = seeded(name, **kwargs)
    inputs = (images,) if network in ("crate", "alpha", "tost", "mae", "vit") else mosaic
    with torch.no_grad():
        output = model.eval()(*inputs)
    model.train()
    for module in list(model.children())[:1]:
        module.eval()  # a part that somebody froze stays so
    before = describe(model)
    random = torch.get_rng_state()
    assert activations(model, *inputs)
    weights(model)
    assert torch.get_rng_state().equal(random)
    assert describe(model) == before
    with torch.no_grad():
        assert model.eval()(*inputs).equal(output)


def test_also_when_the_forward_pass_fails(images, mosaic):
    for name, inputs in (("crate", (images[:, :1],)), ("ugtv", (mosaic[0][:, :1], mosaic[1]))):
        model = seeded(NETWORKS[name][0], **NETWORKS[name][1])
        before = describe(model)
        with pytest.raises(UserError):
            activations(model, *inputs)
        assert describe(model) == before


def describe(model):
    """Everything of a model that a collector could leave behind."""
    hooks = [
        (name, len(m._forward_hooks), len(m._forward_pre_hooks), m.training, "watch" in vars(m))
        for name, m in model.named_modules()
    ]
    weights = {key: (tensor.tolist(), tensor.requires_grad) for key, tensor in model.state_dict(keep_vars=True).items()}
    return hooks, weights, [p.grad is None for p in model.parameters()]


def test_models_without_such_layers_are_refused(images):
    for model in (timm.create_model("resnet10t"), seeded("conv_restorer"), seeded("ugtv", depth=1, plain=True)):
        with pytest.raises(UserError, match="measure"):
            activations(model, images)
    with pytest.raises(UserError, match="resnet10t"):
        weights(timm.create_model("resnet10t"))


def test_values_of_one_sample_have_no_deviation():
    gathered = Gathered()
    gathered.add("a", (1,), torch.tensor([2.0]), "nats")
    gathered.add("b", (1,), torch.tensor([1.0]), "nats")
    gathered.add("b", (1,), torch.tensor([3.0]), "nats")  # another tile
    one, two = gathered.measured()
    assert (one.mean, one.std) == (2.0, None)
    assert (two.mean, two.std) == (2.0, pytest.approx(2**0.5))
