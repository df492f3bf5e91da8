"""Token statistics self-attention (TSSA): attention whose cost is linear in the number of tokens.

Equation (arXiv 2412.17810; columns of Z are tokens, U_k spans subspace k, pi_k holds the tokens' membership in it):

    TSSA(Z | U) = -(tau / n) sum_k U_k D_k U_k^T Z diag(pi_k),    D_k = diag(1 / (1 + <second moments of U_k^T Z>))

No token is compared with another: only second moments, weighted by the memberships, are shared. Here tokens are rows,
w_k = Z^T U_k is given, and tau / n is left out, as in the published code; the layer applies the output basis.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-8  # beside the sum of the memberships
NORM_EPS = 1e-12  # least norm of a channel over the tokens


def tssa_reference(w: Tensor, temperature: Tensor) -> Tensor:
    """The published form. w (B, K, N, p): the tokens' coordinates in K subspaces, temperature (K, 1) -> as w."""
    membership = memberships(w, temperature)  # (B, K, N), adds up to 1 over K
    share = membership / (membership.sum(dim=-1, keepdim=True) + EPS)  # (B, K, N), adds up to 1 over N
    moments = share.unsqueeze(-2) @ w.square()  # (B, K, 1, p)
    return -(w * membership.unsqueeze(-1)) / (1 + moments)


def memberships(w: Tensor, temperature: Tensor) -> Tensor:
    """pi_kn, how far token n belongs to subspace k. w (B, K, N, p), temperature (K, 1) -> (B, K, N), adds up over k."""
    unit = F.normalize(w, dim=-2, eps=NORM_EPS)  # each channel has norm 1 over the tokens
    return torch.softmax(unit.square().sum(dim=-1) * temperature, dim=1)


def tssa(w: Tensor, temperature: Tensor) -> Tensor:
    """`tssa_reference` with the squares formed once and no normalised copy of w: half of what is kept for backward."""
    squares = w.square()  # (B, K, N, p)
    energy = squares.sum(dim=-2).clamp(min=NORM_EPS**2).reciprocal().unsqueeze(-1)  # (B, K, p, 1)
    membership = torch.softmax((squares @ energy).squeeze(-1) * temperature, dim=1)  # (B, K, N)
    share = membership / (membership.sum(dim=-1, keepdim=True) + EPS)  # (B, K, N)
    moments = share.unsqueeze(-2) @ squares  # (B, K, 1, p)
    return w * (membership.unsqueeze(-1) * -(1 + moments).reciprocal())
