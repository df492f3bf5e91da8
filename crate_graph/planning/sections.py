"""The sections of a plan about batches, stream, model, communication, time and disk."""

from __future__ import annotations

from crate_graph.errors import UserError
from crate_graph.planning import contradictions as find
from crate_graph.planning.contradictions import Finding
from crate_graph.planning.disk import checkpoint_files, kept_checkpoints
from crate_graph.planning.given import TRACED, Given
from crate_graph.planning.readers import Shares, readers, shares
from crate_graph.planning.report import Figure, Section
from crate_graph.planning.trace import BACKWARD, FORWARD
from crate_graph.planning.traffic import messages, ring_rate, seconds
from crate_graph.tasks.build import image_shapes
from crate_graph.train.flops import passes_of_training


def batches_section(given: Given) -> Section:
    batch, world = given.recipe.batch, given.cluster.world
    product = given.micro_batch * given.accumulation * world
    equal = f"= batch.global_batch={batch.global_batch}"
    return Section(
        "batches",
        [
            Figure("processes", world, "", f"{given.cluster.nodes} nodes x {given.cluster.gpus_per_node} GPUs"),
            Figure("micro batch", given.micro_batch, "samples", "batch.micro_batch, or the whole share of a process"),
            Figure("accumulation", given.accumulation, "micro batches", "what is left of the share"),
            Figure(
                "product",
                f"{given.micro_batch} x {given.accumulation} x {world} = {product}",
                "",
                equal if product == batch.global_batch else f"NOT {equal[2:]}",
            ),
        ],
    )


def stream_section(given: Given, known: Shares | None) -> Section:
    data, split, world = given.recipe.data, given.split, given.cluster.world
    count = readers(data, world)
    each = f"{data.slots // count}" if data.slots % count == 0 else None
    figures = [
        Figure("samples", split.samples, "", split.source),
        Figure("shards", split.shards, "", split.source if split.shards else "the pattern counts none; --shards N"),
        Figure("readers", count, "", f"{world} processes x {max(data.workers, 1)} workers"),
        Figure(
            "slots per process", data.slots / world if data.slots % world else data.slots // world, "", "data.slots"
        ),
        Figure("slots per reader", each or "they do not divide", "", f"{data.slots} slots / {count} readers"),
    ]
    basis = "data.plan of epoch 0" + (", shards of equal size assumed" if split.shard_bytes is None else "")
    for name, pair in (("shards per reader", known and known.shards), ("samples per reader", known and known.samples)):
        text = None if pair is None else (f"{pair[0]:,}" if pair[0] == pair[1] else f"{pair[0]:,} to {pair[1]:,}")
        figures.append(Figure(name, text, "", basis if text else "needs samples, shards and slots that divide"))
    figures.append(Figure("steps per epoch", given.steps, "", "samples // global batch; the tail is dropped"))
    return Section("stream", figures)


def reader_shares(given: Given) -> Shares | None:
    """None where samples or shards are unknown, or the slots do not divide."""
    data, split = given.recipe.data, given.split
    count = readers(data, given.cluster.world)
    if split.shard_samples is None or data.slots % count:
        return None
    try:
        return shares(given.recipe, split.shard_samples, count)
    except UserError:  # fewer samples than a global batch: `of_data` says so
        return None


def model_section(given: Given) -> Section:
    trace, layout = given.trace, given.trace.layout
    recomputed = trace.flops(FORWARD, BACKWARD) / given.micro_batch
    shape = "x".join(map(str, image_shapes(given.recipe, given.dataset)[-1]))
    basis = "products and convolutions"
    if given.recipe.task.kind == "restoration":
        basis += ", graph operators by their own count"
    passes = passes_of_training(given.recipe.model.freeze)
    return Section(
        "model",
        [
            Figure("parameters", layout.elements + sum(layout.frozen), "", f"of which trained {layout.elements:,}"),
            Figure("FLOPs of one image", int(given.forward_flops), "FLOP", f"forward; {basis}; {shape}"),
            Figure("training FLOPs per image", int(given.training_flops), "FLOP", f"{passes} x forward"),
            Figure("products per image", int(recomputed), "FLOP", f"{TRACED}; with what is recomputed"),
        ],
    )


