"""Reference against fast path, forward and backward, side by side: `crate-graph bench ops`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from crate_graph.ops.ista import ista, ista_reference
from crate_graph.ops.memory import saved_bytes
from crate_graph.ops.mssa import mssa, mssa_reference
from crate_graph.ops.overcomplete import overcomplete_ista, overcomplete_ista_reference
from crate_graph.ops.tssa import tssa, tssa_reference

BATCH, TOKENS, DIM, HEADS = 8, 197, 384, 6  # CRATE-T, patches of 16, images of 224
ETA = LAMBDA = 0.1


def run(threads: int = 1, device: str = "cpu", repeats: int = 7) -> list[dict[str, Any]]:
    """Rows of: operator, shape, reference_ms, fast_ms, speedup, reference_mib, fast_mib (kept for backward), max_error.

    Times are medians of `repeats` forward and backward passes, the two sides taken in turn. Float32.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return [_compare(*case, repeats) for case in _cases(torch.device(device))]
    finally:
        torch.set_num_threads(before)


Case = tuple[str, Callable[..., Tensor], Callable[..., Tensor], list[Tensor], list[Tensor]]


def _cases(device: torch.device) -> list[Case]:
    """(operator, reference, fast path, activations, parameters); both sides take activations, then parameters."""

    def tensor(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*shape, device=device)).requires_grad_()

    def matrix(widths: int = 1) -> Tensor:
        return tensor(DIM, widths * DIM, scale=DIM**-0.5)

    tokens = tensor(BATCH, TOKENS, DIM)
    subspaces = tensor(BATCH, HEADS, TOKENS, DIM // HEADS)
    one_image = tensor(1, TOKENS, DIM)
    return [
        ("MSSA", mssa_reference, mssa, [subspaces], []),
        ("ISTA", _ista(ista_reference), _ista(ista), [tokens], [matrix()]),
        ("ISTA, one image", _ista(ista_reference), _ista(ista), [one_image], [matrix()]),
        (
            "CRATE-T layer",
            _layer(mssa_reference, ista_reference),
            _layer(mssa, ista),
            [tokens],
            [matrix(), matrix(), matrix()],
        ),
        (
            "overcomplete ISTA",
            _ista(overcomplete_ista_reference),
            _ista(overcomplete_ista),
            [tokens],
            [matrix(4), matrix(4)],
        ),
        ("TSSA", tssa_reference, tssa, [subspaces], [tensor(HEADS, 1)]),
    ]


def _ista(step: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x, *dictionaries: step(x, *dictionaries, ETA, LAMBDA)


def _layer(attend: Callable[[Tensor], Tensor], step: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A layer as in `crate_graph.models.crate`, without the affine parts of its norms."""

    def layer(z: Tensor, subspaces: Tensor, proj: Tensor, dictionary: Tensor) -> Tensor:
        w = F.linear(F.layer_norm(z, (DIM,)), subspaces).unflatten(-1, (HEADS, -1)).transpose(1, 2)  # (B, K, N, p)
        z = z + F.linear(attend(w).transpose(1, 2).flatten(2), proj)  # (B, N, D)
        return step(F.layer_norm(z, (DIM,)), dictionary, ETA, LAMBDA)  # (B, N, D)

    return layer


def _compare(
    name: str,
    reference: Callable[..., Tensor],
    fast: Callable[..., Tensor],
    activations: list[Tensor],
    parameters: list[Tensor],
    repeats: int,
) -> dict[str, Any]:
    inputs = activations + parameters
    sides = {"reference": reference, "fast": fast}
    times: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(repeats + 1):
        for side, function in sides.items():
            times[side].append(_milliseconds(function, inputs))
    median = {side: statistics.median(taken[1:]) for side, taken in times.items()}  # the first one warms up
    kept = {side: saved_bytes(lambda f=function: f(*inputs), parameters) / 2**20 for side, function in sides.items()}
    with torch.no_grad():
        error = (reference(*inputs) - fast(*inputs)).abs().max().item()
    return {
        "operator": name,
        "shape": "x".join(map(str, activations[0].shape)),
        "reference_ms": round(median["reference"], 2),
        "fast_ms": round(median["fast"], 2),
        "speedup": round(median["reference"] / median["fast"], 2),
        "reference_mib": round(kept["reference"], 1),
        "fast_mib": round(kept["fast"], 1),
        "max_error": error,
    }


def _milliseconds(function: Callable[..., Tensor], inputs: list[Tensor]) -> float:
    """One forward and one backward pass."""
    synchronize = torch.cuda.synchronize if inputs[0].is_cuda else lambda: None
    synchronize()
    start = time.perf_counter()
    torch.autograd.grad(function(*inputs).sum(), inputs)
    synchronize()
    return 1e3 * (time.perf_counter() - start)
