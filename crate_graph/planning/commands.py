"""`crate-graph plan`: the command line over plan.py, scaling.py and check.py."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

PLAN = """\
Say what a run needs before it starts, on a machine that has none of its GPUs: batch arithmetic, slots and shards of
each reader, memory per GPU by kind, FLOPs, communication, time, checkpoints, and every contradiction with its remedy.
Exit code 2 where the recipe cannot run as asked; with --check 1 where the plan is not borne out on this machine.

example:
  crate-graph plan crate/imagenet1k_base_paper --nodes 4 --gpus-per-node 8 --device h100
  crate-graph plan crate/imagenet1k_base_paper --nodes 4 --gpus-per-node 8 batch.micro_batch=32 data.workers=4
  crate-graph plan crate/imagenet1k_base_paper --scaling --device h200 --output scaling.svg
  crate-graph plan quickstart --check"""

_LARGEST = 1_000_000  # of any count that is asked for
# option -> what it changes, its unit on the command line, how many of the assumption's units that is, help
_ASSUMED = {
    "--utilisation": ("utilisation", 1.0, "share of peak FLOP/s that one product or convolution reaches"),
    "--memory-utilisation": ("memory_utilisation", 1.0, "share of peak memory bandwidth that one operation reaches"),
    "--network-utilisation": ("network_utilisation", 1.0, "share of line rate that a large collective reaches"),
    "--usable-memory": ("usable_memory", 1.0, "share of a GPU's memory that is left for tensors"),
    "--host-us": ("host_seconds", 1e-6, "microseconds that the host takes to start one operation"),
    "--disk-rate": ("disk_rate", 1e9, "GB/s that one process writes to the run folder"),
}


def add_parser(subparsers: Any) -> None:
    """Add the verb `plan` to the command line."""
    plan = subparsers.add_parser(
        "plan",
        help="say what a run needs, and where it cannot run",
        description=PLAN,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    plan.add_argument("recipe", metavar="RECIPE", help="a file, or the name of a shipped recipe")
    plan.add_argument("overrides", nargs="*", metavar="key.path=value", help="a setting of the recipe to change")
    plan.add_argument("--nodes", type=_positive, default=1, metavar="N", help="hosts (1)")
    plan.add_argument("--gpus-per-node", type=_positive, default=8, metavar="G", help="processes of each host (8)")
    plan.add_argument("--device", default="h100", metavar="NAME", help="b200, h200, h100, a100-80g, l40s, ... (h100)")
    plan.add_argument(
        "--network",
        metavar="NAME",
        help="among hosts: ndr, hdr, efa, efa-p4d, 100gbe, 25gbe, 10gbe (that of the device)",
    )
    plan.add_argument("--samples", type=_positive, metavar="N", help="of the training split, where it is not known")
    plan.add_argument("--shards", type=_positive, metavar="N", help="of the training split, where it is not known")
    plan.add_argument(
        "--scaling",
        choices=("fixed", "growing"),
        nargs="?",
        const="fixed",
        help="tabulate 8 to 4,096 GPUs: at the recipe's global batch (fixed), or with a batch that grows with them",
    )
    plan.add_argument("--output", type=Path, metavar="FILE", help="with --scaling: also draw it, as .svg or .html")
    plan.add_argument(
        "--check",
        action="store_true",
        help="predict for this machine, then measure on it: one process and two over gloo",
    )
    plan.add_argument(
        "--check-batch", type=_positive, default=8, metavar="N", help="with --check: samples per process (8)"
    )
    assumed = plan.add_argument_group("assumptions")
    for option, (name, _, what) in _ASSUMED.items():
        kind = _share if option.endswith("utilisation") else _rate
        assumed.add_argument(option, type=kind, dest=name, metavar="X", help=what)
    plan.add_argument("--json", action="store_true", help="print the result as JSON: bytes and seconds")
    plan.set_defaults(run=_plan)


def _plan(args: argparse.Namespace) -> int:
    from crate_graph.config import load_recipe
    from crate_graph.errors import UserError

    if args.output is not None and not args.scaling:
        raise UserError("--output draws the table of --scaling; add --scaling, or redirect the plan into a file")
    if args.check and args.scaling:
        raise UserError("--check measures on this machine and --scaling plans for many; choose one of them")
    recipe = load_recipe(args.recipe, args.overrides)
    if args.check:
        return _check(args, recipe)
    cluster = _cluster(args)
    if args.scaling:
        return _scaling(args, recipe, cluster)
    from crate_graph.planning.plan import make_plan
    from crate_graph.planning.report import as_json, as_text

    plan = make_plan(recipe, cluster, samples=args.samples, shards=args.shards)
    print(json.dumps(as_json(plan), indent=2) if args.json else as_text(plan))
    return 0 if plan.runs else 2


def _scaling(args: argparse.Namespace, recipe: Any, cluster: Any) -> int:
    from crate_graph.planning.picture import write_picture
    from crate_graph.planning.report import as_json, as_text
    from crate_graph.planning.scaling import scaling_plan

    plan = scaling_plan(recipe, cluster, grows=args.scaling == "growing", samples=args.samples, shards=args.shards)
    if args.output is not None:
        write_picture(plan, args.output)
    print(json.dumps(as_json(plan), indent=2) if args.json else as_text(plan))
    return 0 if plan.runs else 2


def _check(args: argparse.Namespace, recipe: Any) -> int:
    from crate_graph.planning.check import check
    from crate_graph.planning.report import as_json, as_text

    print("predicting and measuring on this machine, which takes a minute or more", file=sys.stderr)
    plan = check(recipe, args.check_batch)
    print(json.dumps(as_json(plan), indent=2) if args.json else as_text(plan))
    return 0 if plan.runs else 1


def _cluster(args: argparse.Namespace) -> Any:
    from crate_graph.errors import UserError
    from crate_graph.planning.hardware import Assumptions, find_device, find_network
    from crate_graph.planning.traffic import Cluster

    if (processes := args.nodes * args.gpus_per_node) > _LARGEST:
        raise UserError(
            f"--nodes {args.nodes} of --gpus-per-node {args.gpus_per_node} are {processes:,} processes; plan for "
            f"{_LARGEST:,} at most"
        )
    device = find_device(args.device)
    network = find_network(args.network or device.network)
    scales = {name: scale for name, scale, _ in _ASSUMED.values()}
    changed = {
        field.name: getattr(args, field.name) * scales[field.name]
        for field in fields(Assumptions)
        if getattr(args, field.name, None) is not None
    }
    return Cluster(args.nodes, args.gpus_per_node, device, network, replace(Assumptions(), **changed))


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= _LARGEST):
        raise argparse.ArgumentTypeError(f"{text!r} should be from 1 to {_LARGEST:,}")
    return int(text)


def _share(text: str) -> float:
    if not 0 < (number := float(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{text} should be over 0 and at most 1")
    return number


def _rate(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} should be a number over 0")
    return number
