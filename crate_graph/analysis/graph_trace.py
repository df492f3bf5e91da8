"""What one picture goes through in a graph network: its graphs, and the iterates of each block."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from crate_graph.analysis.layers import as_found
from crate_graph.analysis.pictures import Observation
from crate_graph.measures.graphs import cg_iterates
from crate_graph.models.graph_networks import UnrolledSolver, UntrainedGraphNetwork
from crate_graph.models.ugtv_fast import UGTVFast
from crate_graph.ops.window import Window
from crate_graph.tasks.restoration import estimate


@dataclass
class Trace:
    """What one picture went through, a list entry for each block."""

    grids: list[Window] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)  # (heads, E, length), w_ij = exp(-d_ij)
    iterates: list[list[Tensor]] = field(default_factory=list)  # the start, then after each ADMM layer: (C, H, W)


def trace(model: nn.Module, observation: Observation) -> Trace:
    """The graphs, and the picture after each ADMM layer as the mean over the heads; of ugtv_fast with its guide."""
    found, handles = Trace(), []
    parts = [model] if isinstance(model, UntrainedGraphNetwork) else list(model.blocks)
    for part in parts:
        solves: list[tuple] = []
        part.solver.watch = lambda *system, solves=solves: solves.append(system)
        handles.append(part.graphs.register_forward_hook(partial(_keep_graph, found)))
        handles.append(part.solver.register_forward_hook(partial(_keep_iterates, found, solves)))
        if isinstance(model, UGTVFast):
            handles.append(part.register_forward_hook(partial(_add_guide, found)))
    try:
        with as_found(model):
            estimate(model, observation.observed, observation.mask, observation.sigma)
    finally:
        for handle in handles:
            handle.remove()
        for part in parts:
            del part.solver.watch
    return found


def _keep_graph(found: Trace, _, inputs: tuple, output: Tensor) -> None:
    found.grids.append(inputs[1])
    found.weights.append(output)


def _keep_iterates(found: Trace, solves: list[tuple], solver: nn.Module, _, output: Tensor) -> None:
    grid, iterates = found.grids[-1], []

    def add(x: Tensor) -> None:
        """x (heads, C, length)."""
        iterates.append(torch.einsum("g,gchw->chw", solver.mix, grid.pixels(x)))

    for layer, system in enumerate(solves):
        start, *_, end = (x for x, _ in cg_iterates(*system))
        if not iterates:
            add(start)
        skip = solver.skip[layer] if isinstance(solver, UnrolledSolver) else 1
        add(start + skip * (end - start))
    solves.clear()
    found.iterates.append([*iterates, output[0] if isinstance(solver, UnrolledSolver) else grid.pixels(output[0])])


def _add_guide(found: Trace, _, __, output: tuple[Tensor, Tensor]) -> None:
    """What the solver smooths is the difference of picture and guide."""
    *iterates, solution = found.iterates[-1]
    guide = output[1][0] - solution
    found.iterates[-1] = [guide + x for x in [*iterates, solution]]
