"""Run folders of crate-graph train side by side, as one table in Markdown, CSV and LaTeX: cost, quality, what layers do.

    .venv/bin/python tools/compare_runs.py runs/crate-0 runs/crate-1 ViT=runs/vit-0 ViT=runs/vit-1
    .venv/bin/python tools/compare_runs.py runs/* --robustness --output comparison

Runs whose recipes are equal apart from the seed are one row: mean and sample standard deviation over the seeds. All
runs are of one task and one data set. A title may be given, TITLE=RUN. Quality is that of each run's best checkpoint by
its own `evaluation.metric`, on the split that the run is evaluated on, or of the last one (--checkpoint last).

The white-box measures of the last layer (crate_graph/analysis/layers.py) are of a probe batch of that split. With
--robustness the checkpoint is evaluated under corruptions, another noise or another mask, too
(crate_graph/evaluation/shifts.py); it is off by default, since each of them takes as long as an evaluation.

--output DIR writes comparison.md, .csv and .tex, replacing those that are there, and keeps what was measured in
DIR/measured.json, so that it is measured once. Without it the table is printed and nothing is kept.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from checkpoint_measures import Asked, LastLayer, Memory, write_whole
from table_writing import Column, Missing, Spread, Table, Value, csv_text, latex, markdown

from crate_graph.checkpoint.model import arguments_of
from crate_graph.checkpoint.store import Entry
from crate_graph.config.schema import Recipe
from crate_graph.errors import RunFailed, UserError
from crate_graph.evaluation.corruptions import SEVERITIES
from crate_graph.evaluation.shifts import MEASURE, Shift, shifts_for
from crate_graph.models import create_model
from crate_graph.models.restorers import is_restorer
from crate_graph.tasks.build import color_channels, describe_task
from crate_graph.train.flops import count_flops
from crate_graph.train.trained import TrainedRun, open_run

FORMATS = {"markdown": ("md", markdown), "csv": ("csv", csv_text), "latex": ("tex", latex)}
MEMORY = "measured.json"

COSTS = ("seeds", "parameters", "flops", "images_per_second", "peak_memory_bytes")
LAYERS = ("rc_output", "coding_rate_output", "nonzero_output", "glr", "gtv", "data_residual", "edge_entropy")
# of each task: its metrics with their heads and digits, and how many of them are shown unless columns are chosen
METRICS = {
    "classification": ({"top1": ("top-1 %", 2), "top5": ("top-5 %", 2), "loss": ("{split} loss", 3)}, 3),
    "restoration": (
        {
            "psnr": ("PSNR dB", 2),
            "ssim": ("SSIM", 4),
            "psnr_pooled": ("PSNR dB, pooled", 2),
            "ssim_float": ("SSIM, unrounded", 4),
            "loss": ("{split} loss", 4),
        },
        2,
    ),
    "masked_autoencoding": (
        {
            "psnr": ("hidden-pixel PSNR dB", 2),
            "psnr_of_visible_mean": ("PSNR dB of the visible mean", 2),
            "loss": ("{split} loss", 4),
        },
        3,
    ),
}
MEAN = "shift_mean"  # over the corruptions of a classifier


@dataclass(frozen=True)
class Request:
    """What is asked beside the runs; see --help."""

    columns: Sequence[str] | None = None
    checkpoint: str = "best"
    probe: int = 32  # samples; 0: no white-box measures
    severities: Sequence[int] = ()  # none: no robustness
    unfinished: bool = False
    memory: Path | None = None


@dataclass
class Row:
    """A model: runs that differ by their seed alone, each with the checkpoint that speaks for it."""

    title: str | None
    runs: list[TrainedRun] = field(default_factory=list)
    checkpoints: list[Entry] = field(default_factory=list)
    layers: list[LastLayer] = field(default_factory=list)  # likewise, if they were asked for

    @property
    def recipe(self) -> Recipe:
        return self.runs[0].recipe


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    request = Request(
        columns=None if args.columns is None else [name for name in args.columns.split(",") if name],
        checkpoint=args.checkpoint,
        probe=args.probe,
        severities=args.severity if args.robustness else (),
        unfinished=args.unfinished,
        memory=None if args.output is None else args.output / MEMORY,
    )
    formats = args.format or (["markdown"] if args.output is None else list(FORMATS))
    try:
        table = compare(args.runs, request)
        texts = {name: FORMATS[name][1](table) for name in dict.fromkeys(formats)}
        for name, text in texts.items():
            if args.output is None:
                print(text, end="" if name == list(texts)[-1] else "\n")
            else:
                write_whole(file := args.output / f"comparison.{FORMATS[name][0]}", text)
                print(file)
    except (UserError, RunFailed) as error:
        print(f"compare_runs: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("runs", nargs="+", metavar="[TITLE=]RUN", help="a run folder of crate-graph train")
    add("--format", action="append", choices=FORMATS, help="may be given more than once (markdown; with --output all)")
    add("--output", type=Path, metavar="DIR", help="write comparison.md, .csv, .tex here instead of printing")
    add("--columns", metavar="A,B,...", help="only these, in this order, by their names in the CSV without _mean")
    add("--checkpoint", choices=("best", "last"), default="best", help="whose quality and layers (best)")
    add("--probe", type=_natural, default=32, metavar="N", help="samples for white-box measures (32); 0: none")
    add("--robustness", action="store_true", help="evaluate under corruptions, noise and other masks; off by default")
    add("--severity", type=int, nargs="+", choices=SEVERITIES, default=[3], metavar="S", help="of those, 1 to 5 (3)")
    add("--unfinished", action="store_true", help="take runs that have not reached their end, too")
    return parser


def _natural(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 on")
    return int(text)


def compare(runs: Sequence[str], request: Request) -> Table:
    """The table of these run folders, each as RUN or TITLE=RUN.

    Raises:
        UserError: a folder that cannot be compared with the others, or cannot be read; an unknown column.
    """
    rows = _rows(runs, request)
    _check_comparable([run for row in rows for run in row.runs], [e for row in rows for e in row.checkpoints])
    memory = Memory(_outside(request.memory, rows))
    recipe = rows[0].recipe
    shifts = shifts_for(recipe, request.severities) if request.severities else []
    known = _columns(rows, shifts)
    chosen = None if request.columns is None else ["model", *(name for name in request.columns if name != "model")]
    unknown = [] if chosen is None else [name for name in chosen if name not in known]
    asked = {id(e): Asked(str(r.path), r.recipe, e, memory) for row in rows for r, e in _pairs(row)}
    measures = request.probe > 0 and (chosen is None or bool(unknown))
    if measures or shifts:
        _check_same_data(rows, asked)
    if measures:
        for row in rows:
            row.layers = [asked[id(entry)].last_layer(request.probe) for entry in row.checkpoints]
        known |= _layer_columns(rows)
    columns = _choose(chosen, known, rows, request)
    wanted = [shift for shift in shifts if {shift.name, MEAN} & {column.name for column in columns}]
    cells = [_cells(row, columns, wanted, asked) for row in rows]
    split = recipe.data.eval_split
    caption = f"{recipe.task.kind.replace('_', ' ').capitalize()} on {_dataset(rows[0].checkpoints[0])}, split {split}."
    return Table(columns, cells, _notes(rows, columns, wanted, request), caption)


def _rows(names: Sequence[str], request: Request) -> list[Row]:
    """Runs by their recipes, in the order in which they are named."""
    rows: dict[str, Row] = {}
    seen: dict[Path, str] = {}
    for name in names:
        title, path = _titled(name)
        if (place := path.resolve()) in seen:
            raise UserError(f"{path}: named twice; leave one out")
        seen[place] = name
        run = open_run(path, unfinished=request.unfinished)
        key = run.recipe.model_copy(update={"seed": 0}).model_dump_json()
        row = rows.setdefault(key, Row(title))
        twin = next((other for other in row.runs if other.recipe.seed == run.recipe.seed), None)
        if twin is not None:
            raise UserError(f"{path}: the same recipe and seed as {twin.path}, so no second sample; leave one out")
        if title is not None and row.title not in (None, title):
            raise UserError(f"{path}: {title!r} and {row.title!r} are of one recipe; give both the same title")
        row.title = row.title or title
        row.runs.append(run)
        row.checkpoints.append(run.checkpoint(request.checkpoint))
    _name(list(rows.values()))
    return list(rows.values())


def _titled(text: str) -> tuple[str | None, Path]:
    title, equals, name = text.partition("=")
    if not equals or Path(text).exists():
        return None, Path(text)
    return title, Path(name)


def _name(rows: list[Row]) -> None:
    """Titles that tell the rows apart: the recipe's name, with what differs where two have the same."""
    for title, alike in _grouped((row.title or row.recipe.name, row) for row in rows).items():
        settings = [_flat(row.recipe.model_dump(exclude={"seed", "name"})) for row in alike]
        differing = [key for key in settings[0] if any(each.get(key) != settings[0][key] for each in settings)]
        for row, values in zip(alike, settings, strict=True):
            shown = ", ".join(f"{key}={values.get(key)}" for key in differing)
            row.title = f"{title} ({shown})" if len(alike) > 1 else title


