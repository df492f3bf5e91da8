"""The solvers of the two priors: against dense solutions, a linear programme, and the plain reference."""

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from scipy.sparse import lil_matrix

from crate_graph.ops import reference
from crate_graph.ops.glr import glr, normalize_symmetric
from crate_graph.ops.graph import distances, stencil
from crate_graph.ops.gtv_admm import directed_pair, gtv_admm
from crate_graph.ops.gtv_split import gtv_split
from crate_graph.ops.window import window

SIDE = 12


@pytest.fixture(autouse=True)
def _double():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def problem():
    """A step edge with texture, a quarter of it known, and the undirected weights of a graph that half knows it."""
    grid = window(SIDE, SIDE, 2)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    picture = torch.from_numpy((columns + 0.5 * rows > SIDE * 0.7) * 0.6 + 0.05 * np.sin(rows + 2.0 * columns))
    known = torch.rand(SIDE, SIDE) < 0.25
    features = picture[None, None] + 0.1 * torch.randn(1, 1, SIDE, SIDE)
    inside = grid.inside(torch.device("cpu")).double()
    weights = torch.exp(-distances(grid.flatten(features), grid)) * inside
    return grid, picture, known, weights


def flat(grid, picture):
    return grid.flatten(picture[None, None].double())


def linear_programme(grid, edges, picture, known):
    """min sum of w |x_i - x_j| with known pixels fixed, by HiGHS: the optimum's value. `edges`: (i, j, w)."""
    pixels = SIDE * SIDE
    constraints = lil_matrix((2 * len(edges), pixels + len(edges)))
    for row, (i, j, _) in enumerate(edges):
        for sign, at in ((1, 2 * row), (-1, 2 * row + 1)):
            constraints[at, i], constraints[at, j], constraints[at, pixels + row] = sign, -sign, -1
    fixed, values = known.flatten().tolist(), picture.flatten().tolist()
    bounds = [(v, v) if k else (None, None) for k, v in zip(fixed, values, strict=True)] + [(0, None)] * len(edges)
    cost = [0.0] * pixels + [w for _, _, w in edges]
    result = linprog(cost, constraints.tocsr(), np.zeros(2 * len(edges)), bounds=bounds, method="highs")
    assert result.status == 0
    return result.fun


def undirected_edges(grid, weights):
    planes = grid.unflatten(weights)[0]
    for edge, (dy, dx) in enumerate(grid.offsets):
        for i in range(SIDE):
            for j in range(SIDE):
                if i + dy < SIDE and 0 <= j + dx < SIDE:
                    yield i * SIDE + j, (i + dy) * SIDE + j + dx, planes[edge, i, j].item()


def total_variation(edges, x):
    return sum(w * abs(x.flatten()[i] - x.flatten()[j]).item() for i, j, w in edges)


def test_the_one_array_form_reaches_the_optimum_of_the_linear_programme(problem):
    grid, picture, known, weights = problem
    edges = list(undirected_edges(grid, weights))
    optimum = linear_programme(grid, edges, picture, known)
    layers, steps = 400, 8
    start = torch.where(known, picture, picture[known].mean())
    x = gtv_split(
        flat(grid, start),
        flat(grid, ~known),
        weights,
        torch.full((layers, 1), 0.03),
        torch.full((layers, steps, 1), 0.9),
        torch.full((layers, steps, 1), 0.4),
        grid,
    )
    solution = grid.unflatten(x)[0, 0]
    assert torch.equal(solution[known], picture[known])
    reached = total_variation(edges, solution)
    assert optimum <= reached + 1e-9
    assert reached < 1.003 * optimum


def test_the_papers_form_reaches_the_optimum_of_the_linear_programme(problem):
    grid, picture, known, weights = problem
    pair = directed_pair(weights, grid)
    both = torch.nn.functional.pad(pair.abs().sum(dim=2), (grid.start, grid.start))  # w_ij + w_ji
    edges = list(undirected_edges(grid, both))
    optimum = linear_programme(grid, edges, picture, known)
    layers, steps = 500, 8
    start = torch.where(known, picture, picture[known].mean())
    x = gtv_admm(
        flat(grid, start),
        flat(grid, picture * known),
        flat(grid, known),
        pair,
        torch.full((layers,), 10.0),
        torch.full((layers, steps, 1), 0.9),
        torch.full((layers, steps, 1), 0.4),
        torch.ones(layers),
        grid,
    )
    solution = grid.unflatten(x)[0, 0]
    assert (solution - picture)[known].abs().max() < 2e-3
    reached = total_variation(edges, torch.where(known, picture, solution))
    assert abs(reached / optimum - 1) < 0.01


