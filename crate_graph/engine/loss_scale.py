"""The dynamic loss scale of fp16: as large as the gradients allow, kept on the device."""

from __future__ import annotations

import torch
from torch import Tensor

_GROWTH, _BACKOFF, _GROWTH_INTERVAL = 2.0, 0.5, 2000


class LossScale:
    """1 and constant unless the precision is fp16. The same object serves every engine, so its state is portable."""

    def __init__(self, precision: str, device: torch.device):
        self.dynamic = precision == "fp16"
        self.value = torch.full((), 2.0**16 if self.dynamic else 1.0, device=device)
        self._good_steps = torch.zeros((), dtype=torch.int32, device=device)

    def update(self, found_inf: Tensor) -> None:
        if self.dynamic:
            torch._amp_update_scale_(self.value, self._good_steps, found_inf, _GROWTH, _BACKOFF, _GROWTH_INTERVAL)

    def state_dict(self) -> dict[str, float]:
        return {"value": self.value.item(), "good_steps": self._good_steps.item()}

    def load_state_dict(self, state: dict[str, float]) -> None:
        if self.dynamic:  # a run that goes on in another precision starts with a fresh scale
            self.value.fill_(state["value"] if state["value"] != 1.0 else 2.0**16)
            self._good_steps.fill_(int(state["good_steps"]))
