"""What the loader hands to the training loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from crate_graph.data.stream import DamagedSample


@dataclass
class Batch:
    """A rank's share of one global batch, n = global_batch / world samples; after `split`, a part of that."""

    images: torch.Tensor  # (n, C, H, W) float32, normalised; restoration: see `degrade.pack`; zeros where padded
    targets: torch.Tensor  # (n,) int64, or (n, classes) float32 where mixed; restoration: (n, C, H, W); see `KeyedView`
    weights: torch.Tensor  # (n,) float32: 1, or 0 for padding and for a damaged evaluation sample
    samples: torch.Tensor  # (n,) int64 sample numbers of the split, -1 where padded
    damaged: list[DamagedSample] = field(default_factory=list)  # (shard, key, reason) of each damaged sample met

    def __len__(self) -> int:
        return len(self.weights)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        return self._map(lambda tensor: tensor.pin_memory())

    def split(self, parts: int) -> list[Batch]:
        """Cut into `parts` micro batches of equal size, in order, without copying. The first carries `damaged`.

        Raises:
            ValueError: `parts` does not divide the batch.
        """
        if len(self) % parts:
            raise ValueError(f"a batch of {len(self)} samples does not split into {parts} equal parts")
        size = len(self) // parts
        pieces = [self._map(lambda tensor, at=at: tensor[at : at + size]) for at in range(0, len(self), size)]
        for piece in pieces[1:]:
            piece.damaged = []
        return pieces

    def _map(self, change) -> Batch:
        return Batch(
            change(self.images), change(self.targets), change(self.weights), change(self.samples), self.damaged
        )


def join(parts: Sequence[Batch], pin_memory: bool = False) -> Batch:
    """One batch out of its parts, in order; in page-locked memory where asked."""
    if len(parts) == 1:
        return parts[0].pin_memory() if pin_memory else parts[0]

    def together(name: str) -> torch.Tensor:
        pieces = [getattr(part, name) for part in parts]
        shape = (sum(len(piece) for piece in pieces), *pieces[0].shape[1:])
        return torch.cat(pieces, out=torch.empty(shape, dtype=pieces[0].dtype, pin_memory=pin_memory))

    names = ("images", "targets", "weights", "samples")
    return Batch(*map(together, names), damaged=[sample for part in parts for sample in part.damaged])
