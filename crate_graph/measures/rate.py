"""Coding rates and sparsity of tokens.

Papers: arXiv 2306.01129 and 2311.13110; 2412.17810 for the variational form. There the tokens are the columns of Z
(d, N); here they are rows, (..., N, d). Rates are in nats for each image: all leading dimensions are kept.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

EPS_SQUARED = 0.01  # eps^2, the squared quantisation error of the published measurements


def coding_rate(z: Tensor, eps_squared: float = EPS_SQUARED) -> Tensor:
    """R(Z) = 1/2 logdet(I + d / (N eps^2) Z Z'), the lossy coding rate of N tokens in d dimensions.

    The determinant is that of the smaller of the two Gram matrices, (d, d) or (N, N): they are equal (Sylvester). So it
    costs N d min(N, d) + min(N, d)^3 / 6 multiply-adds.

    z (..., N, d) -> (...), in float32 at least. Of tokens of unit norm it is at most d/2 ln(1 + 1 / eps^2), where the
    tokens spread over all dimensions alike.
    """
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    n, d = z.shape[-2:]
    gram = z.mT @ z if d <= n else z @ z.mT  # (..., m, m)
    eye = torch.eye(gram.shape[-1], dtype=z.dtype, device=z.device)
    root = torch.linalg.cholesky_ex(eye + d / (n * eps_squared) * gram).L  # (..., m, m); waits for no device
    return root.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def coding_rate_reference(z: Tensor, eps_squared: float = EPS_SQUARED) -> Tensor:
    """`coding_rate` as published: through the (N, N) matrix of all pairs of tokens."""
    n, d = z.shape[-2:]
    pairs = torch.eye(n, dtype=z.dtype, device=z.device) + d / (n * eps_squared) * z @ z.mT  # (..., N, N)
    return torch.logdet(pairs) / 2


def rate_given_subspaces(w: Tensor, eps_squared: float = EPS_SQUARED) -> Tensor:
    """R^c(Z | U_1 .. U_K) = 1/2 sum over k of logdet(I + p / (N eps^2) (U_k'Z)' (U_k'Z)).

    A sum of coding rates, each of the tokens' p coordinates in one subspace, hence through K matrices of (p, p): d N p
    multiply-adds where matrices of (N, N) take d N^2.

    w (..., K, N, p), the coordinates U_k'Z -> (...). With unit norms it is at most K p/2 ln(1 + 1 / eps^2).
    """
    return coding_rate(w, eps_squared).sum(-1)


def rate_given_subspaces_reference(w: Tensor, eps_squared: float = EPS_SQUARED) -> Tensor:
    """The same through matrices of (N, N)."""
    return coding_rate_reference(w, eps_squared).sum(-1)


def variational_rate(w: Tensor, membership: Tensor, eps_squared: float = EPS_SQUARED) -> Tensor:
    """R^var(Z, Pi | U) = 1/2 sum_k n_k/N sum_i ln(1 + p / eps^2 m_ki), with m_ki = sum_n pi_kn w_kni^2 / n_k.

    The variational form of the coding rate that ToST descends (arXiv 2412.17810): n_k = sum_n pi_kn, and m_ki is the
    second moment of coordinate i over the tokens, weighted by their membership in subspace k. No token is compared with
    another. It bounds sum_k n_k/(2 N) logdet(I + p / (n_k eps^2) W_k' diag(pi_k) W_k) from above (Hadamard), and is
    equal to it where the coordinates of each subspace are uncorrelated. With p / eps^2 = 1 its gradient by w, Pi held,
    is -1/N times what `crate_graph.ops.tssa` gives.

    w (..., K, N, p), the coordinates U_k'Z; membership (..., K, N), adds up to 1 over K -> (...), in nats. Of tokens of
    unit norm at most p/2 ln(1 + 1 / eps^2).
    """
    n, p = w.shape[-2:]
    mass = membership.sum(-1)  # (..., K), n_k
    moments = (membership.unsqueeze(-2) @ w.square()).squeeze(-2)  # (..., K, p)
    moments = moments / mass.clamp(min=torch.finfo(w.dtype).tiny).unsqueeze(-1)
    return (mass / n * (p / eps_squared * moments).log1p().sum(-1)).sum(-1) / 2


def sparse_rate_reduction(rate: Tensor, given_subspaces: Tensor, z: Tensor, lambd: float) -> Tensor:
    """R(Z) - R^c(Z | U_1 .. U_K) - lambda ||Z||_0, the sparse rate reduction that CRATE unrolls (2306.01129).

    rate, given_subspaces (...), the two rates of the tokens z (..., N, d) -> (...). Take the rates of `unit_tokens`, in
    the space and in each subspace apart: then the two have the same bound where K p = d, and neither depends on the
    scale of the weights. The published measurements do so; the count of non-zeros does not change by it.
    """
    return rate - given_subspaces - lambd * (z != 0).sum(dim=(-2, -1)).to(rate.dtype)


def unit_tokens(z: Tensor) -> Tensor:
    """Each token divided by its Euclidean norm; a token of zeros stays one. (..., N, d) -> (..., N, d)."""
    return F.normalize(z.to(torch.promote_types(z.dtype, torch.float32)), dim=-1)


def nonzero_fraction(z: Tensor) -> Tensor:
    """||Z||_0 / (d N): the share of entries that are not exactly zero (2306.01129).

    z (B, ...) -> (B,), in float32.
    """
    return (z != 0).flatten(1).float().mean(dim=1)
