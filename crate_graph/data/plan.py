"""Which sample comes when: one epoch as a pure function of (seed, epoch), whoever reads it.

The contract. The shards are shuffled and laid end to end as a ring of N samples; the ring is turned by a random offset
and cut into S `slots` of N/S consecutive samples (lengths differ by at most one). Inside a slot, blocks of `block`
samples are permuted. With q = global_batch / S, global batch t takes positions [t q, (t + 1) q) of every slot, slot by
slot. An example with 3 shards (a, b, c), S = 2 slots, global batch 4 (q = 2), blocks of 3:

    shards, shuffled      c0 c1 c2 c3 | a0 a1 a2 | b0 b1 b2 b3
    turned by 2           c2 c3 a0 a1 a2 | b0 b1 b2 b3 c0 c1
    slot 0                c2 c3 a0 a1 a2       -> a0 c2 c3 | a2 a1
    slot 1                b0 b1 b2 b3 c0 c1    -> b1 b2 b0 | c0 c1 b3
    global batch 0        a0 c2  b1 b2
    global batch 1        c3 a2  b0 c0
    tail                  a1     c1 b3         drop: left out; pad: a third batch  a1 --  c1 b3

World size and worker count do not appear: they only decide who reads which slots. Hence every sample comes exactly
once (a dropped tail is shorter than a global batch), every rank has the same number of steps, the sequence of global
batches is the same on any layout, and the position in the data is the pair (epoch, step).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from crate_graph.errors import UserError

PAD = -1  # the sample number of a padded position; its weight is 0


def plan_epoch(
    shard_samples: Sequence[int],
    *,
    seed: int,
    epoch: int,
    slots: int,
    global_batch: int,
    block: int = 1024,
    shuffle: bool = True,
    tail: Literal["drop", "pad"] = "drop",
) -> EpochPlan:
    """Plan one epoch over shards that hold `shard_samples` samples each.

    Samples are numbered 0 .. N-1 in the natural order of the shards. With `shuffle=False` the natural order stays.

    Raises:
        UserError: `slots` does not divide `global_batch`, there is no sample, or `tail="drop"` leaves no batch.
    """
    counts = np.asarray(shard_samples, dtype=np.int64)
    total = int(counts.sum())
    if global_batch % slots:
        raise UserError(
            f"the global batch of {global_batch} is not a multiple of {slots} slots; choose slots that divide it"
        )
    if total == 0:
        raise UserError("the shards hold no sample; name shards that do")
    if tail == "drop" and total < global_batch:
        raise UserError(
            f"{total} samples are fewer than one global batch of {global_batch}, so an epoch has no step; choose a "
            f"batch.global_batch of at most {total} that data.slots={slots} divides, or fewer slots"
        )
    return EpochPlan(counts, seed, epoch, slots, global_batch, block, shuffle, tail)


class EpochPlan:
    """One epoch: `steps` global batches of `global_batch` sample numbers. A slot is worked out when first asked for."""

    def __init__(self, counts, seed, epoch, slots, global_batch, block, shuffle, tail):
        self.samples = int(counts.sum())
        self.slots = slots
        self.global_batch = global_batch
        self.per_slot = global_batch // slots  # q, the samples that a slot gives to a step
        self.steps = self.samples // global_batch if tail == "drop" else -(-self.samples // global_batch)
        self._seed, self._epoch, self._block, self._shuffle = seed, epoch, block, shuffle
        self._edges = (
            np.arange(slots + 1, dtype=np.int64) * self.samples // slots
        )  # slot s: ring[edges[s]:edges[s + 1]]
        self._first = np.cumsum(counts) - counts  # number of the first sample of each shard, natural order
        self._order, self._offset = np.arange(len(counts)), 0
        if shuffle:
            self._order = self._permutation(len(counts), 0)
            self._offset = int(self._raw(1, 1)[0] % np.uint64(self.samples))
        self._ends = np.cumsum(counts[self._order])  # where each shuffled shard ends on the ring before it is turned
        self._starts = self._ends - counts[self._order]
        self._known: dict[int, np.ndarray] = {}

    def slot(self, slot: int) -> np.ndarray:
        """Sample numbers that `slot` gives, in order: (steps * per_slot,) int64, -1 where padded."""
        if slot not in self._known:
            self._known[slot] = self._plan_slot(slot)
        return self._known[slot]

    def batch(self, step: int) -> np.ndarray:
        """Sample numbers of global batch `step`: (global_batch,) int64, slot by slot."""
        window = slice(step * self.per_slot, (step + 1) * self.per_slot)
        return np.concatenate([self.slot(slot)[window] for slot in range(self.slots)])

    def real(self, step: int) -> int:
        """How many samples of global batch `step` are not padding."""
        return int(np.clip(np.diff(self._edges) - step * self.per_slot, 0, self.per_slot).sum())

    def _plan_slot(self, slot: int) -> np.ndarray:
        position = np.arange(self._edges[slot], self._edges[slot + 1])  # on the ring
        if self._shuffle:
            for block, start in enumerate(range(0, len(position), self._block)):
                part = position[start : start + self._block]
                position[start : start + self._block] = part[self._permutation(len(part), 2, slot, block)]
        position = (position + self._offset) % self.samples
        shard = np.searchsorted(self._ends, position, side="right")
        number = self._first[self._order[shard]] + position - self._starts[shard]
        length = self.steps * self.per_slot
        return np.concatenate([number[:length], np.full(max(0, length - len(number)), PAD)])

    def _permutation(self, length: int, *key: int) -> np.ndarray:
        return np.argsort(self._raw(length, *key), kind="stable")

    def _raw(self, length: int, *key: int) -> np.ndarray:
        """64-bit words of Philox, keyed. numpy promises this stream for ever, but not that of Generator.permutation."""
        return np.random.Philox(np.random.SeedSequence(self._seed, spawn_key=(self._epoch, *key))).random_raw(length)
