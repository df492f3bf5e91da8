"""What activation checkpointing saves and costs: `crate-graph bench checkpointing`."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

from crate_graph.models.checkpointing import available_modes, set_activation_checkpointing
from crate_graph.models.factory import create_model
from crate_graph.ops.memory import saved_bytes

NAMES = ("crate_tiny_patch16_224", "vit_tiny_patch16_224")
LAYERS_PER_SEGMENT = 4


def run(names: tuple[str, ...] = NAMES, batch: int = 8, threads: int = 1, repeats: int = 3) -> list[dict[str, Any]]:
    """Rows of: model, mode, kept_mib (for the backward pass), milliseconds (forward and backward, median), slowdown.

    Float32 on the CPU; the modes of one model are timed in turn.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return [row for name in names for row in _rows(name, batch, repeats)]
    finally:
        torch.set_num_threads(before)


def _rows(name: str, batch: int, repeats: int) -> list[dict[str, Any]]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = create_model(name)
        images = torch.randn(batch, *model.pretrained_cfg["input_size"])  # (B, C, H, W)
    modes = available_modes(model)
    times: dict[str, list[float]] = {mode: [] for mode in modes}
    kept = {}
    for _ in range(repeats + 1):
        for mode in modes:
            set_activation_checkpointing(model, mode, LAYERS_PER_SEGMENT)
            start = time.perf_counter()
            model(images).sum().backward()
            times[mode].append(1e3 * (time.perf_counter() - start))
            model.zero_grad()
    for mode in modes:
        set_activation_checkpointing(model, mode, LAYERS_PER_SEGMENT)
        kept[mode] = saved_bytes(lambda: model(images).sum(), model.parameters()) / 2**20
    median = {mode: statistics.median(taken[1:]) for mode, taken in times.items()}  # the first one warms up
    return [
        {
            "model": name,
            "mode": f"every_k, k={LAYERS_PER_SEGMENT}" if mode == "every_k" else mode,
            "kept_mib": round(kept[mode], 1),
            "milliseconds": round(median[mode]),
            "slowdown": round(median[mode] / median["none"], 2),
        }
        for mode in sorted(modes, key=lambda mode: -kept[mode])
    ]
