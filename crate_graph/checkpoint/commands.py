"""The verb `checkpoint`: list, verify, prune, convert."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from crate_graph.errors import UserError


def add_parser(verbs: Any) -> None:
    """Add `checkpoint` to the verbs of the command line."""
    parser = verbs.add_parser(
        "checkpoint",
        help="list, verify, prune or convert checkpoints",
        description="List, verify, prune or convert checkpoints.",
        epilog="example: crate-graph checkpoint verify runs/quickstart",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    listing = _command(commands, "list", "show the checkpoints of a run", "crate-graph checkpoint list runs/quickstart")
    listing.add_argument("run_dir", metavar="RUN", type=Path)
    listing.set_defaults(run_command=_list, run=_run)

    verify = _command(
        commands,
        "verify",
        "check every file of one checkpoint, or of all of a run",
        "crate-graph checkpoint verify runs/quickstart",
    )
    verify.add_argument("path", metavar="RUN|CHECKPOINT", type=Path)
    verify.set_defaults(run_command=_verify, run=_run)

    prune = _command(
        commands,
        "prune",
        "delete checkpoints that nobody needs",
        "crate-graph checkpoint prune runs/quickstart --keep-last 1",
    )
    prune.add_argument("run_dir", metavar="RUN", type=Path)
    prune.add_argument("--keep-last", type=int, default=1, metavar="N", help="the newest N stay (1)")
    prune.add_argument("--keep-best", type=int, default=1, metavar="N", help="the best N stay (1)")
    prune.add_argument(
        "--metric",
        choices=("top1", "top5", "loss", "psnr", "ssim"),
        help="what best means: top1, top5, loss, psnr or ssim (top1; for restoration and masked autoencoding psnr)",
    )
    prune.set_defaults(run_command=_prune, run=_run)

    convert = _command(
        commands,
        "convert",
        "write the weights of a checkpoint of CRATE or a relative under the published names, or read published weights",
        "crate-graph checkpoint convert runs/tiny published.safetensors --to published",
    )
    convert.add_argument("source", metavar="CHECKPOINT|FILE")
    convert.add_argument("output", metavar="OUTPUT", type=Path, help="a .safetensors file that does not exist")
    convert.add_argument(
        "--to", choices=("published", "crate-graph"), required=True, help="whose parameter names to write"
    )
    convert.set_defaults(run_command=_convert, run=_run)


def _command(commands: Any, name: str, what: str, example: str) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name, help=what, description=f"{what[0].upper()}{what[1:]}.", epilog=f"example: {example}"
    )
    command.add_argument("--json", action="store_true", help="print the result as JSON")
    return command


def _run(args: argparse.Namespace) -> int:
    rows = args.run_command(args)
    if args.json:
        print(json.dumps(rows, indent=1))
    else:
        for row in rows:
            print("  ".join(value if isinstance(value, str) else _named(name, value) for name, value in row.items()))
    return 2 if any(row.get("state") == "damaged" for row in rows) else 0


def _named(name: str, value: Any) -> str:
    """A number with what it counts, and metrics one by one."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {each}" for key, each in value.items()) or "not evaluated"
    return f"step {value:,}" if name == "step" else f"{value:,} {name}"


def _list(args: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for entry in _entries(args.run_dir):
        size = sum(file["bytes"] for file in entry.manifest["files"].values())
        metrics = {name: round(value, 4) for name, value in entry.manifest["metrics"].items()}
        rows.append({"checkpoint": str(entry.path), "step": entry.step, "bytes": size, "metrics": metrics})
    return rows


def _verify(args: argparse.Namespace) -> list[dict[str, Any]]:
    """All are looked at, whatever is wrong with the first."""
    from crate_graph.checkpoint.manifest import MANIFEST, verify
    from crate_graph.checkpoint.store import CheckpointStore

    folders = [args.path]
    if not (args.path / MANIFEST).is_file():
        folders = [folder for _, folder in CheckpointStore(args.path / "checkpoints").folders(whole=False)]
    if not folders:
        raise _no_checkpoint(args.path)
    rows = []
    for folder in folders:
        row = {"checkpoint": str(folder)}
        try:
            row |= {"files": len(verify(folder)["files"]), "state": "good"}
        except UserError as error:
            row |= {"state": "damaged", "why": str(error)}
        rows.append(row)
    return rows


def _prune(args: argparse.Namespace) -> list[dict[str, Any]]:
    from crate_graph.checkpoint.manifest import task_of
    from crate_graph.checkpoint.store import CheckpointStore
    from crate_graph.config.schema import Checkpoint as Retention

    if args.keep_last < 1 or args.keep_best < 0:
        raise UserError("--keep-last must be 1 or more and --keep-best 0 or more; a run needs its newest checkpoint")
    newest = _entries(args.run_dir)[-1]
    usual = "top1" if task_of(newest.manifest)["kind"] == "classification" else "psnr"
    retention = Retention(keep_last=args.keep_last, keep_best=args.keep_best)
    deleted = CheckpointStore(args.run_dir / "checkpoints").prune(retention, args.metric or usual)
    return [{"checkpoint": str(path), "state": "deleted"} for path in deleted]


def _convert(args: argparse.Namespace) -> list[dict[str, Any]]:
    from safetensors.torch import save

    from crate_graph.checkpoint.initial import read_origin
    from crate_graph.models.published import from_published, to_published
    from crate_graph.whole_files import write_whole

    if args.output.exists():
        raise UserError(f"{args.output}: exists already; name another output")
    origin = read_origin(args.source)
    converted = (to_published if args.to == "published" else from_published)(origin.weights)
    try:
        write_whole(args.output, save(converted, metadata=_told_beside(origin)))
    except OSError as error:
        raise UserError(
            f"{args.output}: cannot be written ({error.strerror}); choose another output, or make room"
        ) from None
    return [{"output": str(args.output), "tensors": len(converted), "names": args.to}]


def _told_beside(origin: Any) -> dict[str, str]:
    """What names and shapes of published weights do not tell, as `analyze` reads it in a file's metadata."""
    import torch

    from crate_graph.models import create_model
    from crate_graph.models.published_names import family_of
    from crate_graph.models.published_sizes import TOLD, told_beside

    told = {key: origin.metadata[key] for key in TOLD if key in origin.metadata}
    if family_of(origin.weights) is not None and origin.architecture and origin.arguments is not None:
        arguments = {key: value for key, value in origin.arguments.items() if key != "pretrained"}
        with torch.device("meta"):
            told |= told_beside(create_model(origin.architecture, **arguments))
    known = {"classes": origin.classes, "mean": origin.mean, "std": origin.std}
    return told | {key: json.dumps(list(values)) for key, values in known.items() if values}


def _entries(run: Path) -> list[Any]:
    from crate_graph.checkpoint.store import CheckpointStore

    entries = CheckpointStore(run / "checkpoints").entries()
    if not entries:
        raise _no_checkpoint(run)
    return entries


def _no_checkpoint(run: Path) -> UserError:
    if (run / "recipe.yaml").is_file():
        return UserError(f"{run}: holds no checkpoint yet; touch {run / 'save-now'} asks a run that trains for one")
    return UserError(f"{run}: holds no checkpoint; name the folder of a run")