def communication_section(given: Given) -> Section:
    cluster = given.cluster
    sent = messages(given.trace.layout, given.recipe.engine, cluster.world, given.accumulation)
    rows = [
        {
            "collective": message.collective,
            "bytes": message.bytes,
            "times": message.times,
            "time": seconds(message, cluster),
            "when": "behind the backward pass" if message.hidden else "the step waits",
        }
        for message in sent
    ]
    network = cluster.network.source if cluster.nodes > 1 else "one node"
    figures = [
        Figure("bytes per step", sum(message.bytes * message.times for message in sent), "B", "handed to collectives"),
        Figure(
            "ring rate",
            ring_rate(cluster),
            "B/s",
            f"inside a node {cluster.device.link / 1e9:g} GB/s one way ({cluster.device.source}); among nodes: "
            f"{network}; x {cluster.assumed.network_utilisation:g} assumed",
        ),
        Figure("the step waits", given.waiting, "s", "DDP hides all but its last bucket behind the backward pass"),
    ]
    basis = "rules in planning/traffic.py; time without hiding"
    return Section("communication", figures, rows, {"bytes": "B", "time": "s"}, basis)


def time_section(given: Given) -> Section:
    recipe, cluster, compute = given.recipe, given.cluster, given.compute
    device, assumed = cluster.device, cluster.assumed
    step, batch = given.step_seconds, recipe.batch.global_batch
    rate = batch / step
    peak = (device.single if recipe.precision == "fp32" else device.half) * cluster.world
    roofline = (
        f"each operation: FLOPs / ({device.half / 1e12:g} TFLOP/s 16-bit, {device.single / 1e12:g} fp32, "
        f"x {assumed.utilisation:g}) or bytes / ({device.bandwidth / 1e12:g} TB/s x {assumed.memory_utilisation:g}), "
        f"at least {1e6 * assumed.kernel_seconds:g} us ({device.source}; shares assumed)"
    )
    epoch = None if given.steps is None else given.steps * step
    planned = None if given.steps is None else recipe.schedule.epochs * given.steps
    total = min(planned, recipe.schedule.max_steps or planned) if planned is not None else recipe.schedule.max_steps
    node_rate = rate / cluster.nodes
    per_sample = given.split.bytes_per_sample
    sizes = f"{per_sample / 1e3:.0f} kB a sample of its shards" if per_sample else "dataset.yaml has no bytes"
    figures = [
        Figure("forward and backward", compute.forward + compute.backward, "s", f"one micro batch; {roofline}"),
        Figure(
            "started by the host in",
            compute.host,
            "s",
            f"{1e6 * assumed.host_seconds:g} us per operation assumed; the longer of host and device counts",
        ),
        Figure("update", compute.update, "s", "optimizer and average; divided among ranks under ZeRO"),
        Figure("step", step, "s", f"{given.accumulation} micro batches, update, waiting for others; input never waits"),
        Figure("images per second", rate, "images/s", "all GPUs together"),
        Figure("model FLOP utilisation", rate * given.training_flops / peak, "%", "follows from the above"),
        Figure("epoch", epoch, "s", "steps x step, without evaluation"),
        Figure("run", None if total is None else total * step, "s", f"{total} steps, without evaluation and restarts"),
        Figure(
            "input needed per node", node_rate, "images/s", "decoded and augmented by its workers, so that none waits"
        ),
        Figure("read per node", per_sample and per_sample * node_rate, "B/s", sizes),
    ]
    return Section("time", figures)


def disk_section(given: Given) -> tuple[Section, list[Finding]]:
    recipe, trace, assumed = given.recipe, given.trace, given.cluster.assumed
    classes = given.dataset.description.classes
    names = sum(len(name) + 4 for name in classes) if isinstance(classes, list) else 8 * classes
    files = checkpoint_files(recipe, trace.shapes, trace.trained, trace.moments, names)
    size = sum(files.values())
    steps = given.steps and recipe.schedule.epochs * given.steps
    kept = kept_checkpoints(recipe, steps)
    copy, write = size / assumed.host_copy_rate, size / assumed.disk_rate
    figures = [Figure(name, bytes, "B", "fp32, whatever the engine") for name, bytes in files.items()]
    figures += [
        Figure("checkpoint", size, "B", "portable; the same for any engine and number of processes"),
        Figure(
            "training stands still", copy, "s", f"copy to the host at {assumed.host_copy_rate / 1e9:g} GB/s assumed"
        ),
        Figure("written in", write, "s", f"in the background, at {assumed.disk_rate / 1e9:g} GB/s assumed"),
        Figure("kept at once", kept * size, "B", f"{kept} checkpoints at most: keep_last, keep_best, keep_every"),
    ]
    return Section("checkpoint", figures), find.of_run(recipe, write, _seconds_between(given))


def _seconds_between(given: Given) -> float | None:
    """Between two checkpoints, where that is known."""
    rule = given.recipe.checkpoint
    every = [rule.every_steps] if rule.every_steps else []
    if rule.every_epochs and given.steps:
        every.append(rule.every_epochs * given.steps)
    return min(every) * given.step_seconds if every else None
