"""What learned matrices are like: bases of subspaces, dictionaries, Mahalanobis metrics."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def coherence(bases: Tensor, norm: Literal["spectral", "frobenius"] = "spectral") -> Tensor:
    """How near the K subspaces are to each other: ||Q_k'Q_l|| with Q_k an orthonormal basis of the span of U_k.

    The singular values of Q_k'Q_l are the cosines of the principal angles (Bjorck and Golub, Math. Comp. 27, 1973). The
    learned U_k are not orthonormal, so their products say something of lengths, too; with Q_k they are about directions
    alone. "spectral" is the cosine of the smallest angle; "frobenius" the root mean square of all p cosines.

    bases (K, d, p), columns of full rank p <= d -> (K, K), from 0, orthogonal, to 1, where one direction is shared
    (spectral) or all are (frobenius).
    """
    q = torch.linalg.qr(bases).Q  # (K, d, p)
    products = torch.einsum("kdp,ldq->klpq", q, q)  # (K, K, p, p)
    if norm == "spectral":
        return torch.linalg.matrix_norm(products, 2)
    return torch.linalg.matrix_norm(products) / bases.shape[-1] ** 0.5


def singular_values(matrix: Tensor) -> Tensor:
    """The spectrum of a dictionary, largest first. (..., m, n) -> (..., min(m, n))."""
    return torch.linalg.svdvals(matrix)


def effective_rank(spectrum: Tensor) -> Tensor:
    """exp of the entropy of the singular values, as shares of their sum (Roy and Vetterli, EUSIPCO 2007).

    (..., n) -> (...), from 1 for one direction to n for equal ones.
    """
    shares = spectrum / spectrum.sum(-1, keepdim=True)
    return torch.special.entr(shares).sum(-1).exp()


def ista_step_bound(dictionary: Tensor, eta: float) -> Tensor:
    """eta ||D||_2^2, the step size in units of the inverse Lipschitz constant of the gradient of 1/2 ||x - D z||^2.

    Up to 1 an ISTA step cannot raise the lasso's objective (Beck and Teboulle, SIAM J. Imaging Sci. 2(1), 2009); from 2
    on repeated steps diverge. dictionary (d, n) -> ().
    """
    return eta * torch.linalg.matrix_norm(dictionary, 2).square()
