"""What only shows between the processes of a run. Every process calls these, in one order."""

from __future__ import annotations

import time

import torch
import torch.distributed as dist

from crate_graph.cluster.groups import gather
from crate_graph.cluster.ranks import Ranks
from crate_graph.doctor.check import Check, amount

SIZES = (4 << 10, 1 << 20, 32 << 20)  # bytes
ROUNDS = 5
CLOCK_SECONDS = 1.0  # beyond this, logs and the age of files mislead
SLOW = {"gloo": 50e6, "nccl": 1e9}  # bytes per second of a large all-reduce


def check_clocks(ranks: Ranks, hosts: list[str]) -> list[Check]:
    """Each clock against that of rank 0, just after a barrier; the smallest of some differences has the least delay."""
    rounds = []
    for _ in range(ROUNDS):
        dist.barrier()
        rounds.append(gather(ranks, time.time()))
    skews = {
        host: min((times[rank] - times[0] for times in rounds), key=abs)
        for rank, host in reversed(list(enumerate(hosts)))
    }
    return [judge_clocks(skews)]


def judge_clocks(skews: dict[str, float]) -> Check:
    """Of seconds that each host is ahead of the first."""
    wrong = {host: skew for host, skew in skews.items() if abs(skew) > CLOCK_SECONDS}
    if wrong:
        found = ", ".join(
            f"{host} is {abs(skew):.1f} s {'ahead' if skew > 0 else 'behind'}" for host, skew in wrong.items()
        )
        return Check("clocks", "warning", found, "start an NTP service there (chronyd, systemd-timesyncd)")
    return Check(
        "clocks",
        "ok",
        f"{len(skews)} host{'s' if len(skews) > 1 else ''} within {max(map(abs, skews.values())) * 1e3:.0f} ms",
    )


def check_all_reduce(ranks: Ranks) -> list[Check]:
    """Time and bus bandwidth, 2 (n - 1) / n x bytes / seconds, of sums of several sizes, and that they are right."""
    seconds = {}
    for size in SIZES:
        tensor = torch.full((size // 4,), float(ranks.rank + 1), device=ranks.device)  # (size / 4,)
        dist.all_reduce(tensor)  # the first one connects
        right = bool((tensor == ranks.world * (ranks.world + 1) / 2).all())
        if not all(gather(ranks, right)):
            return [
                Check("all-reduce", "failed", f"the sum of {size:,} bytes is wrong", "memory or network are broken")
            ]
        taken = []
        for _ in range(ROUNDS):
            dist.barrier()
            began = time.perf_counter()
            dist.all_reduce(tensor)
            if ranks.device.type == "cuda":
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - began)
        seconds[size] = sorted(taken)[ROUNDS // 2]
    return [judge_all_reduce(seconds, ranks.world, dist.get_backend())]


def judge_all_reduce(seconds: dict[int, float], world: int, backend: str) -> Check:
    """Of the median time of each size in bytes."""
    rates = {size: 2 * (world - 1) / world * size / taken for size, taken in seconds.items()}
    parts = [f"{_size(size)} {_time(taken)} ({amount(rates[size])}/s)" for size, taken in seconds.items()]
    found = f"{backend}, {world} processes: {', '.join(parts)}"
    if rates[max(rates)] < SLOW[backend]:
        remedy = "see which network was chosen (NCCL_DEBUG=INFO), and try NETWORK=infiniband, efa or tcp (launch/env)"
        return Check("all-reduce", "warning", found, remedy)
    return Check("all-reduce", "ok", found)


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 0.9995 else f"{seconds * 1e3:.3g} ms"


def _size(size: int) -> str:
    return f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"
