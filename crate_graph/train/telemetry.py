"""What a run tells while it goes on: rates, shares of time, memory, and a progress bar or lines."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@dataclass
class StepClock:
    """Wall time of the steps since the last report, and the part of it that was spent waiting for data."""

    global_batch: int
    flops_per_image: float | None = None  # forward and backward
    peak_flops: float | None = None  # of all devices together
    trained_seconds: float = 0.0  # of all steps so far
    _step_seconds: list[float] = field(default_factory=list)
    _waited: float = 0.0
    _waiting: float = 0.0  # of the step under way
    _last: float = field(default_factory=time.perf_counter)

    def restart(self) -> None:
        """Forget the time since the last step: it went to something else, an evaluation say."""
        self._last = time.perf_counter()

    def data_arrived(self) -> float:
        """Seconds for which the step that now begins has waited for its batch."""
        self._waiting = time.perf_counter() - self._last
        return self._waiting

    def step_done(self) -> None:
        now = time.perf_counter()
        self._step_seconds.append(now - self._last)
        self.trained_seconds += now - self._last
        self._waited += self._waiting
        self._last = now

    def report(self) -> tuple[dict[str, float], list[float]]:
        """Rates since the last report, and the time of each step in seconds."""
        seconds, total = self._step_seconds, max(sum(self._step_seconds), 1e-9)
        images_per_second = self.global_batch * len(seconds) / total
        rates = {
            "images_per_second": images_per_second,
            "data_wait_fraction": self._waited / total,
            "step_seconds": total / max(len(seconds), 1),
        }
        if self.flops_per_image and self.peak_flops:
            rates["model_flop_utilisation"] = images_per_second * self.flops_per_image / self.peak_flops
        self._step_seconds, self._waited = [], 0.0
        return rates, seconds


class Stragglers:
    """Which rank keeps the others waiting: who waited for data and computed longest since the last report."""

    def __init__(self) -> None:
        self._sums: np.ndarray | None = None  # (world, 2) seconds of data wait and of forward passes
        self._steps = 0

    def add(self, busy: list[tuple[float, float]]) -> None:
        """What the ranks said of one step."""
        step = np.array(busy)
        self._sums = step if self._sums is None else self._sums + step
        self._steps += 1

    def report(self) -> dict[str, float]:
        """The slowest rank, its seconds per step, and the median rank's; nothing where there is but one."""
        if self._sums is None or len(self._sums) == 1:
            return {}
        means = self._sums / self._steps  # (world, 2)
        totals = means.sum(axis=1)
        slowest = int(totals.argmax())
        self._sums, self._steps = None, 0
        return {
            "slowest_rank": slowest,
            "slowest_data_wait_seconds": float(means[slowest, 0]),
            "slowest_forward_seconds": float(means[slowest, 1]),
            "median_busy_seconds": float(np.median(totals)),
        }


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory held so far: of tensors on a GPU, of the process (resident set) on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Display:
    """A progress bar on a terminal, one line per report elsewhere, nothing on other ranks than the main one."""

    def __init__(self, total_steps: int, done: int, is_main: bool):
        self._show = is_main
        self._total = total_steps
        self._bar: Progress | None = None
        if is_main and sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task("training", total=total_steps, completed=done)

    def advance(self, step: int) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def report(self, step: int, record: dict[str, Any]) -> None:
        if not self._show:
            return
        shown = ("loss", "lr", "images_per_second", "data_wait_fraction", "grad_norm")
        text = "  ".join(f"{key} {record[key]:.4g}" for key in shown if record.get(key) is not None)
        if self._bar is not None:
            self._bar.update(self._task, description=f"epoch {record['epoch']}  loss {record['loss']:.4f}")
        else:
            self.say(f"epoch {record['epoch']}  step {step}/{self._total}  {text}")

    def say(self, text: str) -> None:
        if not self._show:
            return
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
