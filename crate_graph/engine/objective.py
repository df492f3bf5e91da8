"""The module that an engine wraps: model and loss, so that its hooks surround both and autocast is alike everywhere."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

_AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Task(Protocol):
    """What differs between kinds of training; see `crate_graph.tasks`."""

    def loss(self, model: nn.Module, images: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]: ...

    def measure(self, model: nn.Module, images: Tensor, targets: Tensor, weights: Tensor) -> Tensor: ...

    def summarize(self, sums: Tensor) -> dict[str, float]: ...

    def pictures(self, images: Tensor) -> Tensor: ...


class Objective(nn.Module):
    """Weights stay in fp32; the forward pass runs in the recipe's precision under autocast."""

    def __init__(self, model: nn.Module, task: Task, precision: str):
        super().__init__()
        self.model = model
        self.task = task
        self.autocast_dtype = _AUTOCAST[precision]

    def forward(self, images: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor] | Tensor:
        """Training: (loss sum, count). Evaluation: the task's sums."""
        compute = self.task.loss if self.training else self.task.measure
        with torch.autocast(images.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None):
            return compute(self.model, images, targets, weights)


def slow_precision(precision: str, device: torch.device) -> str | None:
    """What to tell a user whose CPU has no fast path for `precision`; None where there is nothing to tell.

    PyTorch then convolves without oneDNN: ten times slower than in fp32 on an AVX2 processor, and not an error.
    """
    supported = {
        "bf16": torch.ops.mkldnn._is_mkldnn_bf16_supported,
        "fp16": torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    if device.type != "cpu" or precision not in supported or supported[precision]():
        return None
    return (
        f"precision={precision}: this CPU has no fast {precision} convolutions; precision=fp32 may be ten times faster"
    )
