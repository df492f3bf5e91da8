"""`crate-graph plan --check`: what is predicted for the machine at hand, beside what is measured on it.

The recipe runs with a batch that fits here, on synthetic images: alone, and as two processes over gloo (over NCCL where
there are two GPUs). The rates of the device are measured first, by products and copies; sizes are fitted to nothing.
Memory and arithmetic must come out as promised. Time is only shown: it is that of a busy machine, and of small batches.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from crate_graph.config.load import dump_recipe
from crate_graph.config.schema import Recipe
from crate_graph.data import Dataset
from crate_graph.data.dataset import DESCRIPTION
from crate_graph.errors import RunFailed, UserError
from crate_graph.planning.contradictions import Finding
from crate_graph.planning.disk import checkpoint_files
from crate_graph.planning.hardware import Assumptions, Device, Network
from crate_graph.planning.memory import peak_bytes, trace_for
from crate_graph.planning.readers import open_data
from crate_graph.planning.report import Plan, Section
from crate_graph.planning.state import buffer_bytes, gradient_bytes, state_bytes
from crate_graph.planning.tally import OTHER
from crate_graph.planning.timing import compute_time
from crate_graph.planning.trace import BACKWARD, FORWARD, Trace
from crate_graph.planning.traffic import Cluster, exposed_seconds, messages

PROMISED = {"peak beyond state, bytes": 0.10, "products per step, FLOP": 0.02}  # how far off a prediction may be
_DEADLINE = 1800  # seconds for one measurement
_AS_PROMISED = "as promised: " + ", ".join(f"{what.split(',')[0]} within {off:.0%}" for what, off in PROMISED.items())
_COLLECTIVES = {"allreduce": "all-reduce", "allgather_base": "all-gather", "reduce_scatter_base": "reduce-scatter"}


def check(recipe: Recipe, samples: int = 8, worlds: Sequence[int] | None = None) -> Plan:
    """Predicted and measured, with `samples` on each process in a step.

    Args:
        worlds: numbers of processes; one and two by default, or one where there is a single GPU.

    A prediction that is further off than `PROMISED` is a finding that stops.

    Raises:
        RunFailed: a measurement ended with an error.
    """
    if worlds is None:
        worlds = (1,) if torch.cuda.is_available() and torch.cuda.device_count() == 1 else (1, 2)
    dataset = open_data(recipe)
    sections, findings = [], []
    for world in worlds:
        smaller = smaller_recipe(recipe, samples, world)
        measured = measure_apart(smaller, dataset, world)
        rows = compare(predict(smaller, dataset, world, measured["rates"]), measured)
        title = "one process" if world == 1 else f"{world} processes"
        findings += missed(rows, title)
        units = {"predicted": "", "measured": "", "measured / predicted": "ratio"}
        sections.append(Section(title, rows=rows, units=units, basis=f"{samples} samples on each process"))
    return Plan(f"{recipe.name} on this machine, predicted and measured", sections, findings, good=_AS_PROMISED)


def smaller_recipe(recipe: Recipe, samples: int, world: int) -> Recipe:
    """The recipe with a global batch that a small machine holds.

    Raises:
        UserError: mixup needs pairs of samples.
    """
    view = recipe.data.train_transform
    if (view.mixup or view.cutmix) and samples % 2:
        raise UserError(f"--check-batch {samples}: mixup and cutmix pair samples; choose an even number")
    accumulates = recipe.batch.micro_batch is not None and recipe.batch.micro_batch < recipe.batch.global_batch
    parts = 2 if accumulates and samples % 2 == 0 else 1
    engine = recipe.engine.model_dump()
    values = recipe.model_dump() | {"batch": {"global_batch": samples * world, "micro_batch": samples // parts}}
    values["data"] |= {"slots": world, "workers": 0}
    values["model"]["init_from"] = None
    return Recipe.model_validate(values | {"engine": engine})


def measure_apart(recipe: Recipe, dataset: Dataset, world: int) -> dict[str, Any]:
    """`planning.measure` in processes of its own. Raises RunFailed with their last words.

    They have the description of the data set beside the recipe: its address may need credentials, which no file has.
    """
    with tempfile.TemporaryDirectory() as folder:
        file, output = Path(folder) / "recipe.yaml", Path(folder) / "measured.json"
        description = Path(folder) / DESCRIPTION
        description.write_text(yaml.safe_dump(dataset.description.model_dump()))
        data = recipe.data.model_copy(update={"dataset": str(description), "root": None})
        file.write_text(dump_recipe(recipe.model_copy(update={"data": data})))
        start = [sys.executable]
        if world > 1:
            start += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
        command = [*start, "-m", "crate_graph.planning.measure", str(file), str(output)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_DEADLINE)
        except subprocess.TimeoutExpired:
            raise RunFailed(
                f"measuring {world} processes took over {_DEADLINE} s; set a smaller --check-batch"
            ) from None
        if done.returncode or not output.exists():
            last = " ".join(done.stderr.split())[-400:]
            raise RunFailed(f"measuring {world} processes ended with {done.returncode}: {last}")
        return json.loads(output.read_text())


def predict(recipe: Recipe, dataset: Dataset, world: int, rates: Mapping[str, float]) -> dict[str, Any]:
    """The figures of `planning.measure`, from a trace."""
    micro_batch, accumulation = recipe.batch.resolve(world)
    trace = trace_for(recipe, dataset, world, micro_batch, accumulation, cuda=torch.cuda.is_available())
    cluster = _this_machine(world, rates)
    ranks = world if recipe.engine.zero_stage else 1
    compute = compute_time(trace, cluster.device, cluster.assumed, shares=ranks)
    sent = messages(trace.layout, recipe.engine, world, accumulation)
    totals: dict[str, int] = {}
    for message in sent:
        totals[message.collective] = totals.get(message.collective, 0) + message.bytes * message.times
    names = sum(map(len, dataset.classes)) + 4 * dataset.num_classes
    return {
        "held": _held(trace, recipe, world),
        "state": state_bytes(trace.layout, recipe.engine, world),
        "gradients": gradient_bytes(trace.layout, recipe.engine, world),
        "kept": trace.kept,
        "peak_of_step": _beyond_state(trace, recipe, world),
        "flops": accumulation * trace.flops(FORWARD, BACKWARD),
        "sent": totals,
        "checkpoint": checkpoint_files(recipe, trace.shapes, trace.trained, trace.moments, names),
        "step_seconds": compute.of_step(accumulation) + exposed_seconds(sent, cluster, compute.backward),
    }


def compare(predicted: Mapping[str, Any], measured: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of what, predicted, measured and their ratio."""
    pairs = [("held between steps, bytes", predicted["held"], measured["held"])]
    pairs += [(f"{kind}, bytes", predicted["state"][kind], size) for kind, size in measured["state"].items()]
    pairs.append(("gradients, bytes", predicted["gradients"], measured["gradients"]))
    if "kept" in measured:
        pairs.append(("kept for backward, bytes", predicted["kept"], measured["kept"]))
    pairs.append(("peak beyond state, bytes", predicted["peak_of_step"], measured["peak_of_step"]))
    pairs.append(("products per step, FLOP", predicted["flops"], measured["flops"]))
    for name, size in sent_by_collective(measured).items():
        pairs.append((f"{name} per step, bytes", predicted["sent"].get(name, 0), size))
    pairs.append(("checkpoint, bytes", sum(predicted["checkpoint"].values()), sum(measured["checkpoint"].values())))
    pairs.append(("step, ms", 1e3 * predicted["step_seconds"], 1e3 * measured["step_seconds"]))
    return [
        {
            "what": what,
            "predicted": round(before, 3),
            "measured": round(after, 3),
            "measured / predicted": after / before if before else (1.0 if before == after else None),
        }
        for what, before, after in pairs
        if before or after
    ]


