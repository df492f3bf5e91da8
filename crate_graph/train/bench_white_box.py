"""What telemetry.whitebox costs beside training: `crate-graph bench whitebox`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from crate_graph.models import create_model
from crate_graph.train.white_box import Probe, measure, shell_of

EVERY = 100  # steps from one look to the next
NAMES = {"crate_tiny_patch16_224": 8, "vit_tiny_patch16_224": 8, "ugtv": 1, "ugtv_fast": 8}  # samples of a step


def run(
    names: dict[str, int] = NAMES, samples: int = 8, repeats: int = 2, device: str | None = None
) -> list[dict[str, Any]]:
    """Rows of: model, batch, step_ms (forward, backward, optimizer), samples, look_ms, steps_per_look (how many steps a
    look takes), share (of the time of 100 steps).

    Medians, the two taken in turn. Float32; on a GPU where there is one, else on one thread of the CPU, whose time is
    then counted and not the wall's. `batch` is that of one process: of the steps of a larger one, a look takes less.
    No look takes more samples than a step does.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return [
                _row(name, batch, min(samples, batch), repeats, torch.device(device)) for name, batch in names.items()
            ]
    finally:
        torch.set_num_threads(before)


def _row(name: str, batch: int, samples: int, repeats: int, device: torch.device) -> dict[str, Any]:
    model = create_model(name).to(device)
    probe = Probe(shell_of(model), _inputs(name, samples, device))
    values = {name: p.data for name, p in model.named_parameters()} | dict(model.named_buffers())
    optimizer = torch.optim.AdamW(model.parameters())
    images = _inputs(name, batch, device)
    actions = {"step": lambda: _train(model, optimizer, images), "look": lambda: measure(probe, values)}
    times: dict[str, list[float]] = {action: [] for action in actions}
    for _ in range(repeats + 1):
        for action, act in actions.items():
            times[action].append(_milliseconds(act, device))
    step, look = (statistics.median(taken[1:]) for taken in times.values())  # the first one warms up
    return {
        "model": name,
        "batch": batch,
        "step_ms": round(step, 1),
        "samples": samples,
        "look_ms": round(look, 1),
        "steps_per_look": round(look / step, 3),
        f"share_every_{EVERY}": round(look / (EVERY * step), 5),
    }


def _inputs(name: str, count: int, device: torch.device) -> tuple[Tensor, ...]:
    """Random images of 224 pixels, or random pixels of pictures of 64 with their mask."""
    if "patch16" in name:
        return (torch.randn(count, 3, 224, 224, device=device),)
    mask = (torch.rand(count, 3, 64, 64, device=device) < 1 / 3).float()
    return torch.rand(count, 3, 64, 64, device=device) * mask, mask


def _train(model: nn.Module, optimizer: torch.optim.Optimizer, images: tuple[Tensor, ...]) -> None:
    model(*images).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def _milliseconds(act: Callable[[], Any], device: torch.device) -> float:
    clock, synchronize = time.process_time, lambda: None
    if device.type == "cuda":
        clock, synchronize = time.perf_counter, torch.cuda.synchronize
    synchronize()
    start = clock()
    act()
    synchronize()
    return 1e3 * (clock() - start)
