"""The weights of CRATE-alpha's JAX code, where it was trained, in the form of its PyTorch code."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

_TOP = {
    "cls": "cls_token",
    "pos_embedding": "pos_embedding",
    "embedding/kernel": "conv1.weight",
    "embedding/bias": "conv1.bias",
    "encoder_norm/scale": "mlp_head.0.weight",
    "encoder_norm/bias": "mlp_head.0.bias",
    "head/kernel": "mlp_head.1.weight",
    "head/bias": "mlp_head.1.bias",
}
_IN_LAYER = {
    "LayerNorm_0/scale": "0.norm.weight",
    "LayerNorm_0/bias": "0.norm.bias",
    "MultiHeadDotProductSubspaceAttention_0/proj/kernel": "0.fn.qkv.weight",
    "MultiHeadDotProductSubspaceAttention_0/out/kernel": "0.fn.to_out.0.weight",
    "LayerNorm_1/scale": "1.norm.weight",
    "LayerNorm_1/bias": "1.norm.bias",
    "OvercompleteISTABlock_0/D": "1.fn.D",
    "OvercompleteISTABlock_0/D1": "1.fn.D1",
}


def is_flax(arrays: Mapping[str, Any]) -> bool:
    return any(name.endswith("embedding/kernel") for name, _ in _flat(arrays))


def from_flax(arrays: Mapping[str, Any]) -> dict[str, Tensor]:
    """Parameters as flax names them (nested, or flat with / between the parts; with or without "params") -> the
    published PyTorch form, float32.

    Kernels: a convolution's (p, p, C, D) becomes (D, C, p, p), a projection's (D, heads, p) or (heads, p, D) and a
    head's (D, classes) their transpose. Names that are not known stay as they are.
    """
    weights = {}
    for name, array in _flat(arrays):
        name = name.removeprefix("params/")
        tensor = torch.as_tensor(np.asarray(array).astype(np.float32))
        layer = re.match(r"Transformer/encoderblock_(\d+)/(.*)", name)
        if layer and layer[2] in _IN_LAYER:
            renamed = f"transformer.layers.{layer[1]}.{_IN_LAYER[layer[2]]}"
        else:
            renamed = _TOP.get(name, name)
        weights[renamed] = _as_torch(renamed, tensor)
    return weights


def _flat(arrays: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in arrays.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


def _as_torch(name: str, kernel: Tensor) -> Tensor:
    if name == "conv1.weight":
        return kernel.permute(3, 2, 0, 1).contiguous()
    if name.endswith("fn.qkv.weight"):
        return kernel.flatten(1).T.contiguous()  # (D, heads, p) -> (heads p, D)
    if name.endswith("to_out.0.weight"):
        return kernel.flatten(0, -2).T.contiguous()  # (heads, p, D) -> (D, heads p)
    if name == "mlp_head.1.weight":
        return kernel.T.contiguous()
    return kernel
