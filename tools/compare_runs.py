"""Run folders of crate-graph train side by side, as one table in Markdown, CSV and LaTeX.

    .venv/bin/python tools/compare_runs.py runs/crate-0 runs/crate-1 ViT=runs/vit-0 ViT=runs/vit-1
    .venv/bin/python tools/compare_runs.py runs/* --robustness --severity 1,3,5 --output comparison

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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from checkpoint_measures import Asked, Memory, write_output
from compared_notes import caption_of, notes_on
from compared_rows import Row, Sample, check_same_data, read_rows
from table_writing import Column, Missing, Spread, Table, Value, csv_text, latex, markdown

from crate_graph.analysis.panels import named
from crate_graph.checkpoint.model import arguments_of
from crate_graph.errors import RunFailed, UserError
from crate_graph.evaluation.corruptions import SEVERITIES
from crate_graph.evaluation.shifts import MEASURE, Shift, shifts_for
from crate_graph.models import create_model
from crate_graph.models.restorers import is_restorer
from crate_graph.train.flops import count_flops

FORMATS = {"markdown": ("md", markdown), "csv": ("csv", csv_text), "latex": ("tex", latex)}
MEMORY = "measured.json"

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
MEAN = "corruptions"  # over the corruptions of a classifier


@dataclass(frozen=True)
class Request:
    """What is asked beside the runs; see --help."""

    columns: Sequence[str] | None = None
    checkpoint: str = "best"
    probe: int = 32  # samples; 0: no white-box measures
    severities: Sequence[int] = ()  # none: no robustness
    unfinished: bool = False
    memory: Path | None = None


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
                write_output(file := args.output / f"comparison.{FORMATS[name][0]}", text)
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
    add(
        "--severity",
        type=_severities,
        default=[3],
        metavar="S,S,...",
        help="of those, from 1 to 5; the mean counts (3)",
    )
    add("--unfinished", action="store_true", help="take runs that have not reached their end, too")
    return parser


def _natural(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 on")
    return int(text)


def _severities(text: str) -> list[int]:
    numbers = [int(part) for part in text.split(",") if part.isdigit()]
    if not numbers or not set(numbers) <= set(SEVERITIES) or len(numbers) < len(text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} are no whole numbers from 1 to 5, as 3 or 1,3,5")
    return sorted(set(numbers))


def compare(runs: Sequence[str], request: Request) -> Table:
    """The table of these run folders, each as RUN or TITLE=RUN.

    Raises:
        UserError: a folder that cannot be read, or not be compared with the others; an unknown column.
    """
    memory = Memory(request.memory)
    rows = read_rows(runs, memory, checkpoint=request.checkpoint, unfinished=request.unfinished)
    _check_outside(request.memory, rows)
    shifts = shifts_for(rows[0].recipe, request.severities) if request.severities else []
    known = _columns(rows, shifts)
    others = [] if request.columns is None else [name for name in request.columns if name not in known]
    look = request.probe > 0 and (request.columns is None or bool(others))
    if look or shifts:
        check_same_data(rows)
    if look:
        known |= _look(rows, request.probe)
    columns = _choose(known, rows, request)
    shown = [column.name for column in columns]
    wanted = [shift for shift in shifts if shift.name in shown or MEAN in shown]
    cells = [_cells(row, columns, wanted) for row in rows]
    return Table(columns, cells, notes_on(rows, shown, wanted, request.checkpoint, request.probe), caption_of(rows))


def _check_outside(memory: Path | None, rows: list[Row]) -> None:
    for run in (sample.run for row in rows for sample in row.samples if memory is not None):
        if memory.resolve().is_relative_to(run.path.resolve()):
            raise UserError(f"--output {memory.parent}: lies in {run.path}, and a run stays as it is; choose another")


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
    kinds = {sample.run.environment.get("device_type") for row in rows for sample in row.samples}
    return {"cpu": " (resident set)", "cuda": " (GPU tensors)"}.get(kinds.pop(), "") if len(kinds) == 1 else ""


def _look(rows: list[Row], samples: int) -> dict[str, Column]:
    """Measure the last layers; their columns."""
    columns: dict[str, Column] = {}
    for sample in (sample for row in rows for sample in row.samples):
        sample.layer = sample.asked.last_layer(samples)
        heads = {name: f"{name} ({unit})" for name, unit in sample.layer.units.items()}
        heads |= {panel.measure: f"{panel.title} ({panel.unit})" for panel in named(heads)}
        columns |= {name: Column(name, head, 3) for name, head in heads.items()}
    return columns


def _choose(known: dict[str, Column], rows: list[Row], request: Request) -> list[Column]:
    if request.columns is None:
        metrics, shown = METRICS[rows[0].recipe.task.kind]
        measures = {name for row in rows for each in row.samples if each.layer for name in each.layer.means}
        left_out = {*list(metrics)[shown:], *measures.difference(LAYERS)}
        return [column for name, column in known.items() if name not in left_out]
    for name in request.columns:
        if name not in known:
            more = "" if request.severities else "; those of corruptions and shifts need --robustness"
            raise UserError(f"--columns {name}: no such column; choose from {', '.join(known)}{more}")
    return [known[name] for name in dict.fromkeys(["model", *request.columns])]


def _cells(row: Row, columns: list[Column], shifts: list[Shift]) -> dict[str, Value]:
    names = [column.name for column in columns]
    same: dict[str, Value] = {"model": row.title, "seeds": len(row.samples)}
    if {"parameters", "flops"} & set(names):
        same |= _sizes(row)
    samples = [(sample, _under(sample.asked, shifts)) for sample in row.samples]
    return {name: same[name] if name in same else _spread([_value(*pair, name) for pair in samples]) for name in names}


def _spread(values: list[float | Missing]) -> Spread | Missing:
    missing = next((value for value in values if isinstance(value, Missing)), None)
    return missing or Spread.of(values)


def _value(sample: Sample, under: dict[str, float], name: str) -> float | Missing:
    """One number of one run."""
    run = sample.run
    if name in ("images_per_second", "peak_memory_bytes"):
        value = getattr(run, name)
        return Missing("nothing was logged: telemetry.log_every is more than the steps") if value is None else value
    if name in under:
        return under[name]
    if name in METRICS[run.recipe.task.kind][0]:
        value = sample.checkpoint.manifest["metrics"].get(name)
        return Missing("the checkpoint was not evaluated") if value is None else value
    if name in sample.layer.means:
        return sample.layer.means[name]
    if sample.layer.why_none is not None:
        return Missing(sample.layer.why_none)
    why = sample.layer.reasons.get(name, "it is a measure of another family of networks")
    return Missing(f"{run.recipe.model.name} has no {_title(name)}: {why}")


def _title(measure: str) -> str:
    """As the reports name it, or its own name where they do not show it."""
    return next((panel.title for panel in named((measure,))), measure)


def _under(asked: Asked, shifts: list[Shift]) -> dict[str, float]:
    """Of each shift the mean over its severities, and the mean over all shifts."""
    found: dict[str, list[float]] = {}
    for shift in shifts:
        found.setdefault(shift.name, []).append(asked.under(shift))
    means = {name: sum(values) / len(values) for name, values in found.items()}
    return {**means, MEAN: sum(means.values()) / len(means)} if means else {}


def _sizes(row: Row) -> dict[str, int | float]:
    """Of the model as it is evaluated; built without memory."""
    manifest = row.samples[0].checkpoint.manifest
    name = manifest["model"]["name"]
    with torch.device("meta"):
        model = create_model(name, **arguments_of(manifest)).eval()
    return {
        "parameters": sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
        "flops": count_flops(model, row.image, restores=is_restorer(name)),
    }


if __name__ == "__main__":
    sys.exit(main())
