"""From 8 to 4,096 GPUs: time, efficiency and traffic of a recipe, and where more of them stop making sense."""

from __future__ import annotations

from typing import Any

from crate_graph.config.schema import Recipe
from crate_graph.data import Dataset
from crate_graph.planning.contradictions import Finding
from crate_graph.planning.memory import peak_bytes, trace_for
from crate_graph.planning.patience import said_if_slow
from crate_graph.planning.readers import Split, know_split, micro_batch_of, open_data, readers
from crate_graph.planning.report import Plan, Section
from crate_graph.planning.timing import ComputeTime, compute_time
from crate_graph.planning.trace import Trace, tracing
from crate_graph.planning.traffic import Cluster, exposed_seconds, messages
from crate_graph.train.run import check_model

FEWEST, MOST = 8, 4096  # GPUs
_WORTH = 0.5  # efficiency below which the next doubling is said to make no sense, assumed
_UNITS = {
    "memory": "B",
    "step": "s",
    "images/s": "images/s",
    "efficiency": "%",
    "waits for others": "%",
    "epoch": "s",
}


def scaling_plan(
    recipe: Recipe, cluster: Cluster, *, grows: bool, samples: int | None = None, shards: int | None = None
) -> Plan:
    """A table over numbers of GPUs, `cluster.gpus_per_node` in each host.

    Args:
        grows: the global batch grows with the GPUs, from the recipe's at the fewest; else it is the recipe's.

    Efficiency is images/s of each GPU over those of the fewest GPUs in the table.

    Raises:
        UserError: as `make_plan`; also where the model has not the recipe's activation checkpointing.
    """
    dataset = open_data(recipe)
    split = know_split(dataset, recipe.data.train_split, samples=samples, shards=shards)
    fewest = node_counts(cluster.gpus_per_node)[0] * cluster.gpus_per_node
    check_model(recipe, dataset, micro_batch_of(recipe, fewest)[0])
    with said_if_slow(tracing(recipe)):
        rows = _rows(recipe, dataset, split, cluster, grows)
    batch = "that grows with the GPUs" if grows else f"of {recipe.batch.global_batch} on any number"
    basis = f"as in a plan of each; {cluster.gpus_per_node} GPUs a node; a global batch {batch}"
    title = (
        f"{recipe.name}: {recipe.model.name}, {recipe.precision}, from {rows[0]['GPUs']} to {rows[-1]['GPUs']:,} GPUs"
    )
    return Plan(title, [Section("scaling", rows=rows, units=_UNITS, basis=basis)], _findings(rows, recipe, grows))


def _rows(recipe: Recipe, dataset: Dataset, split: Split, cluster: Cluster, grows: bool) -> list[dict[str, Any]]:
    traces: dict[tuple[int, int], Trace] = {}
    rows: list[dict[str, Any]] = []
    first_rate = None
    counts = node_counts(cluster.gpus_per_node)
    for nodes in counts:
        at = cluster._replace(nodes=nodes)
        world = at.world
        if rows and not grows and recipe.batch.global_batch < world:
            break
        asked = _grown(recipe, nodes // counts[0]) if grows else recipe
        row = _row(asked, dataset, split, at, traces)
        rate = row["images/s"] / world
        first_rate = first_rate or rate
        row["efficiency"] = rate / first_rate
        rows.append(row | {"why not": _why_not(asked, split, at, row, rows)})
    return rows


def node_counts(gpus_per_node: int) -> list[int]:
    """Doubling, from 8 GPUs to 4,096."""
    counts = [2**n for n in range(13)]
    return [nodes for nodes in counts if FEWEST <= nodes * gpus_per_node <= MOST] or [1]


def _row(
    recipe: Recipe, dataset: Dataset, split: Split, cluster: Cluster, traces: dict[tuple[int, int], Trace]
) -> dict[str, Any]:
    world = cluster.world
    micro_batch, accumulation = micro_batch_of(recipe, world)
    key = micro_batch, accumulation
    if key not in traces:
        traces[key] = trace_for(recipe, dataset, world, micro_batch, accumulation)
    trace = traces[key]
    ranks = world if recipe.engine.zero_stage else 1
    compute: ComputeTime = compute_time(trace, cluster.device, cluster.assumed, shares=ranks)
    sent = messages(trace.layout, recipe.engine, world, accumulation)
    waiting = exposed_seconds(sent, cluster, compute.backward)
    step = compute.of_step(accumulation) + waiting
    batch = micro_batch * accumulation * world
    steps = None if split.samples is None else split.samples // batch
    count = readers(recipe.data, world)
    return {
        "GPUs": world,
        "global batch": batch,
        "micro batch": f"{micro_batch} x {accumulation}",
        "memory": sum(peak_bytes(trace, recipe.engine, world).values()),
        "step": step,
        "images/s": batch / step,
        "efficiency": 1.0,
        "waits for others": waiting / step,
        "epoch": None if not steps else steps * step,
        "shards per reader": None if split.shards is None else round(split.shards / count, 2),
    }


def _grown(recipe: Recipe, times: int) -> Recipe:
    """The recipe with a global batch, and slots, that are so many times larger."""
    batch = recipe.batch.model_copy(update={"global_batch": recipe.batch.global_batch * times})
    data = recipe.data.model_copy(update={"slots": recipe.data.slots * times})
    return recipe.model_copy(update={"batch": batch, "data": data})


def _why_not(recipe: Recipe, split: Split, cluster: Cluster, row: dict[str, Any], before: list[dict[str, Any]]) -> str:
    """What speaks against this number of GPUs, in a few words."""
    reasons = []
    batch, data, world = recipe.batch, recipe.data, cluster.world
    if row["memory"] > cluster.device.memory * cluster.assumed.usable_memory:
        reasons.append("does not fit into memory")
    if batch.global_batch % world:
        reasons.append(f"{world} does not divide the batch")
    if data.slots % readers(data, world):
        reasons.append(f"{data.slots} slots, {readers(data, world)} readers")
    if split.samples is not None and split.samples < batch.global_batch:
        reasons.append("an epoch has no step")
    if split.shards is not None and split.shards < readers(data, world):
        reasons.append("readers share shards")
    if row["efficiency"] < _WORTH:
        reasons.append(f"efficiency under {_WORTH:.0%}")
    if before and row["images/s"] < 1.1 * before[-1]["images/s"]:
        reasons.append("hardly faster than half of them")
    return "; ".join(reasons) or "-"


def _findings(rows: list[dict[str, Any]], recipe: Recipe, grows: bool) -> list[Finding]:
    found = []
    makes_sense = [row for row in rows if row["efficiency"] >= _WORTH and "hardly" not in row["why not"]]
    if makes_sense and makes_sense[-1] is not rows[-1]:
        after = rows[rows.index(makes_sense[-1]) + 1]
        found.append(
            Finding(False, f"beyond {makes_sense[-1]['GPUs']:,} GPUs it stops making sense: {after['why not']}")
        )
    if not grows and 2 * rows[-1]["GPUs"] <= MOST:
        found.append(
            Finding(
                False,
                f"batch.global_batch={recipe.batch.global_batch} gives no sample to each of more than "
                f"{rows[-1]['GPUs']:,} GPUs; --scaling growing lets the batch grow",
            )
        )
    if grows:
        found.append(Finding(False, "a batch that grows is another recipe: optimizer.lr and warm-up must follow it"))
    return found
