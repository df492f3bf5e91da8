"""What autograd keeps between the forward and the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def saved_bytes(forward: Callable[[], Tensor], parameters: Iterable[Tensor]) -> int:
    """Bytes of the tensors that `forward()` saves for its backward pass; storage shared by several counts once.

    `parameters` are left out: they stay in memory anyway. With activation checkpointing only the inputs of the segments
    are counted; recomputing one segment takes more for a moment.
    """
    excluded = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    storages = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in excluded:
            storages[storage.data_ptr()] = storage  # kept alive, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward()
    total = sum(storage.nbytes() for storage in storages.values())
    del output
    return total