def _grouped(pairs: Iterable[tuple[str, Row]]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for key, row in pairs:
        groups.setdefault(key, []).append(row)
    return groups


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _pairs(row: Row) -> Iterable[tuple[TrainedRun, Entry]]:
    return zip(row.runs, row.checkpoints, strict=True)


def _check_comparable(runs: list[TrainedRun], checkpoints: list[Entry]) -> None:
    """Raise UserError where numbers would not be of the same question."""
    first, *others = [
        {**describe_task(run.recipe), "data set": _dataset(entry), "split": run.recipe.data.eval_split}
        for run, entry in zip(runs, checkpoints, strict=True)
    ]
    for run, asked in zip(runs[1:], others, strict=True):
        for key in first:
            if asked.get(key) != first[key]:
                raise UserError(
                    f"{run.path}: {key} {asked.get(key)}, and {runs[0].path} has {first[key]}; compare runs of one task "
                    f"on one data set, the others in a table of their own"
                )


def _check_same_data(rows: list[Row], asked: dict[int, Asked]) -> None:
    """By the shards, which two data sets of one name need not share."""
    runs = [(run, asked[id(entry)].data) for row in rows for run, entry in _pairs(row)]
    for run, data in runs[1:]:
        if data != runs[0][1]:
            raise UserError(
                f"{run.path}: other shards of the split {run.recipe.data.eval_split} than {runs[0][0].path}; compare runs "
                f"on the same data"
            )


def _outside(memory: Path | None, rows: list[Row]) -> Path | None:
    for run in (run for row in rows for run in row.runs if memory is not None):
        if memory.resolve().is_relative_to(run.path.resolve()):
            raise UserError(
                f"--output {memory.parent}: lies in the run {run.path}, which stays as it is; choose another"
            )
    return memory


def _dataset(entry: Entry) -> str:
    return entry.manifest["dataset"]["name"]


def _columns(rows: list[Row], shifts: list[Shift]) -> dict[str, Column]:
    """All that there can be but white-box measures."""
    recipe = rows[0].recipe
    metrics, _ = METRICS[recipe.task.kind]
    columns = [
        Column("model", "model"),
        Column("seeds", "seeds", 0),
        Column("parameters", "parameters", 0),
        Column("flops", "MFLOP per image", 1, 1e-6),
        Column("images_per_second", "training images/s (median)", 0),
        Column("peak_memory_bytes", f"peak memory MiB{_counted(rows)}", 0, 2.0**-20),
    ]
    columns += [Column(n, head.format(split=recipe.data.eval_split), digits) for n, (head, digits) in metrics.items()]
    measure = metrics[MEASURE[recipe.task.kind]][0]
    names = list(dict.fromkeys(shift.name for shift in shifts))
    columns += [Column(name, f"{measure}, {name}") for name in names]
    if recipe.task.kind == "classification" and names:
        columns.append(Column(MEAN, f"{measure}, mean of the {len(names)} corruptions"))
    return {column.name: column for column in columns}


def _counted(rows: list[Row]) -> str:
    """What peak memory is, where it is the same for all."""
    kinds = {run.environment.get("device_type") for row in rows for run in row.runs}
    return {"cpu": " (resident set)", "cuda": " (GPU tensors)"}.get(kinds.pop(), "") if len(kinds) == 1 else ""


def _layer_columns(rows: list[Row]) -> dict[str, Column]:
    units = {name: unit for row in rows for layer in row.layers for name, unit in layer.units.items()}
    return {name: Column(name, f"{name} ({unit})", 3) for name, unit in units.items()}


def _choose(chosen: list[str] | None, known: dict[str, Column], rows: list[Row], request: Request) -> list[Column]:
    if chosen is not None:
        for name in chosen:
            if name not in known:
                more = "" if request.severities else "; corruptions and shifts need --robustness"
                raise UserError(f"--columns {name}: no such column; choose from {', '.join(known)}{more}")
        return [known[name] for name in dict.fromkeys(chosen)]
    metrics, shown = METRICS[rows[0].recipe.task.kind]
    left_out = [*list(metrics)[shown:]]
    layers = {name for row in rows for layer in row.layers for name in layer.means} - set(LAYERS)
    return [column for name, column in known.items() if name not in left_out and name not in layers]


def _cells(row: Row, columns: list[Column], shifts: list[Shift], asked: dict[int, Asked]) -> dict[str, Value]:
    sizes = _sizes(row.recipe, row.checkpoints[0]) if {"parameters", "flops"} & {c.name for c in columns} else {}
    same: dict[str, Value] = {"model": row.title, "seeds": len(row.runs), **sizes}
    under = [_under(asked[id(entry)], shifts) for entry in row.checkpoints]
    cells = {}
    for column in columns:
        if column.name in same:
            cells[column.name] = same[column.name]
            continue
        values = [_value(row, number, column.name, under[number]) for number in range(len(row.runs))]
        missing = next((value for value in values if isinstance(value, Missing)), None)
        cells[column.name] = missing or Spread.of(values)
    return cells


def _value(row: Row, number: int, name: str, under: dict[str, float]) -> float | Missing:
    """One number of one run."""
    run, entry = row.runs[number], row.checkpoints[number]
    if name in ("images_per_second", "peak_memory_bytes"):
        value = getattr(run, name)
        return Missing("nothing was logged; telemetry.log_every is larger than the run") if value is None else value
    if name in under:
        return under[name]
    if name in METRICS[run.recipe.task.kind][0]:
        value = entry.manifest["metrics"].get(name)
        return Missing("its last checkpoint was not evaluated") if value is None else value
    layer = row.layers[number]
    if name in layer.means:
        return layer.means[name]
    architecture = run.recipe.model.name
    if layer.why_none is not None:
        return Missing(layer.why_none)
    return Missing(f"{architecture} has no {name}: {layer.reasons.get(name, 'it is of another family of networks')}")


def _under(asked: Asked, shifts: list[Shift]) -> dict[str, float]:
    """Of each shift the mean over its severities, and the mean over all shifts."""
    found: dict[str, list[float]] = {}
    for shift in shifts:
        found.setdefault(shift.name, []).append(asked.under(shift))
    means = {name: sum(values) / len(values) for name, values in found.items()}
    return {**means, MEAN: sum(means.values()) / len(means)} if means else {}


def _sizes(recipe: Recipe, checkpoint: Entry) -> dict[str, int | float]:
    """Of the model as it is evaluated; built without memory."""
    name, arguments = checkpoint.manifest["model"]["name"], arguments_of(checkpoint.manifest)
    with torch.device("meta"):
        model = create_model(name, **arguments).eval()
    return {
        "parameters": sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
        "flops": count_flops(model, _image(recipe, checkpoint), restores=is_restorer(name)),
    }


def _image(recipe: Recipe, checkpoint: Entry) -> tuple[int, int, int]:
    """(C, H, W) of an image whose FLOPs are counted: as evaluated; of restoration a training patch."""
    if recipe.task.kind == "restoration":
        return color_channels(recipe), recipe.data.patch, recipe.data.patch
    size = recipe.data.eval_transform.size
    return len(checkpoint.manifest["dataset"]["mean"]), size, size


def _notes(rows: list[Row], columns: list[Column], shifts: list[Shift], request: Request) -> list[str]:
    """What the numbers are, of those that are shown."""
    shown, recipe = {column.name for column in columns}, rows[0].recipe
    seeds = sorted({len(row.runs) for row in rows})
    notes = [_note_on_seeds(seeds), _note_on_quality(rows, request)]
    if "flops" in shown:
        images = {row.title: "x".join(map(str, _image(row.recipe, row.checkpoints[0]))) for row in rows}
        notes.append(f"FLOPs of a forward pass, a multiply-add counts as two; an image is {_each(images)}.")
    if {"images_per_second", "peak_memory_bytes"} & shown:
        notes.append(_note_on_machines(rows, shown))
    if shifts:
        notes.append(_note_on_shifts(recipe, shifts))
    if any(row.layers for row in rows):
        where = "their central 96 x 96 pixels, " if recipe.task.kind == "restoration" else ""
        notes.append(
            f"White-box measures: last layer, {request.probe} pictures of the split or all it has, {where}in fp32; the "
            f"names are those of crate_graph/analysis/layers.py."
        )
    return [note for note in notes if note]


def _note_on_seeds(seeds: list[int]) -> str:
    if seeds == [1]:
        return "One seed each: no deviation is known."
    over = f"{seeds[0]} seeds" if len(seeds) == 1 else "the seeds; of one seed, the value alone"
    return f"Mean ± sample standard deviation over {over}."


def _note_on_quality(rows: list[Row], request: Request) -> str:
    recipe = rows[0].recipe
    where = f"{_dataset(rows[0].checkpoints[0])}, split {recipe.data.eval_split}"
    steps = {row.title: _span([entry.step for entry in row.checkpoints]) for row in rows}
    if request.checkpoint == "last":
        return f"Quality on {where}, at the last step: {_each(steps)}."
    metrics = {row.title: row.recipe.evaluation.metric for row in rows}
    return (
        f"Quality on {where}, of each run's best kept checkpoint by {_each(metrics)} on that very split, which flatters "
        f"a little; step {_each(steps)}."
    )


def _note_on_machines(rows: list[Row], shown: set[str]) -> str:
    machines = {row.title: _span(map(_machine, row.runs)) for row in rows}
    what = []
    if "images_per_second" in shown:
        what.append("Training rate: median of the logged intervals after the first.")
    if "peak_memory_bytes" in shown:
        what.append("Peak memory: of the main process; on a CPU all that is resident, on a GPU its tensors.")
    return " ".join([*what, f"Trained on {_each(machines)}."])


def _machine(run: TrainedRun) -> str:
    said = run.environment
    world, threads = said.get("world_size", "?"), said.get("cpu_threads", "?")
    return f"{world} x {said.get('device', 'an unknown device')} ({threads} thread{'' if threads == 1 else 's'} each)"


def _note_on_shifts(recipe: Recipe, shifts: list[Shift]) -> str:
    severities = _span(shift.severity for shift in shifts if shift.severity is not None)
    if recipe.task.kind == "classification":
        side = recipe.data.eval_transform.size
        constants: dict[str, list[str]] = {}
        for shift in shifts:
            constants.setdefault(shift.name, []).append(f"{shift.corruption.constant(side):g}")
        each = ", ".join(f"{name} {' '.join(values)}" for name, values in constants.items())
        return (
            f"Corruptions as of arXiv 1903.12261, severity {severities}, after the evaluation's own view of {side} pixels: "
            f"{each}; see crate_graph/evaluation/corruptions.py."
        )
    said = {
        "noise": f"noise: Gaussian, sigma {_span(f'{s.sigma:g}' for s in shifts if s.sigma is not None)} of 255",
        "mask_shift": f"mask_shift: {_moved(recipe)}",
    }
    return "; ".join(said[name] for name in dict.fromkeys(shift.name for shift in shifts)) + "."


def _moved(recipe: Recipe) -> str:
    if recipe.task.kind == "masked_autoencoding":
        return f"{(1 + recipe.task.mask_ratio) / 2:.4g} of the patches hidden, where training hid {recipe.task.mask_ratio:g}"
    if recipe.data.degradation.kind == "random":
        return f"half as many known pixels, {recipe.data.degradation.keep / 2:g} of all"
    return "the mask one column to the left"


def _span(values: Iterable[Any]) -> str:
    return ", ".join(dict.fromkeys(map(str, values)))


def _each(by_title: dict[str, str]) -> str:
    """Once, where it is the same for all rows."""
    if len(set(by_title.values())) == 1:
        return next(iter(by_title.values()))
    return "; ".join(f"{title}: {value}" for title, value in by_title.items())


if __name__ == "__main__":
    sys.exit(main())
