"""Restoration networks: the paper's sizes, known values kept, any picture size, equal to the plain reference."""

import pytest
import torch

from crate_graph import UserError, create_model
from crate_graph.models import list_models
from crate_graph.models.bench_graph import PLAIN, run
from crate_graph.models.checkpointing import set_activation_checkpointing
from crate_graph.models.graph_learning import GraphLearning
from crate_graph.models.observation import interpolate_known, pack
from crate_graph.models.restorers import RESTORERS
from crate_graph.models.ugtv_fast import unpack
from crate_graph.ops.gtv_admm import directed_pair
from crate_graph.ops.memory import saved_bytes
from crate_graph.ops.window import window

SMALL = {
    "uglr": {"depth": 2, "layers": 2, "steps": 3},
    "ugtv": {"depth": 2, "layers": 3, "steps": 3},
    "iglr": {},
    "igtv": {},
    "ugtv_fast": {"dim": 8, "depth": 2},
    "conv_restorer": {"dim": 8, "depth": 1},
    "vit_restorer": {"dim": 16, "depth": 1, "size": 16, "num_heads": 2},
}
TRAINED = ("uglr", "ugtv", "ugtv_fast", "conv_restorer", "vit_restorer")
GRAPHS = ("uglr", "ugtv", "ugtv_fast")


def small(name, **kwargs):
    """A small network with weights that are not at their initial values, where a zero could hide a mistake."""
    torch.manual_seed(0)
    model = create_model(name, **{**SMALL[name], **kwargs})
    with torch.no_grad():
        for p in model.parameters():
            p += 0.02 * torch.randn_like(p)
    return model


def mosaic(height, width, batch=1, channels=3):
    torch.manual_seed(1)
    mask = torch.zeros(batch, channels, height, width)
    if channels == 3:
        mask[:, 0, ::2, ::2] = mask[:, 1, ::2, 1::2] = mask[:, 1, 1::2, ::2] = mask[:, 2, 1::2, 1::2] = 1
    else:
        mask[..., ::2, ::2] = 1
    return torch.rand(batch, channels, height, width) * mask, mask


def test_every_restorer_is_tested_here():
    assert set(SMALL) == set(RESTORERS)
    assert set(RESTORERS) <= set(list_models())


@pytest.mark.parametrize(
    ("name", "in_chans", "parameters"),
    [("uglr", 3, 323_410), ("ugtv", 3, 323_435), ("uglr", 1, 319_090), ("ugtv", 1, 319_115)],
)
def test_the_papers_parameter_counts(name, in_chans, parameters):
    assert sum(p.numel() for p in create_model(name, in_chans=in_chans).parameters()) == parameters


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("in_chans", [3, 1])
@pytest.mark.parametrize("size", [(16, 16), (5, 5), (7, 23), (24, 13)])
def test_known_values_are_kept_and_any_size_works(name, in_chans, size):
    observed, mask = mosaic(*size, batch=2, channels=in_chans)
    with torch.no_grad():
        estimate = small(name, in_chans=in_chans)(observed, mask)
    assert estimate.shape == observed.shape
    assert torch.isfinite(estimate).all()
    assert torch.equal(estimate * mask, observed)


@pytest.mark.parametrize("name", SMALL)
def test_an_empty_batch_stays_empty(name):
    with torch.no_grad():
        estimate = small(name)(*mosaic(8, 9, batch=0))
    assert estimate.shape == (0, 3, 8, 9) and estimate.dtype == torch.float32


@pytest.mark.parametrize("name", SMALL)
def test_a_picture_smaller_than_the_window_is_refused(name):
    with pytest.raises(UserError, match="4 x 9 pixels is smaller than the window of 5 x 5"):
        small(name)(*mosaic(9, 4))


@pytest.mark.parametrize("name", SMALL)
def test_another_type_or_shape_of_the_observation_is_refused(name):
    observed, mask = mosaic(8, 8)
    with pytest.raises(UserError, match=r"a picture of torch.float64 and a mask of torch.float32: .* call .float\(\)"):
        small(name)(observed.double(), mask)
    with pytest.raises(UserError, match="mask of torch.bool"):
        small(name)(observed, mask.bool())
    for wrong in (mask[:, :1], mask[0], None, 2 * mask):
        with pytest.raises(
            UserError, match=r"mask of shape \(.*8, 8\): both|mask of NoneType|other values than 0 and 1"
        ):
            small(name)(observed, wrong)
    with pytest.raises(UserError, match=r"should be \(batch, 3, height, width\)"):
        small(name)(*mosaic(8, 8, channels=1))


@pytest.mark.parametrize("name", SMALL)
def test_what_stands_where_nothing_is_known_does_not_matter(name):
    model, (observed, mask) = small(name), mosaic(12, 10)
    with torch.no_grad():
        expected = model(observed, mask)
        for filler in (0.7, -1.0, torch.nan):
            assert torch.equal(model(torch.where(mask > 0, observed, filler), mask), expected)


