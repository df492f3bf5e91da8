"""Graph operators: exact adjoints, symmetry, positive semidefiniteness, gradients, borders, and the plain reference."""

import pytest
import torch

from crate_graph.ops import reference
from crate_graph.ops.cg import conjugate_gradients, unrolled_cg
from crate_graph.ops.graph import add_edge_cross_, distances, edge_sums, laplacian, node_sums, stencil
from crate_graph.ops.window import window

SIZES = [(5, 5), (7, 9), (1, 6), (12, 5)]


@pytest.fixture(autouse=True)
def _double():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def inside(grid):
    return grid.inside(torch.device("cpu")).double()


def random_graph(grid, graphs=2):
    return torch.rand(graphs, grid.edges, grid.length) * inside(grid)


def random_signal(grid, graphs=2, channels=3):
    return grid.flatten(torch.randn(graphs, channels, grid.height, grid.width))


def dense(apply, grid):
    """The matrix of a linear operator on one graph and channel: (H W, H W)."""
    pixels = grid.height * grid.width
    unit = torch.eye(pixels).view(pixels, 1, grid.height, grid.width)
    return torch.stack([grid.unflatten(apply(grid.flatten(one[None])))[0, 0].flatten() for one in unit], dim=1)


def directed(weights, grid):
    """Undirected flat weights as the reference has them: (G, E, length) -> (1, G, K, H, W)."""
    around = torch.zeros(1, len(weights), 24, grid.height, grid.width)
    places = reference.offsets(grid.radius)
    planes = grid.unflatten(weights)  # (G, E, H, W)
    for edge, (dy, dx) in enumerate(grid.offsets):
        around[0, :, places.index((dy, dx))] = planes[:, edge]
        back = torch.zeros_like(planes[:, edge])
        for i in range(grid.height):
            for j in range(grid.width):
                if 0 <= i - dy < grid.height and 0 <= j - dx < grid.width:
                    back[:, i, j] = planes[:, edge, i - dy, j - dx]
        around[0, :, places.index((-dy, -dx))] = back
    return around


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_every_pair_of_neighbours_is_one_edge(height, width):
    grid = window(height, width, 2)
    pairs = sum(
        abs(y - v) <= 2 and abs(x - u) <= 2
        for y in range(height)
        for x in range(width)
        for v in range(height)
        for u in range(width)
    )
    assert inside(grid).sum().item() == (pairs - height * width) / 2


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_laplacian_is_the_references(height, width):
    grid = window(height, width, 2)
    weights, x = random_graph(grid), random_signal(grid)
    plain = reference.laplacian(directed(weights, grid), grid.unflatten(x)[None])
    torch.testing.assert_close(grid.unflatten(laplacian(weights, x, grid))[None], plain)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_laplacian_is_symmetric_positive_and_kills_constants(height, width):
    grid = window(height, width, 2)
    weights = random_graph(grid, graphs=1)
    matrix = dense(lambda v: laplacian(weights, v, grid), grid)
    torch.testing.assert_close(matrix, matrix.T, rtol=0, atol=1e-14)
    assert torch.linalg.eigvalsh(matrix).min() > -1e-12
    assert matrix.sum(dim=1).abs().max() < 1e-12


