"""The measures of uGLR, uGTV and ugtv_fast: block by block, ADMM layer by ADMM layer, CG step by CG step.

Solvers hand each CG solve to `watch` before they do it; its iterates are then computed once more, in plain steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from crate_graph.analysis.measured import Gathered
from crate_graph.measures.graphs import (
    cg_iterates,
    constraint_violation,
    data_residual,
    edge_entropy,
    glr_value,
    gtv_value,
    relative_norms,
)
from crate_graph.models.graph_networks import RADIUS, UnrolledSolver, bounded
from crate_graph.models.ugtv_fast import SplitSolver
from crate_graph.ops.window import Window, window

Solver = UnrolledSolver | SplitSolver
Part = nn.Module  # a block, or a network that is one: it has `graphs` and a `solver`


@dataclass
class _Block:
    """What a block's forward pass shows. G = B x heads, all graphs of a picture side by side."""

    weights: Tensor | None = None  # (G, E, length), w_ij = exp(-d_ij)
    grid: Window | None = None
    y: Tensor | None = None  # (G, C, length), the values that the iterate should have where they are known
    mask: Tensor | None = None  # (G, C, length)
    solves: list[tuple] = field(default_factory=list)  # of the ADMM layers


def watch_graph_network(parts: list[Part], gathered: Gathered, cg_steps: bool) -> Iterator[Handle]:
    """Hooks that measure each block while the network runs; with `cg_steps` each CG step, too."""

    def begins(seen: _Block, solver: Solver, inputs: tuple) -> None:
        seen.solves.clear()
        seen.grid, seen.y, seen.mask = _known(solver, inputs)

    def graph(seen: _Block, _, __, weights: Tensor) -> None:
        seen.weights = weights

    def ends(block: int, seen: _Block, solver: Solver, _, __) -> None:
        _measure_block(gathered, block, seen, solver, cg_steps)

    for block, part in enumerate(parts, start=1):
        seen = _Block()
        yield part.graphs.register_forward_hook(partial(graph, seen))
        yield part.solver.register_forward_pre_hook(partial(begins, seen))
        yield part.solver.register_forward_hook(partial(ends, block, seen))
        yield _Watch(part.solver, lambda *system, seen=seen: seen.solves.append(system))


class _Watch:
    """`solver.watch` for a while, removed like a hook."""

    def __init__(self, solver: Solver, watch: Callable[..., None]):
        self._solver = solver
        solver.watch = watch

    def remove(self) -> None:
        del self._solver.watch


Handle = torch.utils.hooks.RemovableHandle | _Watch


def _known(solver: Solver, inputs: tuple) -> tuple[Window, Tensor, Tensor]:
    """The grid, and flat per graph what is known and where. Arguments of `UnrolledSolver` or `SplitSolver`."""
    heads = len(solver.mix)
    if isinstance(solver, UnrolledSolver):
        x, observed, mask, _ = inputs
        grid = window(*x.shape[-2:], RADIUS)
        y, mask = grid.flatten(observed), grid.flatten(mask)
    else:
        y, free, _, grid, binding = inputs
        mask = grid.flatten(1 - grid.pixels(free))
        if binding is not None:
            mask = torch.maximum(mask, (binding > 0).to(mask.dtype))
    return grid, *(t.repeat_interleave(heads, dim=0) for t in (y, mask))


def _measure_block(gathered: Gathered, block: int, seen: _Block, solver: Solver, cg_steps: bool) -> None:
    heads = len(solver.mix)
    is_glr = isinstance(solver, UnrolledSolver) and solver.prior == "glr"
    pixels = seen.grid.height * seen.grid.width

    def add(name: str, layer: tuple[int, ...], values: Tensor, unit: str) -> None:
        gathered.add(name, (block, *layer), values.unflatten(0, (-1, heads)).mean(dim=1), unit)

    def measure(layer: tuple[int, ...], x: Tensor) -> None:
        value = (glr_value if is_glr else gtv_value)(seen.weights, x, seen.grid) / pixels
        add("glr" if is_glr else "gtv", layer, value, "per pixel")
        add("data_residual", layer, data_residual(x, seen.y, seen.mask), "intensity")
        add("constraint_violation", layer, constraint_violation(x, seen.y, seen.mask), "intensity")

    add("edge_entropy", (), edge_entropy(seen.weights, seen.grid), "nats")
    for layer, system in enumerate(seen.solves, start=1):
        iterates, residuals = zip(*cg_iterates(*system), strict=True)
        if layer == 1:
            measure((0,), iterates[0])
        left = relative_norms(list(residuals))  # (T + 1, G)
        for step in range(1, len(iterates)) if cg_steps else ():
            measure((layer, step), iterates[step])
            add("system_residual", (layer, step), left[step], "of the first")
        skip = solver.skip[layer - 1] if isinstance(solver, UnrolledSolver) else 1
        measure((layer,), iterates[0] + skip * (iterates[-1] - iterates[0]))
        add("system_residual", (layer,), left[-1], "of the first")
    seen.solves.clear()


def measure_graph_weights(parts: list[Part], gathered: Gathered) -> None:
    """The learned scalars of each block as the solver uses them, and the Mahalanobis metrics M = R'R."""
    for block, part in enumerate(parts, start=1):
        root = part.graphs.root.detach()  # (heads, D, D)
        eigenvalues = torch.linalg.eigvalsh(root.mT @ root)  # (heads, D), smallest first
        gathered.add("metric_trace", (block,), eigenvalues.sum(-1), "1", "heads")
        gathered.add("metric_largest_eigenvalue", (block,), eigenvalues[:, -1], "1", "heads")
        gathered.add("metric_smallest_eigenvalue", (block,), eigenvalues[:, 0], "1", "heads")
        for name, layer, values, over in _scalars(part.solver):
            gathered.add(name, (block, *layer), values, "1", over)
        if isinstance(getattr(part, "skip", None), nn.Parameter):
            gathered.add("skip", (block,), part.skip, "1", "one")


def _scalars(solver: Solver) -> Iterator[tuple[str, tuple[int, ...], Tensor, str]]:
    """(name, (ADMM layer, CG step) or less, values, what they run over)."""
    split = isinstance(solver, SplitSolver)
    steps = {"alpha": bounded(solver.alpha, 0, 1.5 if split else 1), "beta": bounded(solver.beta, 0, 1)}
    for name, values in steps.items():  # (layers, steps, heads)
        for layer, step in torch.cartesian_prod(*(torch.arange(n) for n in values.shape[:2])).tolist():
            yield name, (layer + 1, step + 1), values[layer, step], "heads"
    yield "mix", (), solver.mix, "heads"
    if split:
        yield from (("threshold", (n,), row.exp(), "heads") for n, row in enumerate(solver.log_threshold, start=1))
        if solver.log_trust is not None:
            yield "trust", (), solver.log_trust.exp(), "one"
        return
    yield from (("skip", (n,), value, "one") for n, value in enumerate(solver.skip, start=1))
    if solver.prior == "gtv":
        yield from (("gamma", (n,), value, "one") for n, value in enumerate(bounded(solver.gamma, 0.01), start=1))
