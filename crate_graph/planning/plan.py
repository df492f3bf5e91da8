"""The plan of a run: every estimate with what it rests on, and what contradicts."""

from __future__ import annotations

from dataclasses import dataclass

from crate_graph.config.schema import ActivationCheckpointing, EngineConfig, Recipe
from crate_graph.data import Dataset, open_dataset
from crate_graph.errors import UserError
from crate_graph.models.checkpointing import MODES
from crate_graph.planning import contradictions as find
from crate_graph.planning.contradictions import Finding
from crate_graph.planning.disk import checkpoint_files, kept_checkpoints
from crate_graph.planning.memory import largest_micro_batch, peak_bytes, trace_for
from crate_graph.planning.readers import Shares, Split, know_split, micro_batch_of, readers, shares
from crate_graph.planning.report import Figure, Plan, Section
from crate_graph.planning.state import state_bytes
from crate_graph.planning.tally import OTHER
from crate_graph.planning.timing import ComputeTime, compute_time
from crate_graph.planning.trace import BACKWARD, FORWARD, Trace, trace_evaluation
from crate_graph.planning.traffic import Cluster, exposed_seconds, messages, ring_rate, seconds
from crate_graph.tasks.build import image_shapes
from crate_graph.train.run import check_model

TRACED = "traced step on fake tensors"


@dataclass(frozen=True)
class Given:
    """What the sections of a plan are made from."""

    recipe: Recipe
    dataset: Dataset
    cluster: Cluster
    split: Split
    micro_batch: int
    accumulation: int
    trace: Trace

    @property
    def steps(self) -> int | None:
        """Of an epoch."""
        if self.split.samples is None:
            return None
        return self.split.samples // self.recipe.batch.global_batch

    @property
    def compute(self) -> ComputeTime:
        ranks = self.cluster.world if self.recipe.engine.zero_stage else 1
        return compute_time(self.trace, self.cluster.device, self.cluster.assumed, shares=ranks)

    @property
    def step_seconds(self) -> float:
        return self.compute.of_step(self.accumulation) + self.waiting

    @property
    def waiting(self) -> float:
        sent = messages(self.trace.layout, self.recipe.engine, self.cluster.world, self.accumulation)
        return exposed_seconds(sent, self.cluster, self.compute.backward)


def make_plan(recipe: Recipe, cluster: Cluster, *, samples: int | None = None, shards: int | None = None) -> Plan:
    """Plan `recipe` for a cluster that need not be at hand.

    Args:
        samples, shards: of the training split, in the place of what the data set says.

    Raises:
        UserError: the recipe's data set or model is not known, or the model does not take its images.
    """
    dataset = open_dataset(recipe.data.dataset, recipe.data.root)
    split = know_split(dataset, recipe.data.train_split, samples=samples, shards=shards)
    forward_flops = check_model(recipe, dataset)
    micro_batch, accumulation = micro_batch_of(recipe, cluster.world)
    trace = trace_for(recipe, dataset, cluster.world, micro_batch, accumulation)
    given = Given(recipe, dataset, cluster, split, micro_batch, accumulation, trace)

    reader_shares, findings = _reader_shares(given)
    modes, peaks = _modes(given)
    memory, in_memory = _memory(given, peaks)
    disk, at_disk = _disk(given)
    findings += [
        *find.of_batches(recipe, cluster.world),
        *find.of_data(recipe, split, cluster.world, reader_shares),
        *find.of_device(recipe, cluster),
        *in_memory,
        *at_disk,
    ]
    sections = [
        _batches(given),
        _stream(given, reader_shares),
        _model(given, forward_flops),
        memory,
        modes,
        _stages(given),
        _communication(given),
        _time(given, forward_flops),
        disk,
    ]
    return Plan(_title(given), sections, findings)


def _title(given: Given) -> str:
    cluster = given.cluster
    return (
        f"{given.recipe.name}: {given.recipe.model.name}, {given.recipe.precision}, {given.recipe.engine.name}"
        f"{f' ZeRO-{given.recipe.engine.zero_stage}' if given.recipe.engine.name == 'deepspeed' else ''}, on "
        f"{cluster.nodes} x {cluster.gpus_per_node} GPUs"
    )


def _batches(given: Given) -> Section:
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


