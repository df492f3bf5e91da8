"""Which shards a reader needs at a step of an epoch, and which next: the plan, seen as shards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from crate_graph.data.plan import PAD, EpochPlan


class _Span(NamedTuple):
    """The positions of a slot between which a shard is needed, both included. A shard at both ends has two."""

    first: int
    last: int
    shard: int


class Outlook:
    """Looks ahead in a group of slots.

    Args:
        first_samples: number of the first sample of each shard: (shards,).
        block: samples that are shuffled together inside a slot.
        ahead: shards that each slot should have ready besides those of the step; the shards of the next step and of the
            shuffle block that comes next are ready in any case. 0: nothing but the step's.
    """

    def __init__(self, first_samples: np.ndarray, block: int, ahead: int):
        self._first, self._block, self._ahead = first_samples, block, ahead
        self._spans: dict[int, tuple[EpochPlan, list[_Span]]] = {}  # slot -> its newest plan and spans

    def shards(self, plan: EpochPlan, slots: Sequence[int], step: int, next_plan: EpochPlan | None = None) -> list[int]:
        """Numbers of the shards that the slots need at `step`, and then those of what follows, soonest first.

        `next_plan` is the plan of the epoch that follows, where one does.
        """
        soonest: dict[int, int] = {}
        for slot in slots:
            for distance, shard in self._of_slot(plan, slot, step * plan.per_slot, next_plan):
                soonest[shard] = min(distance, soonest.get(shard, distance))
        return sorted(soonest, key=lambda shard: (soonest[shard], shard))

    def _of_slot(self, plan: EpochPlan, slot: int, at: int, next_plan: EpochPlan | None) -> list[tuple[int, int]]:
        """(positions until it is needed, shard)."""
        step_end = at + plan.per_slot
        horizon = max(((step_end - 1) // self._block + 2) * self._block, step_end + plan.per_slot)
        spans = [span for span in self._slot_spans(plan, slot) if span.last >= at]
        now = [span for span in spans if span.first < step_end]
        if not self._ahead:
            return [(0, span.shard) for span in now]
        later = spans[len(now) :]
        if next_plan is not None and len(later) < self._ahead:
            length = plan.steps * plan.per_slot
            again = self._spans_of(next_plan.slot(slot)[: max(self._block, plan.per_slot)])
            later += [_Span(span.first + length, span.last + length, span.shard) for span in again]
        later = [span for n, span in enumerate(later) if n < self._ahead or span.first < horizon]
        return [(max(0, span.first - at), span.shard) for span in now + later]

    def _slot_spans(self, plan: EpochPlan, slot: int) -> list[_Span]:
        known = self._spans.get(slot)
        if known is None or known[0] is not plan:
            known = self._spans[slot] = plan, self._spans_of(plan.slot(slot))
        return known[1]

    def _spans_of(self, numbers: np.ndarray) -> list[_Span]:
        """Spans of the shards that hold the samples `numbers`, in the order of first need."""
        numbers = numbers[numbers != PAD]
        if not len(numbers):
            return []
        shard = np.searchsorted(self._first, numbers, side="right") - 1
        position = np.argsort(shard, kind="stable")  # shard by shard, each in the order of its positions
        shard = shard[position]
        apart = (np.diff(shard) != 0) | (np.diff(position) > 2 * self._block)  # a block mixes no farther than that
        starts = np.flatnonzero(np.concatenate([[True], apart]))
        ends = np.flatnonzero(np.concatenate([apart, [True]]))
        return sorted(map(_Span, position[starts].tolist(), position[ends].tolist(), shard[starts].tolist()))
