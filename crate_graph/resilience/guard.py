"""The finite guard: what follows when a loss or a gradient is not finite.

The step itself leaves the weights untouched (the decision is taken on the device, `crate_graph.train.step`). Here the
skips are counted: too many in a row and the run goes back to the last good checkpoint, whose weights meet other data,
because the window of data between that checkpoint and the fault is stepped over.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

# The loss scale of fp16 starts at 2^16 and is halved at each overflow: that many skips in a row are no sign of a fault.
_FP16_HALVINGS = 17


class Verdict(Enum):
    GO_ON = "go on"
    ROLL_BACK = "roll back"
    GIVE_UP = "give up"


@dataclass
class FiniteGuard:
    max_consecutive_skips: int
    max_rollbacks: int
    precision: str = "fp32"
    consecutive: int = field(default=0, init=False)
    skipped: int = field(default=0, init=False)
    rollbacks: int = field(default=0, init=False)

    def judge(self, finite: bool) -> Verdict:
        """Count one step, alike on all ranks."""
        if finite:
            self.consecutive = 0
            return Verdict.GO_ON
        self.consecutive += 1
        self.skipped += 1
        allowed = self.max_consecutive_skips + (_FP16_HALVINGS if self.precision == "fp16" else 0)
        if self.consecutive < allowed:
            return Verdict.GO_ON
        if self.rollbacks >= self.max_rollbacks:
            return Verdict.GIVE_UP
        self.rollbacks += 1
        return Verdict.ROLL_BACK

    def state_dict(self) -> dict[str, int]:
        return {"consecutive": self.consecutive, "skipped": self.skipped, "rollbacks": self.rollbacks}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.consecutive, self.skipped, self.rollbacks = state["consecutive"], state["skipped"], state["rollbacks"]
