"""Coding rates and sparsity against closed forms, in float64."""

import math

import pytest
import torch

from crate_graph.measures.rate import (
    EPS_SQUARED,
    coding_rate,
    coding_rate_reference,
    nonzero_fraction,
    rate_given_subspaces,
    rate_given_subspaces_reference,
    sparse_rate_reduction,
    unit_tokens,
    variational_rate,
)
from crate_graph.ops.tssa import memberships, tssa_reference

EVEN = math.log(1 + 1 / EPS_SQUARED) / 2  # nats for each dimension that unit tokens fill alike


def spread(dimensions, times):
    """Every unit vector `times` times: (N, d) with Z'Z = times I."""
    return torch.eye(dimensions, dtype=torch.float64).repeat(times, 1)


@pytest.mark.parametrize(("dimensions", "times"), [(6, 1), (6, 4), (1, 9)])
def test_tokens_that_fill_the_space_alike(dimensions, times):
    assert coding_rate(spread(dimensions, times)).item() == pytest.approx(dimensions * EVEN, rel=1e-14)


@pytest.mark.parametrize(("tokens", "dimensions"), [(3, 8), (8, 3)])
def test_tokens_that_are_all_the_same(tokens, dimensions):
    z = torch.full((tokens, dimensions), 2 / math.sqrt(dimensions), dtype=torch.float64)  # norm 2
    expected = math.log(1 + dimensions * 4 / 0.3) / 2  # one eigenvalue, N times the squared norm
    assert coding_rate(z, 0.3).item() == pytest.approx(expected, rel=1e-14)


def test_orthogonal_tokens_of_unequal_length():
    z = torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    expected = sum(math.log(1 + length**2 / 0.5) / 2 for length in (1, 2, 3))  # d = N
    assert coding_rate(z, 0.5).item() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("shape", [(2, 12, 40, 7), (2, 3, 5, 9)])
def test_the_small_gram_matrix_gives_what_that_of_all_pairs_does(shape):
    w = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))  # (B, K, N, p)
    torch.testing.assert_close(coding_rate(w), coding_rate_reference(w), rtol=1e-12, atol=0)
    torch.testing.assert_close(rate_given_subspaces(w), rate_given_subspaces_reference(w), rtol=1e-12, atol=0)


def test_rate_given_subspaces_adds_up_over_them():
    w = torch.stack((spread(4, 3), 0 * spread(4, 3), spread(4, 3)))  # (3, 12, 4)
    assert rate_given_subspaces(w).item() == pytest.approx(8 * EVEN, rel=1e-14)


def membership(*shape):
    return torch.softmax(torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), dim=-2)


def test_the_variational_rate_of_tokens_that_fill_a_subspace_alike():
    w = torch.stack((spread(4, 3), spread(4, 3)))  # (2, 12, 4)
    even = torch.full((2, 12), 0.5, dtype=torch.float64)
    assert variational_rate(w, even).item() == pytest.approx(4 * EVEN, rel=1e-14)  # shares of the heads add up to 1
    assert variational_rate(unit_tokens(torch.randn(2, 12, 4).double()), membership(2, 12)).item() < 4 * EVEN


def test_the_variational_rate_bounds_the_exact_one_and_meets_it_without_correlation():
    for w, meets in ((torch.randn(2, 30, 5).double(), False), (torch.stack((spread(5, 6), spread(5, 6))), True)):
        pi, exact = membership(2, 30), 0
        for k in range(2):
            gram = w[k].T @ torch.diag(pi[k]) @ w[k]
            inside = torch.eye(5, dtype=torch.float64) + 5 / (pi[k].sum() * 0.01) * gram
            exact += pi[k].sum() / 30 * torch.logdet(inside) / 2
        found = variational_rate(w, pi)
        assert (found - exact).item() == pytest.approx(0, abs=1e-12) if meets else found > exact + 0.01


def test_the_gradient_of_the_variational_rate_is_what_tost_takes_away():
    w = torch.randn(1, 2, 9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    temperature = torch.tensor([[1.0], [0.7]], dtype=torch.float64)
    pi = memberships(w, temperature).detach()
    variational_rate(w, pi, eps_squared=4.0).sum().backward()  # p / eps^2 = 1
    torch.testing.assert_close(-9 * w.grad, tssa_reference(w, temperature).detach(), rtol=1e-7, atol=0)


def test_sparse_rate_reduction():
    """Tokens that fill the space, of which each subspace sees one direction; their scale does not matter."""
    z = 7 * spread(6, 2)  # (12, 6)
    w = torch.ones(2, 12, 3, dtype=torch.float64)
    rates = 6 * EVEN - 2 * math.log(1 + 3 / EPS_SQUARED) / 2
    reduction = sparse_rate_reduction(coding_rate(unit_tokens(z)), rate_given_subspaces(unit_tokens(w)), z, 0.1)
    assert reduction.item() == pytest.approx(rates - 0.1 * 12, rel=1e-13)


def test_a_token_of_zeros_has_no_direction():
    z = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-6, 0.0]])
    torch.testing.assert_close(unit_tokens(z), torch.tensor([[0.6, 0.8], [0.0, 0.0], [1.0, 0.0]]))


def test_half_precision_is_measured_in_float32():
    z = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert coding_rate(z).equal(coding_rate(z.float()))


def test_nonzero_fraction():
    z = torch.tensor([[[0.0, 1e-30], [-1.0, 0.0]], [[0.0, 0.0], [0.0, -0.0]]])
    assert nonzero_fraction(z).tolist() == [0.5, 0.0]
