"""One number of one layer, and how a collector gathers many of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

Over = Literal["samples", "heads", "pairs", "one"]


@dataclass(frozen=True)
class Measured:
    """A measure of a layer. `crate_graph.analysis.layers` says which names there are."""

    name: str
    layer: tuple[int, ...]  # counted from 1: (layer,) of a transformer; (block, ADMM layer, CG step) of a graph network
    mean: float
    std: float | None  # n - 1 in the denominator; None where there is but one value
    unit: str
    over: Over = "samples"  # what mean and std run over


@dataclass
class Gathered:
    """Values as they come, on the device where they are; `measured` waits for it, once."""

    _values: dict[tuple[str, tuple[int, ...]], tuple[list[Tensor], str, Over]] = field(default_factory=dict)

    def add(self, name: str, layer: tuple[int, ...], values: Tensor, unit: str, over: Over = "samples") -> None:
        """values (n,) or (). Further values of the same name and layer, of further tiles say, are joined."""
        self._values.setdefault((name, layer), ([], unit, over))[0].append(values.detach().float().reshape(-1))

    def measured(self) -> list[Measured]:
        if not self._values:
            return []
        joined = [torch.cat(values) for values, _, _ in self._values.values()]
        means = torch.stack([values.mean() for values in joined]).tolist()
        stds = torch.stack([values.std(correction=min(1, len(values) - 1)) for values in joined]).tolist()
        return [
            Measured(name, layer, mean, std if len(values) > 1 else None, unit, over)
            for ((name, layer), (_, unit, over)), values, mean, std in zip(
                self._values.items(), joined, means, stds, strict=True
            )
        ]
