"""Exponential moving average of the weights, kept where the weights are: whole under DDP, in shards under ZeRO-3."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from crate_graph.engine.base import Engine, to_host


class Ema:
    """average <- decay x average + (1 - decay) x weights, after each step; a skipped step averages the same weights."""

    def __init__(self, engine: Engine, decay: float):
        self._engine = engine
        self._decay = decay
        self._average = {name: tensor.clone() for name, tensor in engine.local_parameters().items()}

    def tensors(self) -> list[Tensor]:
        """What this rank holds of the average."""
        return list(self._average.values())

    @torch.no_grad()
    def update(self) -> None:
        weights = self._engine.local_parameters()
        torch._foreach_lerp_(list(self._average.values()), [weights[name] for name in self._average], 1.0 - self._decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The average takes the place of the weights for the length of the block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def gather(self) -> dict[str, Tensor]:
        """Full tensors on the CPU of the main process; empty elsewhere. Collective."""
        gathered = {}
        for name, local in self._average.items():
            full = self._engine.gather(name, local)
            if self._engine.ranks.is_main:
                gathered[name] = to_host(full)
        return gathered

    @torch.no_grad()
    def load(self, average: dict[str, Tensor]) -> None:
        for name, local in self._average.items():
            local.copy_(self._engine.shard(name, average[name].to(local.device)))

    @torch.no_grad()
    def _swap(self) -> None:
        for name, weight in self._engine.local_parameters().items():
            kept = weight.clone()
            weight.copy_(self._average[name])
            self._average[name].copy_(kept)
