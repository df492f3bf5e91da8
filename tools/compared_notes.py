"""What is said below a table of runs: how its numbers came about."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from compared_rows import Row

from crate_graph.analysis.probe import SIDE
from crate_graph.config.schema import Recipe
from crate_graph.evaluation.shifts import Shift
from crate_graph.train.trained import TrainedRun


def caption_of(rows: list[Row]) -> str:
    recipe = rows[0].recipe
    return f"{recipe.task.kind.replace('_', ' ').capitalize()} on {rows[0].dataset}, split {recipe.data.eval_split}."


def notes_on(rows: list[Row], shown: Collection[str], shifts: list[Shift], checkpoint: str, samples: int) -> list[str]:
    """Of the columns that are shown, those of `shifts` and of white-box measures on `samples` pictures among them."""
    notes = [_on_seeds(rows), _on_quality(rows, checkpoint)]
    if "flops" in shown:
        images = {row.title: "x".join(map(str, row.image)) for row in rows}
        notes.append(f"FLOPs of a forward pass, a multiply-add counts as two; an image is {_each(images)}.")
    if {"images_per_second", "peak_memory_bytes"} & set(shown):
        notes.append(_on_machines(rows, shown))
    if shifts:
        notes.append(_on_shifts(rows[0].recipe, shifts))
    looked = [sample.layer for row in rows for sample in row.samples if sample.layer is not None]
    if any(layer.means for layer in looked):
        where = f"their central {SIDE} x {SIDE} pixels, " if rows[0].recipe.task.kind == "restoration" else ""
        notes.append(
            f"White-box measures: of the last layer, {samples} pictures of the split or all it has, {where}in fp32; "
            f"names as in crate_graph/analysis/layers.py."
        )
    elif looked:
        notes.append(f"No white-box measures: {_list(layer.why_none for layer in looked)}.")
    return notes


def _on_seeds(rows: list[Row]) -> str:
    seeds = {len(row.samples) for row in rows}
    if seeds == {1}:
        return "One seed each: no deviation is known."
    over = f"{seeds.pop()} seeds" if len(seeds) == 1 else "the seeds; of one seed, the value alone"
    return f"Mean ± sample standard deviation over {over}."


def _on_quality(rows: list[Row], checkpoint: str) -> str:
    where = f"{rows[0].dataset}, split {rows[0].recipe.data.eval_split}"
    steps = _each({row.title: _list(sample.checkpoint.step for sample in row.samples) for row in rows})
    if checkpoint == "last":
        return f"Quality on {where}, of the last step: {steps}."
    metrics = _each({row.title: row.recipe.evaluation.metric for row in rows})
    return (
        f"Quality on {where}, of each run's best kept checkpoint by {metrics} on that very split, which flatters a "
        f"little; step {steps}."
    )


def _on_machines(rows: list[Row], shown: Collection[str]) -> str:
    said = []
    if "images_per_second" in shown:
        said.append("Training rate: median of the logged intervals after the first.")
    if "peak_memory_bytes" in shown:
        said.append("Peak memory: of the main process; on a CPU all that is resident, on a GPU its tensors.")
    machines = {row.title: _list(_machine(sample.run) for sample in row.samples) for row in rows}
    return " ".join([*said, f"Trained on {_each(machines)}."])


def _machine(run: TrainedRun) -> str:
    told = run.environment
    world, threads = told.get("world_size", "?"), told.get("cpu_threads", "?")
    return f"{world} x {told.get('device', 'an unknown device')} ({threads} thread{'' if threads == 1 else 's'} each)"


def _on_shifts(recipe: Recipe, shifts: list[Shift]) -> str:
    if recipe.task.kind == "classification":
        side = recipe.data.eval_transform.size
        constants: dict[str, list[str]] = {}
        for shift in shifts:
            constants.setdefault(shift.name, []).append(f"{shift.corruption.constant(side):g}")
        each = ", ".join(f"{name} {' '.join(values)}" for name, values in constants.items())
        severities = _list(shift.severity for shift in shifts)
        return (
            f"Corruptions of arXiv 1903.12261, severity {severities}, of views of {side} pixels: {each}; formulas in "
            f"crate_graph/evaluation/corruptions.py."
        )
    said = {
        "noise": f"noise: Gaussian, sigma {_list(f'{s.sigma:g}' for s in shifts if s.sigma is not None)} of 255",
        "mask_shift": f"mask_shift: {_moved(recipe)}",
    }
    return "; ".join(said[name] for name in dict.fromkeys(shift.name for shift in shifts)) + "."


def _moved(recipe: Recipe) -> str:
    if recipe.task.kind == "masked_autoencoding":
        ratio = recipe.task.mask_ratio
        return f"{(1 + ratio) / 2:.4g} of the patches hidden, where training hid {ratio:g}"
    if recipe.data.degradation.kind == "random":
        return f"half as many known pixels, {recipe.data.degradation.keep / 2:g} of all"
    return "the mask one column to the left"


def _list(values: Iterable[Any]) -> str:
    """Each value once."""
    return ", ".join(dict.fromkeys(map(str, values)))


def _each(by_title: dict[str, str]) -> str:
    """Once, where it is the same for all rows."""
    if len(set(by_title.values())) == 1:
        return next(iter(by_title.values()))
    return "; ".join(f"{title}: {value}" for title, value in by_title.items())
