"""What autograd keeps between the forward and the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def saved_bytes(forward: Callable[[], Tensor], parameters: Iterable[Tensor]) -> int:
    """Bytes of the tensors that `forward()` saves for its backward pass; storage shared by several counts once.

    `parameters` are left out: they stay in memory anyway. Tensors may be fake ones. With activation checkpointing only
    the inputs of the segments are counted; recomputing one segment takes more for a moment.
    """
    excluded = {parameter.untyped_storage()._cdata for parameter in parameters}
    storages = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in excluded:
            storages[storage._cdata] = storage  # kept alive, so that no address is used twice
        return tensor.detach()  # itself, an output would keep its graph alive for ever

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward()
    total = sum(storage.nbytes() for storage in storages.values())
    del output
    return total
