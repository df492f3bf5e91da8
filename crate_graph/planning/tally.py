"""What a piece of tensor code holds in memory at each moment, and what each operation computes and moves.

It watches operations as they are dispatched, on real tensors or on fake ones alike, so that what is predicted of a
training step and what a step does are counted by one rule. Memory that a kernel takes and gives back inside is not
seen.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

OTHER = "activations"  # what nobody named: activations, and what an operation needs for a moment
_RESERVES = ("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided")
_VIEWS = ("detach", "_unsafe_view", "lift_fresh")
_CPU_ATTENTION = {
    "_scaled_dot_product_flash_attention_for_cpu": (sdpa_flop_count, 3),
    "_scaled_dot_product_flash_attention_for_cpu_backward": (sdpa_backward_flop_count, 4),
}


class Operation(NamedTuple):
    """One operation that touches memory; views are none."""

    name: str
    phase: str
    flops: int  # of matrix products, convolutions and attention; a multiply-add counts as two
    bytes: int  # read and written, each argument and result once
    dtype: torch.dtype  # of the result


class Tally(TorchDispatchMode):
    """`live` bytes by kind; `peak` of their sum and `at_peak`, how it was made up; the `operations` in order.

    Storage is counted, once however many tensors share it, from the operation that makes it until nothing holds it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live: Counter[str] = Counter()
        self._total = 0
        self.peak = 0
        self.at_peak: dict[str, int] = {}
        self.operations: list[Operation] = []
        self.sent: Counter[str] = Counter()  # bytes handed to each collective, of the whole tensor and not of a shard
        self.phase = ""
        self._kinds: dict[int, tuple[str, int]] = {}  # of each storage that lives: kind and bytes
        self._watchers: dict[int, weakref.ref] = {}

    def name(self, kind: str, tensors: Iterable[Tensor]) -> None:
        """The storage of these tensors is of `kind` from now on."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._see(storage, kind)
            before, size = self._kinds[storage._cdata]
            if before != kind:
                self._kinds[storage._cdata] = kind, size
                self.live[before] -= size
                self.live[kind] += size

    def restart_peak(self) -> None:
        """Forget the peak so far."""
        self.peak, self.at_peak = self._total, dict(self.live)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        facts = _facts(func)
        if facts.is_view:
            return result
        made = [x for x in tree_iter(result) if isinstance(x, Tensor)]
        for tensor in made:
            self._see(tensor.untyped_storage(), OTHER)
        if facts.communicates:
            self.sent[facts.name.strip("_")] += _message(args)
        given = [x for x in tree_iter((args, kwargs)) if isinstance(x, Tensor)]
        if (facts.writes and given) or (made and not facts.reserves):
            moved = sum(map(_bytes, given)) + sum(map(_bytes, made))
            dtype = (made or given)[0].dtype
            flops = _flops(func, facts.name, args, kwargs, result)
            self.operations.append(Operation(facts.name, self.phase, flops, moved, dtype))
        return result

    def _see(self, storage: torch.UntypedStorage, kind: str) -> None:
        key = storage._cdata
        if key in self._kinds:
            return
        size = storage.nbytes()
        self._kinds[key] = kind, size
        self._watchers[key] = weakref.ref(storage, lambda _: self._forget(key))
        self.live[kind] += size
        self._total += size
        if self._total > self.peak:
            self.peak, self.at_peak = self._total, dict(self.live)

    def _forget(self, key: int) -> None:
        kind, size = self._kinds.pop(key)
        del self._watchers[key]
        self.live[kind] -= size
        self._total -= size


class _Facts(NamedTuple):
    name: str
    is_view: bool  # gives a tensor that shares the storage of an argument, and touches no memory
    writes: bool  # to an argument
    reserves: bool  # memory, without writing to it
    communicates: bool


@cache
def _facts(func: Any) -> _Facts:
    name = func._overloadpacket.__name__
    shares = any(result.alias_info is not None for result in func._schema.returns)
    writes = func._schema.is_mutable
    is_view = (shares and not writes) or name in _VIEWS
    return _Facts(name, is_view, writes, name in _RESERVES, func.namespace == "c10d")


def _message(args: Any) -> int:
    """Bytes of the tensor that a collective reduces, or gathers: of its larger side, where the other is a shard."""
    sides = [sum(x.nbytes for x in tree_iter(side) if isinstance(x, Tensor)) for side in args[:2]]
    return max(sides)


def _bytes(tensor: Tensor) -> int:
    """Of an expanded tensor only what is there."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def _flops(func: Any, name: str, args: Any, kwargs: Any, result: Any) -> int:
    if func._overloadpacket in flop_registry:
        return flop_registry[func._overloadpacket](*args, **kwargs, out_val=result)
    if name in _CPU_ATTENTION:  # older releases of torch count attention on a GPU only
        count, tensors = _CPU_ATTENTION[name]
        return count(*(tuple(x.shape) for x in args[:tensors]))
    return 0
