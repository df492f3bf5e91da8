"""Values of the graph priors, residuals and entropies against closed forms and dense matrices, in float64."""

import math

import pytest
import torch

from crate_graph.measures.graphs import (
    cg_iterates,
    constraint_violation,
    data_residual,
    edge_entropy,
    glr_value,
    gtv_value,
    relative_norms,
)
from crate_graph.ops.cg import unrolled_cg
from crate_graph.ops.graph import node_sums
from crate_graph.ops.window import window


def edge_weights(grid, graphs=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inside = grid.inside(torch.device("cpu")).double()
    return torch.rand(graphs, grid.edges, grid.length, dtype=torch.float64, generator=generator) * inside


def dense(grid, weights):
    """The adjacency matrix of one graph, (pixels, pixels)."""
    adjacency = torch.zeros(grid.height * grid.width, grid.height * grid.width, dtype=torch.float64)
    for edge, (dy, dx) in enumerate(grid.offsets):
        plane = grid.pixels(weights[edge])
        for row, column in torch.cartesian_prod(torch.arange(grid.height), torch.arange(grid.width)).tolist():
            if 0 <= row + dy < grid.height and 0 <= column + dx < grid.width:
                here, there = row * grid.width + column, (row + dy) * grid.width + column + dx
                adjacency[here, there] = adjacency[there, here] = plane[row, column]
    return adjacency


def random_picture(grid, graphs=1, channels=2):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(graphs, channels, grid.height, grid.width, dtype=torch.float64, generator=generator)


def test_two_pixels():
    """One edge: the normalised Laplacian is [[1, -1], [-1, 1]] and both directions have all the weight."""
    grid = window(1, 2, 1)
    x = grid.flatten(torch.tensor([[[[0.2, 0.9]]]], dtype=torch.float64))
    weights = edge_weights(grid)
    assert glr_value(weights, x, grid).item() == pytest.approx(0.7**2, rel=1e-13)
    assert gtv_value(weights, x, grid).item() == pytest.approx(2 * 0.7, rel=1e-13)
    assert edge_entropy(weights, grid).item() == pytest.approx(0.0, abs=1e-13)


def test_values_equal_those_of_dense_matrices():
    grid = window(4, 5, 2)
    weights, picture = edge_weights(grid, graphs=2), random_picture(grid, graphs=2)
    for graph in range(2):
        adjacency = dense(grid, weights[graph])
        degrees = adjacency.sum(dim=1)
        root = torch.diag(degrees.rsqrt())
        laplacian = root @ (torch.diag(degrees) - adjacency) @ root
        v = picture[graph].flatten(1)  # (C, pixels)
        glr = (v @ laplacian * v).sum().item()
        directed = adjacency / degrees[:, None]
        gtv = (directed * (v[:, :, None] - v[:, None, :]).abs()).sum().item()
        entropy = torch.special.entr(directed).sum(dim=1).mean().item()
        assert glr_value(weights, grid.flatten(picture), grid)[graph].item() == pytest.approx(glr, rel=1e-12)
        assert gtv_value(weights, grid.flatten(picture), grid)[graph].item() == pytest.approx(gtv, rel=1e-12)
        assert edge_entropy(weights, grid)[graph].item() == pytest.approx(entropy, rel=1e-12)


def test_a_flat_picture_has_no_total_variation():
    grid = window(5, 5, 2)
    flat = grid.flatten(torch.full((1, 1, 5, 5), 0.3, dtype=torch.float64))
    assert gtv_value(edge_weights(grid), flat, grid).item() == 0


def test_equal_weights_have_the_entropy_of_the_number_of_neighbours():
    grid = window(3, 3, 1)
    weights = grid.inside(torch.device("cpu")).double()[None]
    expected = (4 * math.log(3) + 4 * math.log(5) + math.log(8)) / 9  # corners, sides, centre
    assert edge_entropy(weights, grid).item() == pytest.approx(expected, rel=1e-13)


def test_what_is_left_of_the_data():
    x = torch.tensor([[[1.0, 2.0, 3.0, 9.0]]], dtype=torch.float64)
    y = torch.tensor([[[1.3, 2.0, 2.6, 0.0]]], dtype=torch.float64)
    mask = torch.tensor([[[1.0, 1.0, 1.0, 0.0]]], dtype=torch.float64)
    assert data_residual(x, y, mask).item() == pytest.approx(math.sqrt((0.09 + 0.16) / 3), rel=1e-13)
    assert constraint_violation(x, y, mask).item() == pytest.approx(0.4, rel=1e-13)
    assert data_residual(x, y, 0 * mask).item() == constraint_violation(x, y, 0 * mask).item() == 0


@pytest.mark.parametrize("known", [False, True], ids=["all-free", "known-eliminated"])
def test_cg_iterates_are_those_of_the_solver(known):
    grid = window(4, 5, 2)
    weights, x = edge_weights(grid, graphs=2), grid.flatten(random_picture(grid, graphs=2))
    b = grid.flatten(random_picture(grid, graphs=2).flip(-1))
    diagonal = node_sums(weights, grid)[:, None] + 0.5
    scale = grid.flatten((random_picture(grid, graphs=2) > 0.4).double()) / diagonal if known else None
    generator = torch.Generator().manual_seed(2)
    alpha, beta = torch.rand(2, 3, 2, dtype=torch.float64, generator=generator) * 0.2
    iterates, residuals = zip(*cg_iterates(weights, diagonal, b, x, alpha, beta, grid, scale), strict=True)
    assert len(iterates) == 4 and iterates[0].equal(x)
    for steps in (1, 2, 3):
        expected = unrolled_cg(weights, diagonal, b, x, alpha[:steps], beta[:steps], grid, scale)
        torch.testing.assert_close(iterates[steps], expected, rtol=1e-12, atol=1e-12)
    for graph in range(2):
        matrix = torch.diag(grid.pixels(diagonal[graph, 0]).flatten()) - dense(grid, weights[graph])
        v, right = (grid.pixels(t[graph]).flatten(1) for t in (iterates[3], b))
        left = v @ matrix - right
        if known:
            left = left * (grid.pixels(scale[graph]).flatten(1) > 0)
        torch.testing.assert_close(grid.pixels(residuals[3][graph]).flatten(1), left, rtol=1e-11, atol=1e-11)


def test_relative_norms():
    first = torch.tensor([[[3.0, 4.0]], [[0.0, 0.0]]])  # (G, C, length)
    assert relative_norms([first, first / 2]).tolist() == [[1.0, 0.0], [0.5, 0.0]]
