import pytest
import torch

from crate_graph.ops import ista, ista_reference
from crate_graph.ops.ista import step_matrix

DIM = 24


def _problem(tokens: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(1, tokens, DIM, dtype=dtype, requires_grad=True)
    dictionary = (torch.rand(DIM, DIM, dtype=dtype) * 2 - 1) * (6 / DIM) ** 0.5
    return x, dictionary.requires_grad_()


@pytest.mark.parametrize("tokens", [7, 24, 25, 60])  # two products up to d tokens, one above
@pytest.mark.parametrize("activation", ["relu", "soft_threshold"])
def test_fast_path_equals_reference(tokens, activation):
    x, dictionary = _problem(tokens)
    cotangent = torch.randn_like(x)
    expected = ista_reference(x, dictionary, 0.3, 0.2, activation)
    actual = ista(x, dictionary, 0.3, 0.2, activation)
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-6)
    for a, e in zip(
        torch.autograd.grad(actual, (x, dictionary), cotangent),
        torch.autograd.grad(expected, (x, dictionary), cotangent),
        strict=True,
    ):
        torch.testing.assert_close(a, e, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tokens", [7, 60])
def test_double_precision_stays_double(tokens):
    x, dictionary = _problem(tokens, torch.float64)
    actual, expected = ista(x, dictionary, 0.1, 0.1), ista_reference(x, dictionary, 0.1, 0.1)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-14)


def test_reference_is_the_equation_in_columns():
    """ISTA(Z | D) = ReLU(Z + eta D^T (Z - D Z) - eta lambda 1), tokens in columns."""
    x, dictionary = _problem(5)
    z = x[0].T
    columns = torch.relu(z + 0.1 * dictionary.T @ (z - dictionary @ z) - 0.1 * 0.5)
    torch.testing.assert_close(ista_reference(x, dictionary, 0.1, 0.5)[0].T, columns)


def test_step_descends_the_lasso_objective():
    """One proximal step of a small enough size lowers |x - D c|^2 / 2 + lambda |c|_1 from c = x >= 0."""
    x, dictionary = _problem(60)
    x = x.detach().abs()

    def objective(code):
        return 0.5 * (x - code @ dictionary.T).square().sum() + 0.1 * code.abs().sum()

    assert objective(ista(x, dictionary, 0.1, 0.1)) < objective(x)


def test_bf16_autocast_keeps_the_matrix_and_the_identity_in_float32():
    x, dictionary = _problem(60)
    exact = ista_reference(x.double(), dictionary.double(), 0.1, 0.1)

    def error(y):
        return ((y.double() - exact).norm() / exact.norm()).item()

    with torch.autocast("cpu", torch.bfloat16):
        matrix = step_matrix(dictionary, 0.1)
        fast = ista(x, dictionary, 0.1, 0.1)
        rounded = ista_reference(x, dictionary, 0.1, 0.1)
        identity_inside = torch.relu(x @ (matrix + torch.eye(DIM)) - 0.01)
    assert torch.equal(matrix, step_matrix(dictionary, 0.1))
    assert fast.dtype == torch.float32
    assert error(fast) < error(rounded) < error(identity_inside)
    assert error(fast) < 2e-3


def test_half_precision_weights_form_the_matrix_in_float32():
    _, dictionary = _problem(60)
    half = dictionary.detach().bfloat16()
    exact = 0.1 * (half.double() - half.double().T @ half.double())
    assert step_matrix(half, 0.1).dtype == torch.bfloat16
    torch.testing.assert_close(step_matrix(half, 0.1), exact.bfloat16(), rtol=0, atol=0)
