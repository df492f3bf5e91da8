"""Graph networks beside the plain reference, forward and backward: `crate-graph bench graph`."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch import Tensor, nn

from crate_graph.models.factory import create_model
from crate_graph.ops.memory import saved_bytes

SIDE = 64
PLAIN = "ugtv, plain reference"


def run(threads: int = 1, repeats: int = 3, side: int = SIDE) -> list[dict[str, Any]]:
    """Rows of: model, parameters, milliseconds (forward and backward of one side x side mosaic, median), speedup,
    kept_mib (for the backward pass), share (of the reference's bytes), max_error (against the reference).

    Float32 on the CPU; the models are timed in turn. The reference is the paper's uGTV written straight from its
    equations, `crate_graph.ops.reference`; `ugtv` has the same weights, `ugtv_fast` is another network.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            models = {PLAIN: create_model("ugtv", plain=True), **{n: create_model(n) for n in ("ugtv", "ugtv_fast")}}
            models["ugtv"].load_state_dict(models[PLAIN].state_dict())
            return _compare(models, *_mosaic(side), repeats)
    finally:
        torch.set_num_threads(before)


def _mosaic(side: int) -> tuple[Tensor, Tensor]:
    """A random RGGB mosaic and its mask, (1, 3, side, side) each."""
    mask = torch.zeros(1, 3, side, side)
    mask[:, 0, ::2, ::2] = mask[:, 1, ::2, 1::2] = mask[:, 1, 1::2, ::2] = mask[:, 2, 1::2, 1::2] = 1
    return torch.rand(1, 3, side, side) * mask, mask


def _compare(models: dict[str, nn.Module], observed: Tensor, mask: Tensor, repeats: int) -> list[dict[str, Any]]:
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(repeats + 1):
        for name, model in models.items():
            start = time.perf_counter()
            model(observed, mask).sum().backward()
            times[name].append(1e3 * (time.perf_counter() - start))
            model.zero_grad()
    median = {name: statistics.median(taken[1:]) for name, taken in times.items()}  # the first one warms up
    kept = {
        name: saved_bytes(lambda m=model: m(observed, mask).sum(), model.parameters()) / 2**20
        for name, model in models.items()
    }
    with torch.no_grad():
        estimates = {name: model(observed, mask) for name, model in models.items()}
    return [
        {
            "model": name,
            "parameters": sum(p.numel() for p in model.parameters()),
            "milliseconds": round(median[name], 1),
            "speedup": round(median[PLAIN] / median[name], 1),
            "kept_mib": round(kept[name], 1),
            "share": round(kept[name] / kept[PLAIN], 4),
            "max_error": (estimates[name] - estimates[PLAIN]).abs().max().item() if "fast" not in name else None,
        }
        for name, model in models.items()
    ]