def test_nothing_flows_over_the_border():
    """A bright right border must not light up the left one, nor the empty places between rows."""
    grid = window(6, 5, 2)
    picture = torch.zeros(1, 1, 6, 5)
    picture[..., -1] = 1
    flat = laplacian(random_graph(grid, 1), grid.flatten(picture), grid)
    assert grid.unflatten(flat)[..., :2].abs().max() == 0
    assert flat.abs().sum() == grid.unflatten(flat).abs().sum()


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_node_and_edge_sums_are_adjoint(height, width):
    grid = window(height, width, 2)
    edges, nodes = random_graph(grid), random_signal(grid, channels=1)[:, 0]
    left = (node_sums(edges, grid) * nodes).sum()
    torch.testing.assert_close(left, (edges * edge_sums(nodes, grid)).sum(), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_incidence_and_its_adjoint(height, width):
    """<Cx, e> = <x, C'e>, and C'C is the Laplacian of w_ij^2 + w_ji^2."""
    weights = reference.edge_weights(torch.rand(1, 2, 24, height, width))
    x, e = torch.randn(1, 2, 3, height, width), torch.randn(1, 2, 3, 24, height, width)
    across = reference.incidence(weights, x)
    torch.testing.assert_close(
        (across * e).sum(), (x * reference.incidence_adjoint(weights, e)).sum(), rtol=1e-12, atol=1e-12
    )
    squares = weights.square()
    both = squares.clone()  # + w_ji^2, which lies at j under the opposite offset
    for k, (dy, dx) in enumerate(reference.offsets()):
        opposite = reference.neighbours(squares[:, :, reference.offsets().index((-dy, -dx))])
        both[:, :, k] += opposite[:, :, k]
    torch.testing.assert_close(reference.incidence_adjoint(weights, across), reference.laplacian(both, x))


def test_edge_cross_is_the_derivative_of_the_quadratic_form():
    """d/dw_ij of u'(D - W)v = (u_i - u_j)(v_i - v_j), summed over channels."""
    grid = window(6, 7, 2)
    weights, u, v = random_graph(grid).requires_grad_(), random_signal(grid), random_signal(grid)
    (grad,) = torch.autograd.grad((u * laplacian(weights, v, grid)).sum(), weights)
    product = (u * v).sum(dim=1)
    expected = edge_sums(product, grid)
    add_edge_cross_(expected, u, v, grid, sign=-1)
    torch.testing.assert_close(grad * inside(grid), expected * inside(grid))


def test_distances_are_the_references():
    grid = window(6, 9, 2)
    features = torch.randn(1, 2, 5, 6, 9)
    ours = distances(grid.flatten(features)[0], grid) * inside(grid)
    plain = reference.distances(features) * reference.neighbours(torch.ones(6, 9))
    torch.testing.assert_close(directed(ours, grid), plain)


@pytest.mark.parametrize("free_share", [1.0, 0.6])
def test_gradients(free_share):
    grid = window(6, 5, 2)
    mask, pixels = inside(grid), grid.flatten(torch.ones(6, 5))
    free = grid.flatten((torch.rand(2, 3, 6, 5) < free_share).double())
    inputs = {
        "weights": torch.rand(2, grid.edges, grid.length),
        "diagonal": torch.rand(2, 1, grid.length),
        "b": random_signal(grid),
        "x": random_signal(grid),
        "alpha": torch.rand(3, 2),
        "beta": torch.rand(3, 2),
        "scale": torch.rand(2, 3, grid.length),
    }
    inputs = {name: value.requires_grad_() for name, value in inputs.items()}

    def solve(weights, diagonal, b, x, alpha, beta, scale):
        x = unrolled_cg(weights * mask, diagonal * pixels, b * pixels, x * pixels, alpha, beta, grid, scale * free)
        return grid.unflatten(x)

    assert torch.autograd.gradcheck(solve, tuple(inputs.values()), fast_mode=True)
    assert torch.autograd.gradcheck(lambda f: distances(f * pixels, grid) * mask, (inputs["x"],), fast_mode=True)
    stencil_inputs = (inputs["weights"], inputs["diagonal"], inputs["x"])
    assert torch.autograd.gradcheck(
        lambda w, d, v: stencil(w * mask, d * pixels, v * pixels, grid), stencil_inputs, fast_mode=True
    )


def test_unrolled_cg_with_the_textbooks_steps_is_the_textbooks():
    """With alpha and beta of conjugate gradients the unrolled recurrence gives the same iterates."""
    grid = window(4, 5, 2)
    weights, b = random_graph(grid, 1), random_signal(grid, 1, 1)
    diagonal = node_sums(weights, grid)[:, None] + grid.flatten(torch.ones(4, 5))
    matrix = dense(lambda v: stencil(weights, diagonal, v, grid), grid)
    r = grid.unflatten(b).flatten()
    p, alpha, beta = r.clone(), [], [0.0]
    for _ in range(6):
        alpha.append((r @ r) / (p @ matrix @ p))
        rest = r - alpha[-1] * (matrix @ p)
        beta.append((rest @ rest) / (r @ r))
        r, p = rest, rest + beta[-1] * p
    steps = [torch.tensor(s, dtype=torch.float64)[:, None] for s in (alpha, beta[:-1])]
    x = unrolled_cg(weights, diagonal, b, torch.zeros_like(b), *steps, grid)
    exact = conjugate_gradients(weights, diagonal, b, torch.zeros_like(b), grid, tolerance=0, iterations=6)
    torch.testing.assert_close(x, exact, rtol=1e-9, atol=1e-9)


def test_textbook_cg_solves_the_glr_system_as_a_dense_solver_does():
    """L_UU x_U = -L_US y."""
    grid = window(8, 7, 2)
    weights = random_graph(grid, 1)
    known = torch.rand(8, 7) < 0.3
    picture = torch.rand(8, 7)
    matrix = dense(lambda v: laplacian(weights, v, grid), grid)
    s, u = known.flatten().nonzero()[:, 0], (~known).flatten().nonzero()[:, 0]
    expected = picture.flatten().clone()
    expected[u] = torch.linalg.solve(matrix[u][:, u], -matrix[u][:, s] @ expected[s])
    start = grid.flatten((picture * known)[None, None])
    free = grid.flatten((~known).double()[None, None])
    degrees = node_sums(weights, grid)[:, None]
    x = conjugate_gradients(weights, degrees, None, start, grid, free, tolerance=1e-12)
    torch.testing.assert_close(grid.unflatten(x)[0, 0].flatten(), expected, rtol=1e-8, atol=1e-8)