def _stream(given: Given, known: Shares | None) -> Section:
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
    basis = "data.plan of epoch 0" + (", shards of equal size assumed" if "shards in" not in split.source else "")
    for name, pair in (("shards per reader", known and known.shards), ("samples per reader", known and known.samples)):
        text = None if pair is None else (f"{pair[0]:,}" if pair[0] == pair[1] else f"{pair[0]:,} to {pair[1]:,}")
        figures.append(Figure(name, text, "", basis if text else "needs samples, shards and slots that divide"))
    figures.append(Figure("steps per epoch", given.steps, "", "samples // global batch; the tail is dropped"))
    return Section("stream", figures)


def _model(given: Given, forward_flops: int) -> Section:
    trace, layout = given.trace, given.trace.layout
    recomputed = trace.flops(FORWARD, BACKWARD) / given.micro_batch
    shape = "x".join(map(str, image_shapes(given.recipe, given.dataset)[-1]))
    basis = "meta tensors, products and convolutions"
    if given.recipe.task.kind == "restoration":
        basis += ", graph operators by their own count"
    return Section(
        "model",
        [
            Figure("parameters", layout.elements + layout.frozen, "", f"of which trained {layout.elements:,}"),
            Figure("FLOPs per image, forward", forward_flops, "FLOP", f"{basis}; one image of {shape}"),
            Figure("FLOPs per image, training", 3 * forward_flops, "FLOP", "forward x 3, nothing recomputed"),
            Figure("products per image, training", int(recomputed), "FLOP", f"{TRACED}, what is recomputed too"),
        ],
    )


def _memory(given: Given, peaks: dict[str, int]) -> tuple[Section, list[Finding]]:
    recipe, cluster = given.recipe, given.cluster
    kinds = peak_bytes(given.trace, recipe.engine, cluster.world)
    peak = sum(kinds.values())
    limit = cluster.device.memory * cluster.assumed.usable_memory
    basis = {
        "weights": "fp32; autocast copies are among activations",
        "gradients": "when the most is held",
        "activations": f"{TRACED}; autocast by the rules of CUDA; operations' results for a moment among them",
        "batch": "images and targets of the whole share",
        "bucket": "DeepSpeed's reduce_bucket_size, reserved in each backward pass",
        "gathered": "weights of ZeRO-3, until the end of the backward pass",
        "master": "fp32 share that the optimizer works on",
        "moments": f"{len(given.trace.moments)} per parameter, fp32",
        "ema": "fp32",
    }
    figures = [Figure(kind, size, "B", basis.get(kind, TRACED)) for kind, size in kinds.items() if size]
    usable = f"datasheet {cluster.device.memory / 2**30:.0f} GiB x {cluster.assumed.usable_memory:g} assumed usable"
    figures += [
        Figure("peak", peak, "B", "sum of these"),
        Figure("limit", int(limit), "B", usable),
        Figure("share of limit", peak / limit, "%", "over 100 % does not fit"),
        Figure("kept for backward", given.trace.kept, "B", f"{TRACED}, one micro batch"),
    ]
    findings: list[Finding] = []
    if peak > limit:
        share = given.micro_batch * given.accumulation
        fits = largest_micro_batch(recipe, given.dataset, cluster.world, share, limit)
        others = {mode: size for mode, size in peaks.items() if not mode.startswith(given.trace.checkpointing.mode)}
        findings += find.of_memory(recipe, peak, limit, fits, others)
    figures.append(_evaluation_memory(given, kinds, limit, findings))
    return Section("memory per GPU", figures), findings


def _evaluation_memory(given: Given, kinds: dict[str, int], limit: float, findings: list[Finding]) -> Figure:
    recipe = given.recipe
    if recipe.task.kind == "restoration":
        return Figure("evaluation", None, "B", "whole pictures, of any size")
    held = sum(kinds[kind] for kind in ("weights", "buffers", "master", "moments", "ema", "gathered"))
    taken = held + trace_evaluation(recipe, given.dataset)
    if taken > limit:
        findings.append(
            Finding(
                True,
                f"evaluation.batch_size={recipe.evaluation.batch_size} needs {taken / 2**30:.1f} GiB of the "
                f"{limit / 2**30:.1f} GiB that a GPU has for tensors; choose a smaller one",
            )
        )
    return Figure("evaluation", taken, "B", f"traced; evaluation.batch_size={recipe.evaluation.batch_size}")


