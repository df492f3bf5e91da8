"""The module that an engine wraps: model and loss, so that its hooks surround both and autocast is alike everywhere."""

from __future__ import annotations

import time
from typing import Protocol

import torch
from torch import Tensor, nn

from crate_graph.models.heads import settle_backbone

_AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Task(Protocol):
    """What differs between kinds of training; see `crate_graph.tasks`."""

    def loss(self, model: nn.Module, images: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]: ...

    def measure(self, model: nn.Module, images: Tensor, targets: Tensor, weights: Tensor) -> Tensor: ...

    def summarize(self, sums: Tensor) -> dict[str, float]: ...

    def pictures(self, images: Tensor) -> Tensor: ...

    def take_gallery(self) -> Tensor | None: ...


class Objective(nn.Module):
    """Weights stay in fp32; the forward pass runs in the recipe's precision under autocast."""

    def __init__(self, model: nn.Module, task: Task, precision: str):
        super().__init__()
        self.model = model
        self.task = task
        self.autocast_dtype = _AUTOCAST[precision]
        self.forward_clock = ForwardClock()

    def train(self, mode: bool = True) -> Objective:
        """A frozen backbone stays as in evaluation."""
        super().train(mode)
        if mode:
            settle_backbone(self.model)
        return self

    def forward(self, images: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor] | Tensor:
        """Training: (loss sum, count). Evaluation: the task's sums."""
        compute = self.task.loss if self.training else self.task.measure
        started = self.forward_clock.start(images.device)
        with torch.autocast(images.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None):
            result = compute(self.model, images, targets, weights)
        self.forward_clock.stop(started)
        return result


class ForwardClock:
    """How long this rank computes where it waits for no other: in the forward passes of training.

    The backward pass overlaps with communication, so its time says little about the rank that takes it.
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def start(self, device: torch.device) -> float | torch.cuda.Event:
        if device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def stop(self, started: float | torch.cuda.Event) -> None:
        if isinstance(started, float):
            self._seconds += time.perf_counter() - started
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._events.append((started, event))

    def take(self) -> float:
        """Seconds of the passes that have ended since the last call; never waits for the device."""
        ended = [(first, last) for first, last in self._events if last.query()]
        self._events = self._events[len(ended) :]
        seconds, self._seconds = self._seconds, 0.0
        return seconds + sum(first.elapsed_time(last) for first, last in ended) / 1000


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
