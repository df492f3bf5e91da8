"""The sections of a plan about the memory of a GPU."""

from __future__ import annotations

from crate_graph.config.schema import ActivationCheckpointing, EngineConfig
from crate_graph.errors import UserError
from crate_graph.models.checkpointing import MODES
from crate_graph.planning import contradictions as find
from crate_graph.planning.contradictions import Finding
from crate_graph.planning.given import TRACED, Given
from crate_graph.planning.memory import largest_micro_batch, peak_bytes, trace_for
from crate_graph.planning.report import Figure, Section
from crate_graph.planning.state import state_bytes
from crate_graph.planning.tally import OTHER
from crate_graph.planning.timing import compute_time
from crate_graph.planning.trace import BACKWARD, FORWARD, Trace, trace_evaluation


def memory_section(given: Given, peaks: dict[str, int]) -> tuple[Section, list[Finding]]:
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


def modes_section(given: Given) -> tuple[Section, dict[str, int]]:
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


def stages_section(given: Given) -> Section:
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