def _modes(given: Given) -> tuple[Section, dict[str, int]]:
    """Kept bytes and peak of each mode of activation checkpointing that the model has; and the peaks by mode."""
    rows, peaks = [], {}
    none_flops = None
    for mode in MODES:
        asked = ActivationCheckpointing(mode=mode, k=given.recipe.activation_checkpointing.k)
        same = asked.mode == given.trace.checkpointing.mode
        try:
            trace = given.trace if same else _trace(given, asked)
        except UserError:  # the model has no such mode
            continue
        name = f"every_k, k={asked.k}" if mode == "every_k" else mode
        flops = trace.flops(FORWARD, BACKWARD)
        none_flops = none_flops or flops
        peaks[name] = sum(peak_bytes(trace, given.recipe.engine, given.cluster.world).values())
        rows.append(
            {
                "mode": name + (" (asked)" if same else ""),
                "kept for backward": trace.kept,
                "activations at peak": trace.peak[OTHER],
                "peak": peaks[name],
                "products": flops / max(none_flops, 1),
                "compute time": compute_time(trace, given.cluster.device, given.cluster.assumed).of_step(1),
            }
        )
    units = {
        "kept for backward": "B",
        "activations at peak": "B",
        "peak": "B",
        "products": "ratio",
        "compute time": "s",
    }
    basis = "traced with one micro batch; compute time: one micro batch and update"
    return Section("activation checkpointing", rows=rows, units=units, basis=basis), peaks


def _trace(given: Given, checkpointing: ActivationCheckpointing) -> Trace:
    return trace_for(
        given.recipe,
        given.dataset,
        given.cluster.world,
        given.micro_batch,
        given.accumulation,
        checkpointing=checkpointing,
    )


def _stages(given: Given) -> Section:
    rows = []
    engines = [EngineConfig(), *(EngineConfig(name="deepspeed", zero_stage=stage) for stage in range(4))]
    for engine in engines:
        held = state_bytes(given.trace.layout, engine, given.cluster.world)
        kinds = peak_bytes(given.trace, engine, given.cluster.world)
        same = engine == given.recipe.engine
        name = f"deepspeed ZeRO-{engine.zero_stage}" if engine.name == "deepspeed" else "accelerate"
        rows.append(
            {
                "engine": name + (" (asked)" if same else ""),
                "weights": held["weights"] + held["master"] + kinds["gathered"],
                "gradients": kinds["gradients"] + kinds["bucket"],
                "moments": held["moments"],
                "ema": held["ema"],
                "activations, batch": kinds[OTHER] + kinds["batch"],
                "peak": sum(kinds.values()),
            }
        )
    units = dict.fromkeys(rows[0], "B") | {"engine": ""}
    basis = (
        "rules in planning/state.py; weights with master copy and what is gathered, gradients with DeepSpeed's bucket"
    )
    return Section("engines and ZeRO stages", rows=rows, units=units, basis=basis)


def _communication(given: Given) -> Section:
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
            f"inside a node {cluster.device.link / 1e9:g} GB/s one way ({cluster.device.source}); among nodes: {network}; "
            f"x {cluster.assumed.network_utilisation:g} assumed",
        ),
        Figure("the step waits", given.waiting, "s", "DDP hides all but its last bucket behind the backward pass"),
    ]
    basis = "rules in planning/traffic.py; time without hiding"
    return Section("communication", figures, rows, {"bytes": "B", "time": "s"}, basis)


def _time(given: Given, forward_flops: int) -> Section:
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
        Figure("model FLOP utilisation", rate * 3 * forward_flops / peak, "%", "follows from the above"),
        Figure("epoch", epoch, "s", "steps x step, without evaluation"),
        Figure("run", None if total is None else total * step, "s", f"{total} steps, without evaluation and restarts"),
        Figure(
            "input needed per node", node_rate, "images/s", "decoded and augmented by its workers, so that none waits"
        ),
        Figure("read per node", per_sample and per_sample * node_rate, "B/s", sizes),
    ]
    return Section("time", figures)


def _disk(given: Given) -> tuple[Section, list[Finding]]:
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


def _reader_shares(given: Given) -> tuple[Shares | None, list[Finding]]:
    """None where samples or shards are unknown, or the slots do not divide."""
    data, split = given.recipe.data, given.split
    count = readers(data, given.cluster.world)
    if split.shard_samples is None or data.slots % count:
        return None, []
    try:
        return shares(given.recipe, split.shard_samples, count), []
    except UserError:  # fewer samples than a global batch: `of_data` says so
        return None, []
