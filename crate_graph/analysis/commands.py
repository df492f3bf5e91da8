"""`crate-graph analyze`: the command line over run.py."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from crate_graph.paths import expanded

ANALYZE = """\
Show what the layers of a trained model do: one HTML page with figures, and each figure with its numbers beside it.

example:
  crate-graph analyze runs/quickstart --output analysis
  crate-graph analyze runs/crate --compare runs/vit --size 448 --layer 11 --images photos --output analysis
  crate-graph analyze ugtv_fast_demosaicking --output analysis

CHECKPOINT is a run folder, a checkpoint, what crate-graph export wrote as timm, hf or safetensors, published weights of
CRATE, CRATE-alpha, CRATE-MAE or ToST (a .pth or .safetensors file), or the name of shipped weights. Needs
pip install 'crate-graph[analysis]'.

A folder of pictures may hold masks of what is in front, NAME.mask.png beside NAME.jpg, or masks/NAME.png: 0 is
background. Then segmentations are judged by them."""


def add_parser(subparsers: Any) -> None:
    """Add the verb `analyze` to the command line."""
    analyze = subparsers.add_parser(
        "analyze",
        help="show what the layers of a trained model do",
        description=ANALYZE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    analyze.add_argument("checkpoint", metavar="CHECKPOINT|NAME")
    analyze.add_argument("--output", required=True, type=_folder, metavar="DIR", help="folder of the report")
    analyze.add_argument("--images", metavar="FOLDER", help="pictures to show it (the evaluation split of its recipe)")
    analyze.add_argument("--samples", type=_count, default=32, metavar="N", help="measure over so many pictures (32)")
    analyze.add_argument("--show", type=_count, default=4, metavar="N", help="draw maps of so many pictures (4)")
    analyze.add_argument(
        "--layer",
        type=_count,
        metavar="N",
        help="of the maps, from 1 (CRATE: the last but one; a ViT and ToST: the last)",
    )
    finer = analyze.add_mutually_exclusive_group()
    finer.add_argument(
        "--size", type=_count, metavar="PIXELS", help="side of the pictures in maps; position embeddings are resized"
    )
    finer.add_argument(
        "--patch",
        type=_count,
        metavar="PIXELS",
        help="finer maps: enlarge the pictures so far that a patch covers so many of their pixels",
    )
    analyze.add_argument("--compare", metavar="CHECKPOINT", help="a second model for the same task, beside it")
    analyze.add_argument("--force", action="store_true", help="replace a report that is there")
    analyze.add_argument("--json", action="store_true", help="print where things are, and the last layer, as JSON")
    analyze.set_defaults(run=_analyze)


def _folder(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("name a folder")
    return expanded(text)


def _count(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 1 or more")
    return number


def _analyze(args: argparse.Namespace) -> int:
    from crate_graph.analysis.run import Request, analyze

    asked = ("images", "samples", "show", "layer", "size", "patch", "compare", "force")
    result = analyze(args.checkpoint, args.output, Request(**{key: getattr(args, key) for key in asked}))
    if args.json:
        print(json.dumps(result, indent=2))
        return 0
    print(f"{result['report']}  {len(result['figures'])} figures of {result['model']}")
    for line in _last_layer(result):
        print(line)
    return 0


def _last_layer(result: dict[str, Any]) -> Iterator[str]:
    """The numbers of the last layer as a table, by the names of the report; those that no curve shows are left out."""
    from crate_graph.analysis.panels import named

    trained, random, compared = result["last_layer"], result["random_weights"], result["compared"]
    columns = [trained, random["last_layer"]]
    heads = ["trained", random["start"]]
    if compared is not None:
        columns.append(compared["last_layer"])
        heads.append(f"{compared['model']}, to compare")
    nothing = _LOWERED if random["nothing_to_lower"] else ()
    rows = [("in the last layer", *heads, "")]
    for panel in named(set().union(*columns)):
        numbers = [_number(column.get(panel.measure)) for column in columns]
        if panel.measure in nothing:
            numbers[1] = _NONE
        rows.append((panel.title, *numbers, panel.unit))
    widths = [max(len(row[column]) for row in rows) for column in range(len(columns) + 1)]
    for name, *numbers, unit in rows:
        aligned = [f"{number:>{width}}" for number, width in zip(numbers, widths[1:], strict=True)]
        yield "  ".join([f"  {name:<{widths[0]}}", *aligned, unit]).rstrip()
    if nothing:
        yield f"  {_NONE}: {random['nothing_to_lower'][0].lower()}{random['nothing_to_lower'][1:]}"


_NONE = "-"
_LOWERED = ("gtv", "system_residual")  # the objective and its equations


def _number(last: dict[str, Any] | None) -> str:
    if last is None:
        return _NONE
    return f"{last['mean']:.4g}" + (f" ± {last['std']:.2g}" if last["std"] else "")
