"""The plan of a run: every estimate with what it rests on, and what contradicts."""

from __future__ import annotations

from crate_graph.config.schema import Recipe
from crate_graph.data import Dataset
from crate_graph.errors import UserError
from crate_graph.planning import contradictions as find
from crate_graph.planning.cache import cache_section
from crate_graph.planning.contradictions import Finding
from crate_graph.planning.given import Given
from crate_graph.planning.memory import trace_for
from crate_graph.planning.memory_sections import memory_section, modes_section, stages_section
from crate_graph.planning.patience import said_if_slow
from crate_graph.planning.readers import know_split, micro_batch_of, open_data
from crate_graph.planning.report import Plan
from crate_graph.planning.sections import (
    batches_section,
    communication_section,
    disk_section,
    model_section,
    reader_shares,
    stream_section,
    time_section,
)
from crate_graph.planning.trace import Trace, tracing
from crate_graph.planning.traffic import Cluster
from crate_graph.train.run import check_model


def make_plan(recipe: Recipe, cluster: Cluster, *, samples: int | None = None, shards: int | None = None) -> Plan:
    """Plan `recipe` for a cluster that need not be at hand.

    Args:
        samples, shards: of the training split, in the place of what the data set says.

    Raises:
        UserError: the recipe's data set or model is not known, or the model does not take its images.
    """
    dataset = open_data(recipe)
    split = know_split(dataset, recipe.data.train_split, samples=samples, shards=shards)
    micro_batch, accumulation = micro_batch_of(recipe, cluster.world)
    forward_flops = check_model(recipe, dataset, micro_batch)
    with said_if_slow(tracing(recipe)):
        recipe, trace, findings = _trace(recipe, dataset, cluster.world, micro_batch, accumulation)
        given = Given(recipe, dataset, cluster, split, micro_batch, accumulation, trace, forward_flops)
        return _plan_of(given, findings)


def _plan_of(given: Given, findings: list[Finding]) -> Plan:
    recipe, split, cluster = given.recipe, given.split, given.cluster
    known = reader_shares(given)
    modes, peaks = modes_section(given)
    memory, in_memory = memory_section(given, peaks)
    disk, at_disk = disk_section(given)
    cache, in_cache = cache_section(given) if split.remote else (None, [])
    findings += [
        *find.of_batches(recipe, cluster.world),
        *find.of_data(recipe, split, cluster.world, known),
        *find.of_device(recipe, cluster),
        *in_memory,
        *at_disk,
        *in_cache,
    ]
    sections = [
        batches_section(given),
        stream_section(given, known),
        *([cache] if cache else []),
        model_section(given),
        memory,
        modes,
        stages_section(given),
        communication_section(given),
        time_section(given),
        disk,
    ]
    return Plan(_title(given), sections, findings)


def _trace(
    recipe: Recipe, dataset: Dataset, world: int, micro_batch: int, accumulation: int
) -> tuple[Recipe, Trace, list[Finding]]:
    """Of the recipe; without its activation checkpointing, and with a finding, where the model has no such mode."""
    asked = recipe.activation_checkpointing
    try:
        return recipe, trace_for(recipe, dataset, world, micro_batch, accumulation), []
    except UserError as error:
        if asked.mode == "none":
            raise
        without = recipe.model_copy(update={"activation_checkpointing": asked.model_copy(update={"mode": "none"})})
        trace = trace_for(without, dataset, world, micro_batch, accumulation)
        return without, trace, [Finding(True, f"activation_checkpointing.mode={asked.mode}: {error}")]


def _title(given: Given) -> str:
    cluster = given.cluster
    return (
        f"{given.recipe.name}: {given.recipe.model.in_words()}; {given.recipe.precision}, {given.recipe.engine.name}"
        f"{f' ZeRO-{given.recipe.engine.zero_stage}' if given.recipe.engine.name == 'deepspeed' else ''}, on "
        f"{cluster.nodes} x {cluster.gpus_per_node} GPUs"
    )
