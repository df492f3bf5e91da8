"""Coherence and spectra against closed forms, in float64."""

import math

import pytest
import torch

from crate_graph.measures.matrices import coherence, effective_rank, ista_step_bound, singular_values

ANGLE = 0.7


def bases():
    """Two planes in five dimensions, at principal angles ANGLE and 90 degrees; the first again, in another basis."""
    unit = torch.eye(5, dtype=torch.float64)
    first = torch.stack((unit[0], unit[1]), dim=1)  # (5, 2)
    second = torch.stack((math.cos(ANGLE) * unit[0] + math.sin(ANGLE) * unit[2], unit[3]), dim=1)
    mixing = torch.tensor([[3.0, 1.0], [-2.0, 0.5]], dtype=torch.float64)
    return torch.stack((first, second, first @ mixing))


def test_coherence_is_the_cosine_of_the_smallest_angle():
    c = math.cos(ANGLE)
    expected = torch.tensor([[1, c, 1], [c, 1, c], [1, c, 1]], dtype=torch.float64)
    torch.testing.assert_close(coherence(bases()), expected, rtol=1e-13, atol=0)


def test_overlap_is_the_root_mean_square_of_all_cosines():
    c = math.cos(ANGLE) / math.sqrt(2)
    expected = torch.tensor([[1, c, 1], [c, 1, c], [1, c, 1]], dtype=torch.float64)
    torch.testing.assert_close(coherence(bases(), "frobenius"), expected, rtol=1e-13, atol=0)


def test_spectrum_of_a_dictionary():
    diagonal = torch.diag(torch.tensor([0.5, -3.0, 2.0], dtype=torch.float64))
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
    assert singular_values(turn @ diagonal).tolist() == pytest.approx([3.0, 2.0, 0.5], rel=1e-13)
    assert ista_step_bound(turn @ diagonal, eta=0.1).item() == pytest.approx(0.9, rel=1e-13)


@pytest.mark.parametrize(("spectrum", "rank"), [([2.0] * 4, 4.0), ([1.0, 0.0, 0.0], 1.0), ([3.0, 3.0, 0.0], 2.0)])
def test_effective_rank(spectrum, rank):
    assert effective_rank(torch.tensor(spectrum, dtype=torch.float64)).item() == pytest.approx(rank, rel=1e-13)
