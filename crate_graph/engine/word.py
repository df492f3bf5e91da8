"""The word: the one small all-reduce of a step.

Every rank adds what it knows - its share of the loss, whether its numbers are finite, what it was asked to do, and in a
place of its own how long it was busy - and every rank reads the same sums, so all decide alike. What the device needs
(skip? clip by how much?) is used there at once; the host reads the word one step late, when it has long arrived, so no
step waits for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

_FIELDS = ("loss_sum", "count", "grad_square", "not_finite", "damaged", "save", "stop")


@dataclass(frozen=True)
class Report:
    """A word as the host reads it; sums over all ranks."""

    loss: float
    count: float
    grad_norm: float
    finite: bool
    damaged: int
    save: bool
    stop: bool
    busy: list[tuple[float, float]]  # of each rank: seconds of waiting for data, and of forward passes


class Word:
    """`grad_square` is this rank's share of the squared norm of the scaled gradient; `loss_scale` undoes the scale.

    `busy`: the seconds for which this rank waited for data and computed forward passes.
    """

    def __init__(
        self,
        loss_sum: Tensor,
        count: Tensor,
        grad_square: Tensor,
        *,
        damaged: int,
        save: bool,
        stop: bool,
        loss_scale: Tensor,
        busy: tuple[float, float],
    ):
        finite = torch.isfinite(loss_sum) & torch.isfinite(grad_square)
        known = torch.stack((loss_sum, count, grad_square, (~finite).float())).double()  # (4,)
        world, rank = dist.get_world_size(), dist.get_rank()
        places = [0.0] * (2 * world)
        places[2 * rank : 2 * rank + 2] = busy
        asked = torch.tensor((damaged, save, stop, *places), dtype=torch.float64)  # (3 + 2 world,)
        self.sums = torch.cat((known, asked.to(known.device, non_blocking=True)))  # (7 + 2 world,)
        if world > 1:
            dist.all_reduce(self.sums)
        self.found_inf = (self.sums[3] > 0).float()  # scalar on the device: 1.0 = skip
        self.grad_norm = (self.sums[2].sqrt() / loss_scale).float()  # scalar on the device
        self._host, self._arrived = self._start_copy()

    def _start_copy(self) -> tuple[Tensor, torch.cuda.Event | None]:
        message = torch.cat((self.grad_norm.double()[None], self.sums))  # (8 + 2 world,)
        if message.device.type != "cuda":
            return message, None
        host = torch.empty(message.shape, dtype=message.dtype, pin_memory=True)
        host.copy_(message, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        return host, arrived

    def read(self) -> Report:
        if self._arrived is not None:
            self._arrived.synchronize()
        grad_norm, *sums = self._host.tolist()
        values = dict(zip(_FIELDS, sums, strict=False))
        places = sums[len(_FIELDS) :]
        return Report(
            loss=values["loss_sum"] / max(values["count"], 1e-12),
            count=values["count"],
            grad_norm=grad_norm,
            finite=values["not_finite"] == 0,
            damaged=int(values["damaged"]),
            save=values["save"] > 0,
            stop=values["stop"] > 0,
            busy=list(zip(places[::2], places[1::2], strict=True)),
        )