def test_glr_reaches_the_dense_solution(problem):
    grid, picture, known, weights = problem
    normalized, diagonal = normalize_symmetric(weights, grid)
    unit = torch.eye(SIDE * SIDE).view(-1, 1, SIDE, SIDE)
    columns = [grid.unflatten(stencil(normalized, diagonal, grid.flatten(one[None]), grid)).flatten() for one in unit]
    matrix = torch.stack(columns, dim=1)
    s, u = known.flatten().nonzero()[:, 0], (~known).flatten().nonzero()[:, 0]
    expected = picture.flatten().clone()
    expected[u] = torch.linalg.solve(matrix[u][:, u], -matrix[u][:, s] @ expected[s])
    layers, steps = 60, 20
    start = torch.where(known, picture, picture[known].mean())
    x = glr(
        flat(grid, start),
        flat(grid, known),
        weights,
        torch.full((layers, steps, 1), 0.9),
        torch.full((layers, steps, 1), 0.6),
        torch.ones(layers),
        grid,
    )
    torch.testing.assert_close(grid.unflatten(x)[0, 0].flatten(), expected, rtol=0, atol=1e-6)


def settings(graphs, gamma=False):
    scalars = {"alpha": torch.rand(4, 3, graphs), "beta": 0.5 * torch.rand(4, 3, graphs), "skip": torch.rand(4)}
    if gamma:
        scalars["gamma"] = 3 + 5 * torch.rand(4)
    return {name: value.requires_grad_() for name, value in scalars.items()}


@pytest.mark.parametrize("prior", ["glr", "gtv"])
@pytest.mark.parametrize("size", [(7, 9), (5, 6)])
def test_fast_paths_equal_the_plain_reference(prior, size):
    """Values and all gradients, two pictures, two graphs each, borders included."""
    grid, batch, graphs = window(*size, 2), 2, 2
    features = (0.5 * torch.randn(batch, graphs, 4, *size)).requires_grad_()
    x = torch.rand(batch, graphs, 3, *size)
    mask = (torch.rand(batch, 1, 3, *size) > 0.6).double().expand_as(x)
    y = mask * torch.rand(batch, 1, 3, *size)
    x = (y + (1 - mask) * x).requires_grad_()
    scalars = settings(graphs, gamma=prior == "gtv")
    tiled = {name: s.repeat(1, 1, batch) if s.ndim == 3 else s for name, s in scalars.items()}

    def lay(t):
        return grid.flatten(t).flatten(0, 1)

    weights = torch.exp(-distances(lay(features), grid)) * grid.inside(torch.device("cpu"))
    plain_weights = reference.edge_weights(reference.distances(features))
    if prior == "glr":
        fast = glr(lay(x), lay(mask), weights, window=grid, **tiled)
        plain = reference.glr(x, mask, plain_weights, **scalars)
    else:
        fast = gtv_admm(lay(x), lay(y), lay(mask), directed_pair(weights, grid), window=grid, **tiled)
        plain_weights = plain_weights / plain_weights.sum(dim=2, keepdim=True)
        plain = reference.gtv(x, y, mask, plain_weights, **scalars)
    fast = grid.unflatten(fast).unflatten(0, (batch, graphs))
    torch.testing.assert_close(fast, plain, rtol=1e-10, atol=1e-12)
    seen = torch.randn_like(plain)
    inputs = [features, x, *scalars.values()]
    for ours, theirs in zip(
        torch.autograd.grad((fast * seen).sum(), inputs),
        torch.autograd.grad((plain * seen).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-11)


def test_the_one_array_form_has_exact_gradients():
    grid = window(6, 5, 2)
    inside, pixels = grid.inside(torch.device("cpu")).double(), grid.flatten(torch.ones(6, 5))
    free = grid.flatten((torch.rand(2, 3, 6, 5) < 0.7).double())
    y = grid.flatten(torch.randn(2, 3, 6, 5))
    inputs = (
        grid.flatten(torch.randn(2, 3, 6, 5)),
        0.1 + torch.rand(2, grid.edges, grid.length),
        0.2 * torch.rand(2, 2),
        torch.rand(2, 3, 2),
        torch.rand(2, 3, 2),
        torch.rand(2, 3, grid.length),
    )

    def solve(x, weights, threshold, alpha, beta, fidelity):
        x = gtv_split(x * pixels, free, weights * inside, threshold, alpha, beta, grid, fidelity * pixels, y)
        return grid.unflatten(x)

    assert torch.autograd.gradcheck(solve, tuple(t.requires_grad_() for t in inputs), fast_mode=True)


def test_a_soft_fidelity_that_grows_becomes_the_exact_one(problem):
    grid, picture, known, weights = problem
    noisy = torch.where(known, picture, picture[known].mean())
    steps = [torch.full((40, 1), 0.03), torch.full((40, 8, 1), 0.9), torch.full((40, 8, 1), 0.3)]
    everywhere, y = flat(grid, torch.ones_like(picture)), flat(grid, noisy)
    exact = gtv_split(y, flat(grid, ~known), weights, *steps, grid)
    soft = [gtv_split(y, everywhere, weights, *steps, grid, flat(grid, known * k), y) for k in (1.0, 1e6)]
    errors = [grid.unflatten(x - exact).abs().max().item() for x in soft]
    assert errors[1] < 1e-3 < errors[0]