def test_a_noise_level_of_another_shape_or_that_is_none_is_refused():
    model, (observed, mask) = small("ugtv_fast", noise_aware=True), mosaic(8, 8, batch=2)
    for wrong in (0.1, torch.tensor(0.1), torch.zeros(3)):
        with pytest.raises(UserError, match=r"should be a tensor of shape \(2,\)"):
            model(observed, mask, wrong)
    for wrong in (-0.1, torch.nan, torch.inf):
        with pytest.raises(UserError, match=r"a noise level should be a number, 0 or more, where white is 1"):
            model(observed, mask, torch.tensor([0.1, wrong]))


@pytest.mark.parametrize("prior", ["uglr", "ugtv"])
def test_the_network_equals_the_plain_reference(prior):
    model, plain = small(prior), create_model(prior, plain=True, **SMALL[prior])
    plain.load_state_dict(model.state_dict())
    observed, mask = mosaic(9, 12, batch=2)
    results = []
    for network in (model, plain):
        estimate = network(observed, mask)
        (estimate * torch.linspace(0, 1, estimate.numel()).view_as(estimate)).sum().backward()
        results.append((estimate, {n: p.grad for n, p in network.named_parameters()}))
    (ours, our_grads), (theirs, their_grads) = results
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)
    for name, grad in our_grads.items():
        largest = their_grads[name].abs().max()
        assert (grad - their_grads[name]).abs().max() <= 2e-4 * largest + 1e-6, name


def test_normalised_edge_weights_are_windowed_softmax_attention():
    """Row i of the graph is softmax over i's window of -d(i, j): attention with tied queries and keys."""
    torch.manual_seed(0)
    graphs, grid = GraphLearning(2, 3), window(6, 7, 2)
    with torch.no_grad():
        graphs.root += 0.1 * torch.randn_like(graphs.root)
    maps = 0.5 * torch.randn(1, 6, 6, 7)
    pair = grid.unflatten(
        torch.nn.functional.pad(directed_pair(graphs(maps, grid), grid), (grid.start, grid.start))
    )  # (2, E, 2, H, W)
    metric = graphs.root.transpose(1, 2) @ graphs.root
    for head in range(2):
        features = maps[0, 3 * head : 3 * head + 3].flatten(1).T  # (H W, D)
        difference = features[:, None] - features[None]
        affinity = -torch.einsum("ijd,de,ije->ij", difference, metric[head], difference)
        rows, columns = torch.arange(42) // 7, torch.arange(42) % 7
        near = (rows[:, None] - rows).abs().le(2) & (columns[:, None] - columns).abs().le(2)
        near.fill_diagonal_(False)
        attention = affinity.masked_fill(~near, -torch.inf).softmax(dim=1)
        for edge, (dy, dx) in enumerate(grid.offsets):
            for i in range(42):
                y, x = i // 7 + dy, i % 7 + dx
                if y < 6 and 0 <= x < 7:
                    j = 7 * y + x
                    ours = pair[head, edge, :, i // 7, i % 7]
                    torch.testing.assert_close(ours, torch.stack((attention[i, j], -attention[j, i])))


def test_linear_interpolation_of_a_mosaic():
    """A plane is interpolated exactly inside; a border pixel takes the mean of the known values beside it."""
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(10.0), indexing="ij")
    plane = (0.02 * rows + 0.03 * columns).expand(1, 3, 8, 10)
    _, mask = mosaic(8, 10)
    estimate = interpolate_known(plane * mask, mask)
    torch.testing.assert_close(estimate[..., 1:-1, 1:-1], plane[..., 1:-1, 1:-1])
    torch.testing.assert_close(estimate[0, 0, 7, 9], plane[0, 0, 6, 8])


def test_interpolation_fills_wide_gaps():
    observed = torch.zeros(1, 1, 32, 32)
    mask = torch.zeros_like(observed)
    observed[..., 3, 5], mask[..., 3, 5] = 0.5, 1
    torch.testing.assert_close(interpolate_known(observed, mask), torch.full_like(observed, 0.5))


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("precision", [torch.bfloat16])
def test_the_solver_stays_in_float32_under_autocast(name, precision):
    model, (observed, mask) = small(name), mosaic(16, 16)
    with torch.no_grad():
        exact = model(observed, mask)
        with torch.autocast("cpu", precision):
            mixed = model(observed, mask)
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed * mask, observed)
    assert 0 < (mixed - exact).abs().max() < 0.02


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("mode", ["layer", "block"])
def test_activation_checkpointing_keeps_less_and_changes_no_gradient(name, mode):
    observed, mask = mosaic(16, 16)
    kept, grads = {}, {}
    for chosen in ("none", mode):
        model = small(name)
        set_activation_checkpointing(model, chosen)
        kept[chosen] = saved_bytes(lambda m=model: m(observed, mask).sum(), model.parameters())
        model(observed, mask).square().sum().backward()
        grads[chosen] = [p.grad for p in model.parameters()]
    assert kept[mode] < kept["none"]
    assert all(torch.equal(a, b) for a, b in zip(grads["none"], grads[mode], strict=True))


