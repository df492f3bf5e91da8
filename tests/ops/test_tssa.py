import torch

from crate_graph.ops import tssa, tssa_reference


def _problem(dtype=torch.float32):
    torch.manual_seed(0)
    return [torch.randn(2, 3, 17, 8, dtype=dtype).requires_grad_(), torch.rand(3, 1, dtype=dtype).requires_grad_()]


def test_fast_path_equals_reference():
    inputs, cotangent = _problem(), torch.randn(2, 3, 17, 8)
    expected, actual = (f(*inputs) for f in (tssa_reference, tssa))
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-6)
    gradients = (torch.autograd.grad(y, inputs, cotangent) for y in (actual, expected))
    for a, e in zip(*gradients, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=1e-5)


def test_channel_of_zeros_is_no_division_by_zero():
    w, temperature = _problem()
    with torch.no_grad():
        w[:, 1, :, 2] = 0
    for function in (tssa, tssa_reference):
        (gradient,) = torch.autograd.grad(function(w, temperature).sum(), w)
        assert gradient.isfinite().all()


def test_reference_is_the_equation_in_columns():
    """-U^T Z diag(pi) under D = diag(1 / (1 + (U^T Z)^2 pi / <pi, 1>)), for each subspace, without tau / n."""
    w, temperature = (tensor.detach() for tensor in _problem(torch.float64))
    energy = torch.stack([(v / v.norm(dim=0)).square().sum(dim=1) for v in w[0]])  # (K, N)
    pi = torch.softmax(energy * temperature, dim=0)  # (K, N)
    torch.testing.assert_close(pi.sum(dim=0), torch.ones(17, dtype=torch.float64))
    for k in range(3):
        projected = w[0, k].T  # (p, N)
        moments = projected.square() @ (pi[k] / pi[k].sum())  # (p,)
        columns = -torch.diag(1 / (1 + moments)) @ projected @ torch.diag(pi[k])  # (p, N)
        torch.testing.assert_close(tssa_reference(w, temperature)[0, k].T, columns, rtol=1e-6, atol=1e-8)


def test_cost_is_linear_in_the_tokens():
    """No token is compared with another: a token that is repeated changes the others only through the moments."""
    w, temperature = (tensor.detach() for tensor in _problem(torch.float64))
    doubled = torch.cat((w, w), dim=2)  # the same second moments
    torch.testing.assert_close(tssa(doubled, 2 * temperature)[:, :, :17], tssa(w, temperature))
