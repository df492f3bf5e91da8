"""The words of `crate-graph doctor`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

EXAMPLE = (
    "crate-graph doctor quickstart; on two processes: torchrun --nproc-per-node 2 -m crate_graph doctor quickstart"
)


def add_parser(verbs) -> None:
    doctor = verbs.add_parser(
        "doctor",
        help="examine this host, or all hosts of a launch, before a run",
        description="Examine versions, devices, network, disk, memory and limits of every host, the network between "
        "them, and with a recipe its batches and shards. Exit code 1 where a check failed.",
        epilog=f"example: {EXAMPLE}",
    )
    doctor.add_argument("recipe", nargs="?", metavar="RECIPE", help="a file, or the name of a shipped recipe")
    doctor.add_argument("overrides", nargs="*", metavar="key.path=value", help="a setting of the recipe to change")
    doctor.add_argument("--run-dir", type=Path, metavar="DIR", help="the run folder that is to be (runs/NAME)")
    doctor.add_argument("--json", action="store_true", help="print the findings as JSON")
    doctor.set_defaults(run=_doctor)


def _doctor(args: argparse.Namespace) -> int:
    from crate_graph.config import load_recipe

    recipe = load_recipe(args.recipe, args.overrides) if args.recipe is not None else None
    from crate_graph.cluster.ranks import discover
    from crate_graph.doctor.report import as_json, as_table
    from crate_graph.doctor.run import examine

    is_main = discover().is_main

    def say(text: str) -> None:
        if is_main and not args.json:
            print(text, file=sys.stderr, flush=True)

    checks = examine(recipe, args.run_dir, say)
    if is_main:
        print(as_json(checks) if args.json else as_table(checks))
    return int(any(check.status == "failed" for check in checks))
