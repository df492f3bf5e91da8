"""Seconds of a step from its operations: each takes as long as its arithmetic, or its memory traffic if that is more.

A roofline for every operation (Williams et al., Commun. ACM 52(4), 2009). It follows eager PyTorch, where each
operation reads its arguments from memory and writes its results back; `torch.compile` would fuse some of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from crate_graph.planning.hardware import Assumptions, Device
from crate_graph.planning.tally import Operation
from crate_graph.planning.trace import BACKWARD, FORWARD, UPDATE, Trace

_HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class ComputeTime:
    """Seconds on one device."""

    forward: float  # of one micro batch
    backward: float  # likewise
    update: float  # of one step
    host: float  # that the host takes to start the operations of one micro batch and of the update

    def of_step(self, accumulation: int) -> float:
        """Without waiting for others."""
        return accumulation * (self.forward + self.backward) + self.update


def compute_time(trace: Trace, device: Device, assumed: Assumptions, *, shares: int = 1) -> ComputeTime:
    """Seconds of a traced step.

    Args:
        shares: ranks that divide the update between them, under ZeRO.
    """
    on_device = {
        phase: sum(_seconds(op, device, assumed) for op in trace.operations if op.phase == phase)
        for phase in (FORWARD, BACKWARD, UPDATE)
    }
    started = {phase: sum(op.phase == phase for op in trace.operations) for phase in on_device}
    host = {phase: count * assumed.host_seconds for phase, count in started.items()}
    on_device[UPDATE] /= shares
    slower = {phase: max(on_device[phase], host[phase]) for phase in on_device}
    return ComputeTime(slower[FORWARD], slower[BACKWARD], slower[UPDATE], sum(host.values()))


def _seconds(op: Operation, device: Device, assumed: Assumptions) -> float:
    arithmetic = op.flops / (_peak(op, device) * assumed.utilisation)
    memory = op.bytes / (device.bandwidth * assumed.memory_utilisation)
    return max(arithmetic, memory, assumed.kernel_seconds)


def _peak(op: Operation, device: Device) -> float:
    if op.dtype in _HALF:
        return device.half if device.bf16 or op.dtype is torch.float16 else device.single
    return device.tf32 if "convolution" in op.name else device.single