def missed(rows: list[dict[str, Any]], where: str) -> list[Finding]:
    """Predictions that are further off than promised."""
    found = []
    for row in rows:
        allowed = PROMISED.get(row["what"])
        ratio = row["measured / predicted"]
        if allowed is not None and (ratio is None or abs(ratio - 1) > allowed):
            text = f"{where}: {row['what']}: {row['measured']:,} measured, {row['predicted']:,} predicted"
            found.append(
                Finding(True, f"{text}, over {allowed:.0%} apart; the plan of this recipe is not to be trusted")
            )
    return found


def sent_by_collective(measured: Mapping[str, Any]) -> dict[str, int]:
    """Bytes handed to collectives in a step, by the names that plans use."""
    return {_COLLECTIVES.get(name, name): size for name, size in measured["sent"].items()}


def _held(trace: Trace, recipe: Recipe, world: int) -> int:
    """State, DDP's gradients, what ZeRO-3 keeps for gradients, and on a CPU the batch, which is there before."""
    layout, engine = trace.layout, recipe.engine
    held = sum(state_bytes(layout, engine, world).values())
    if (engine.name == "accelerate" and world > 1) or engine.zero_stage == 3:
        held += gradient_bytes(layout, engine, world)
    if engine.zero_stage == 3:
        held += buffer_bytes(layout, engine)
    return held if torch.cuda.is_available() else held + trace.peak["batch"]


def _beyond_state(trace: Trace, recipe: Recipe, world: int) -> int:
    """Of the peak, what a step adds to what is there before it: not the batch, nor DDP's gradients, which stay."""
    kinds = peak_bytes(trace, recipe.engine, world, gloo=not torch.cuda.is_available())
    gradients, bucket = kinds["gradients"], kinds["bucket"]
    if recipe.engine.name == "accelerate" and world > 1:
        gradients = 0
    if recipe.engine.zero_stage == 3:  # the flat buffer of shares stays too, and the bucket
        gradients -= gradient_bytes(trace.layout, recipe.engine, world)
        bucket -= buffer_bytes(trace.layout, recipe.engine)
    batch = kinds["batch"] if torch.cuda.is_available() else 0  # on a CPU the step copies nothing
    return kinds[OTHER] + gradients + bucket + kinds["gathered"] + batch


def _this_machine(world: int, rates: Mapping[str, float]) -> Cluster:
    device = Device(
        memory=float("inf"),
        bandwidth=rates["bandwidth"],
        half=rates["half"],
        tf32=rates["tf32"],
        single=rates["single"],
        link=rates["ring"],
        network="",
        source="measured",
    )
    assumed = Assumptions(
        utilisation=1.0,
        memory_utilisation=1.0,
        network_utilisation=1.0,
        kernel_seconds=rates["operation"],
        host_seconds=rates["operation"],
    )
    return Cluster(1, world, device, Network(rates["ring"], False, rates["operation"], "measured"), assumed)
