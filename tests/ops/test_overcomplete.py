import torch

from crate_graph.ops import overcomplete_ista, overcomplete_ista_reference

DIM = 12


def _problem(*tokens, dtype=torch.float32):
    torch.manual_seed(0)
    x = torch.randn(*tokens, DIM, dtype=dtype)
    dictionary, decoder = (torch.randn(DIM, 4 * DIM, dtype=dtype) * DIM**-0.5 for _ in range(2))
    return [tensor.requires_grad_() for tensor in (x, dictionary, decoder)]


def test_fast_path_equals_reference():
    inputs = _problem(2, 17)
    cotangent = torch.randn(2, 17, DIM)
    expected, actual = (f(*inputs, 0.3, 0.2) for f in (overcomplete_ista_reference, overcomplete_ista))
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-6)
    gradients = (torch.autograd.grad(y, inputs, cotangent) for y in (actual, expected))
    for a, e in zip(*gradients, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=1e-5)


def test_reference_is_two_proximal_steps_from_zero():
    """Tokens in columns; a step is the gradient of 1/2 |Z - D A|^2, then the proximal map of lambda |A|_1, A >= 0."""
    x, dictionary, decoder = (tensor.detach() for tensor in _problem(5, dtype=torch.float64))
    eta, lambd, z = 0.3, 0.2, x.T  # (d, N)
    code = torch.zeros(4 * DIM, 5, dtype=torch.float64, requires_grad=True)
    for _ in range(2):
        (gradient,) = torch.autograd.grad(0.5 * (z - dictionary @ code).square().sum(), code)
        code = (code - eta * gradient - eta * lambd).clamp(min=0).detach().requires_grad_()
    assert 0.1 < (code > 0).double().mean() < 0.9
    rows = overcomplete_ista_reference(x, dictionary, decoder, eta, lambd)
    torch.testing.assert_close(rows.T, decoder @ code.detach())
