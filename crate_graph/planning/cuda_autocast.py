"""CUDA's rules of autocast on a machine without CUDA.

Under autocast some functions run in float32. The list is longer on CUDA than on a CPU
(https://pytorch.org/docs/stable/amp.html, "CUDA Ops that can autocast to float32"), and it decides what is kept for
the backward pass in which precision: a LayerNorm of bfloat16 tokens keeps bfloat16 on a CPU, and float32 on CUDA.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

_NAMES = (
    *("acos", "asin", "cosh", "cumprod", "cumsum", "dist", "erfinv", "exp", "expm1", "log", "log10", "log1p", "log2"),
    *("norm", "pow", "prod", "reciprocal", "rsqrt", "sinh", "softmax", "log_softmax", "sum", "tan", "__pow__"),
    *(
        "layer_norm",
        "group_norm",
        "softplus",
        "softmin",
        "normalize",
        "cosine_similarity",
        "pdist",
        "cdist",
        "rms_norm",
    ),
    *("cross_entropy", "nll_loss", "mse_loss", "l1_loss", "smooth_l1_loss", "kl_div"),
)
IN_FLOAT32 = {
    getattr(home, name) for home in (torch, F, Tensor) for name in _NAMES if callable(getattr(home, name, None))
}
_HALF = (torch.bfloat16, torch.float16)


class CudaAutocast(TorchFunctionMode):
    """Casts the arguments of those functions to float32, where autocast is on."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in IN_FLOAT32 and torch.is_autocast_enabled("cpu"):
            args, kwargs = tree_map_only(Tensor, _widen, (args, kwargs))
        return func(*args, **kwargs)


def _widen(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in _HALF else tensor
