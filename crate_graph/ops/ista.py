"""One step of the iterative shrinkage-thresholding algorithm (ISTA): the sparsification half of a CRATE layer.

Equation (arXiv 2306.01129, "ISTA block"; columns of Z are tokens, D is the dictionary):

    ISTA(Z | D) = ReLU(Z + eta D^T (Z - D Z) - eta lambda 1)

Tokens are rows x here, so the gradient step reads eta (x D - x D^T D). Its three products become one:
x D - x D^T D = x M with M = D - D^T D, which costs d^3 once a step and saves two products of (tokens, d, d).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS = ("relu", "soft_threshold")


def ista_reference(x: Tensor, dictionary: Tensor, eta: float, lambd: float, activation: str = "relu") -> Tensor:
    """The equation as it stands. x (..., d) are tokens, dictionary (d, d) -> (..., d).

    activation "relu" is the proximal step of lambda |z|_1 on z >= 0, "soft_threshold" the one on all z.
    """
    code = x + eta * (x @ dictionary - x @ dictionary.T @ dictionary)  # (..., d)
    return F.relu(code - eta * lambd) if activation == "relu" else F.softshrink(code, eta * lambd)


def ista(x: Tensor, dictionary: Tensor, eta: float, lambd: float, activation: str = "relu") -> Tensor:
    """`ista_reference` with one product of (tokens, d, d) instead of three, or two where tokens are few.

    The identity term of the step is added apart from the product, in the dtype of x: under bf16 autocast, folding it
    into M would round x itself.
    """
    if _folding_pays(x, dictionary):
        step = x @ step_matrix(dictionary, eta)  # (..., d)
    else:
        step = (x - F.linear(x, dictionary)) @ dictionary * eta  # (..., d)
    code = x + step  # (..., d)
    # In place: `code` is ours, and neither step needs it in the backward pass.
    return code.sub_(eta * lambd).relu_() if activation == "relu" else F.softshrink(code, eta * lambd)


def step_matrix(dictionary: Tensor, eta: float) -> Tensor:
    """eta (D - D^T D), formed in float32 at least even under autocast. dictionary (d, d) -> (d, d).

    Its entries are small differences of larger ones, which half precision would lose.
    """
    with _no_autocast(dictionary.device.type):
        d = dictionary.to(torch.promote_types(dictionary.dtype, torch.float32))  # (d, d)
        return (eta * (d - d.T @ d)).to(dictionary.dtype)  # (d, d)


def _folding_pays(x: Tensor, dictionary: Tensor) -> bool:
    """Forward: tokens d^2 + d^3 against 2 tokens d^2; backward: thrice both. So for more tokens than d.

    An exported graph is always folded: M is then a constant, which runtimes compute once.
    """
    if torch.compiler.is_exporting() or torch.jit.is_tracing():
        return True
    return x.numel() > dictionary.numel()


def _no_autocast(device: str) -> AbstractContextManager:
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()