@pytest.mark.parametrize("name", ["ugtv_fast", "conv_restorer"])
def test_an_odd_border_is_no_darker_than_an_even_one(name):
    """A constant picture of odd sides: beyond the border lies its mirror image, not black."""
    model, (_, mask) = small(name), mosaic(33, 33)
    constant = 0.8 * mask
    with torch.no_grad():
        odd = model(constant, mask)[..., -3:, -3:]
        even = model(constant[..., :32, :32], mask[..., :32, :32])[..., -3:, -3:]
        middle = model(constant, mask)[..., 15:18, 15:18]
    assert (odd - middle).abs().max() < 2 * (even - middle).abs().max() + 1e-3


def test_packing_continues_an_odd_side_in_its_phase():
    x = torch.arange(9.0).view(1, 1, 3, 3)
    packed = pack(x)  # (1, 4, 2, 2): by phase
    assert packed[0, :, 1, 1].tolist() == [8, 7, 5, 4]
    assert torch.equal(unpack(packed, 3, 3), x)


@pytest.mark.parametrize("name", ["ugtv_fast", "conv_restorer", "vit_restorer"])
def test_a_noise_aware_network_leaves_known_values_where_there_is_noise(name):
    model, (observed, mask) = small(name, noise_aware=True), mosaic(16, 16, batch=2)
    with torch.no_grad():
        estimate = model(observed, mask, torch.tensor([0.0, 0.2]))
        alone = model(observed, mask)
        deaf = small(name)(observed, mask, torch.tensor([0.0, 0.2]))
    changes = ((estimate - observed) * mask).flatten(1).abs().amax(dim=1)
    assert changes[0] == 0 < changes[1]
    assert torch.equal(alone * mask, observed)
    assert torch.equal(deaf * mask, observed)


def test_known_values_bind_less_the_larger_the_noise():
    """By 1 / sigma^2: with hardly any noise the solution agrees with them."""
    model, (observed, mask) = small("ugtv_fast", noise_aware=True), mosaic(16, 16)
    levels = [torch.tensor([level]) for level in (0.002, 0.05, 0.5)]
    with torch.no_grad():
        model.entry.conv.weight[:, 24:] = 0  # the convolutions do not see sigma; the solver alone does
        changes = [((model(observed, mask, sigma) - observed) * mask).abs().max().item() for sigma in levels]
    assert changes[0] < changes[1] < changes[2]


def test_vit_restores_large_pictures_in_tiles():
    model, (observed, mask) = small("vit_restorer"), mosaic(40, 28)
    with torch.no_grad():
        assert model(observed, mask).shape == observed.shape


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("ugtv", {"in_chans": 4}, "in_chans=4"),
        ("uglr", {"blocks": 3}, "blocks"),
        ("conv_restorer", {"x": 1}, "x"),
        ("ugtv", {"in_chans": "3"}, "in_chans='3'"),
        ("ugtv_fast", {"radius": 3}, "radius=3 should be a whole number from 1 to 2"),
        ("ugtv_fast", {"noise_aware": "no"}, "noise_aware='no' should be true or false"),
        ("uglr", {"layers": 0}, "layers=0 should be a whole number, 1 or more"),
        ("igtv", {"color_unit": 0}, "color_unit=0 should be a number over 0"),
    ],
)
def test_bad_arguments_are_named(name, kwargs, message):
    with pytest.raises(UserError, match=message):
        create_model(name, **kwargs)


def test_the_benchmark_compares_equal_values():
    rows = {row["model"]: row for row in run(repeats=1, side=8)}
    assert rows["ugtv"]["max_error"] < 1e-5
    assert rows["ugtv"]["share"] < 0.25
    assert rows["ugtv_fast"]["share"] < rows["ugtv"]["share"] < rows[PLAIN]["share"] == 1


@pytest.mark.parametrize("name", GRAPHS)
def test_graph_arithmetic_is_per_pixel(name):
    """The paper's uGTV: 188 kFLOP of CG and 79 to 260 of edge updates per pixel, beside 635 of convolutions."""
    model = create_model(name)
    assert model.graph_flops(20, 30) == 600 * model.graph_flops(1, 1)
    if name == "ugtv":
        assert 188_000 < model.graph_flops(1, 1) < 460_000
