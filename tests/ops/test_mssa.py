import torch

from crate_graph.ops import mssa, mssa_reference


def test_fast_path_equals_reference():
    torch.manual_seed(0)
    w = torch.randn(2, 3, 17, 16, requires_grad=True)
    cotangent = torch.randn(2, 3, 17, 16)
    expected, actual = mssa_reference(w), mssa(w)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
    (expected_grad,) = torch.autograd.grad(expected, w, cotangent)
    (actual_grad,) = torch.autograd.grad(actual, w, cotangent)
    torch.testing.assert_close(actual_grad, expected_grad, rtol=0, atol=1e-5)


def test_reference_is_the_equation_in_columns():
    """SSA(Z | U) = U^T Z softmax((U^T Z)^T (U^T Z)), one subspace, tokens in columns, scores scaled by p^-1/2."""
    torch.manual_seed(0)
    z, u = torch.randn(8, 5), torch.randn(8, 4)
    projected = u.T @ z  # (p, N)
    columns = projected @ torch.softmax(projected.T @ projected / 2, dim=0)  # softmax of each column
    rows = mssa_reference((z.T @ u)[None, None])
    torch.testing.assert_close(rows[0, 0].T, columns)
