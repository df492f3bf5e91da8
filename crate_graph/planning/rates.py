"""What the device at hand does: rates of a matrix product, of a copy, and the least time of an operation."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

_SIDE = {"cpu": 384, "cuda": 4096}  # of the matrices: a small product, but large enough to reach the peak
_COPIED = 2**26  # bytes: more than caches hold


def device_rates(device: torch.device) -> dict[str, float]:
    """half, single, tf32 in FLOP/s, bandwidth in bytes/s, operation in seconds."""
    side = _SIDE[device.type]
    rates = {}
    for name, dtype in (("half", torch.bfloat16), ("single", torch.float32)):
        a = torch.ones(side, side, dtype=dtype, device=device)
        rates[name] = 2 * side**3 / fastest(lambda a=a: a @ a, device)
    image = torch.ones(8, 64, 64, 64, device=device)
    kernel = torch.ones(64, 64, 3, 3, device=device)
    flops = 2 * image.numel() * 64 * 9
    rates["tf32"] = flops / fastest(lambda: torch.conv2d(image, kernel, padding=1), device)
    source = torch.ones(_COPIED // 4, device=device)
    target = torch.empty_like(source)
    rates["bandwidth"] = 2 * source.nbytes / fastest(lambda: target.copy_(source), device)
    small = torch.ones(16, device=device)
    rates["operation"] = fastest(lambda: [small.add_(1) for _ in range(200)], device) / 200
    return rates


def fastest(work: Callable[[], object], device: torch.device, repeats: int = 5) -> float:
    """Seconds of the fastest of some runs, after one that warms up."""
    taken = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - start)
    return min(taken[1:])
