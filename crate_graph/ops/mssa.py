"""Multi-head subspace self-attention (MSSA): the compression half of a CRATE layer.

Equation (arXiv 2306.01129; columns of Z are tokens, U_k is a basis of subspace k):

    SSA(Z | U_k) = U_k^T Z softmax((U_k^T Z)^T (U_k^T Z))

Here tokens are rows, w_k = Z^T U_k is given, and the scores are scaled by p^-1/2 as in the published code. Query, key
and value are one and the same projection.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def mssa_reference(w: Tensor) -> Tensor:
    """softmax(w w^T / sqrt(p)) w for each subspace. w (B, K, N, p): the tokens' coordinates in K subspaces."""
    scores = w @ w.transpose(-2, -1) * w.shape[-1] ** -0.5  # (B, K, N, N)
    return torch.softmax(scores, dim=-1) @ w  # (B, K, N, p)


def mssa(w: Tensor) -> Tensor:
    """`mssa_reference` without the (N, N) scores in memory. w (B, K, N, p) -> (B, K, N, p)."""
    return F.scaled_dot_product_attention(w, w, w)
