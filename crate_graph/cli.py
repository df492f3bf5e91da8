"""The command line: parse, call, report. What a verb does lives in the package that its function imports.

Exit code: 0 on success, 2 on a user's mistake (one line on stderr), 1 on a failure, 130 when interrupted.
"""

from __future__ import annotations

import argparse
import errno
import json
import math
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from crate_graph.config.schema import Recipe
from crate_graph.errors import FULL_DISK, RunFailed, UserError
from crate_graph.redaction import redact

PIPE_CLOSED = 141  # 128 + SIGPIPE, as a shell reports it
INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
# What an OSError says that is no fault of ours, and the remedy.
OF_FILES = {
    **dict.fromkeys(FULL_DISK, "make room and start the same command again"),
    errno.ENAMETOOLONG: "choose a shorter name",
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "make it writable, or choose another place"),
}
SHARED = ("train", "evaluate", "doctor")  # verbs whose work many processes share; others would do it many times over


def program(argv: Sequence[str] | None = None) -> NoReturn:
    """The command `crate-graph`: `main`, and the end of the process with its exit code."""
    sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may be no text
    if not set(SHARED).intersection(sys.argv[1:2]):  # those have their own ways to stop
        signal.signal(signal.SIGTERM, _terminate)
    try:
        try:
            code = main(argv)
        except SystemExit as end:  # of argparse
            code = end.code
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = PIPE_CLOSED
    if _on_rank():
        from crate_graph.cluster.groups import end_process

        end_process(code)
    sys.exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out the command `argv`; the exit code."""
    begun = time.monotonic()
    try:
        args = _parse(argv)
        args.begun = begun
        _refuse_to_be_many(args.verb)
        return args.run(args)
    except SystemExit as end:  # of argparse
        if end.code == 2:
            _ended("mistake", 2)
        raise
    except UserError as error:
        print(f"crate-graph: error: {_on_rank()}{redact(' '.join(str(error).split()))}", file=sys.stderr)
        return _ended("mistake", 2)
    except RunFailed as error:
        print(f"crate-graph: failed: {_on_rank()}{redact(' '.join(str(error).split()))}", file=sys.stderr)
        return _ended("failed", 1)
    except OSError as error:
        if error.errno not in OF_FILES:
            raise
        where = error.filename or "the disk"
        print(f"crate-graph: error: {where}: {error.strerror}; {OF_FILES[error.errno]}", file=sys.stderr)
        return _ended("mistake", 2)
    except KeyboardInterrupt:
        print("crate-graph: interrupted", file=sys.stderr)
        return INTERRUPTED


def _ended(outcome: str, code: int) -> int:
    """The exit code, once the launcher has heard of the outcome."""
    from crate_graph.cluster.journal import note

    note(outcome)
    return code


def _refuse_to_be_many(verb: str) -> None:
    """Raises UserError: several processes were started for what one does."""
    if verb in SHARED:
        return
    from crate_graph.cluster.ranks import discover

    if (world := discover().world) > 1:
        raise UserError(
            f"{verb}: the work of one process, and {world} were started; start it without torchrun, or as one task "
            f"(srun --ntasks=1)"
        )


def _terminate(number: int, frame: object) -> NoReturn:
    """End as an exception does, so that what was begun is removed."""
    sys.exit(128 + number)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    # argparse gives all overrides to the first group of positionals; those after an option are left over
    if rest and (not hasattr(args, "overrides") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}", args.verb)
    if rest:
        args.overrides += rest
    return args


class _Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one line."""

    def error(self, message: str, verb: str = "") -> NoReturn:
        program = f"{self.prog} {verb}".strip()
        self.exit(2, f"crate-graph: error: {redact(' '.join(message.split()))}; see {program} --help\n")


def _parser() -> _Parser:
    from crate_graph.analysis import commands as analysis
    from crate_graph.checkpoint import commands as checkpoint
    from crate_graph.data import commands as shards
    from crate_graph.doctor import commands as doctor
    from crate_graph.planning import commands as planning
    from crate_graph.restore import commands as restore

    parser = _Parser(
        prog="crate-graph",
        description="Train white-box models from one GPU to many nodes, and prove what was trained.",
        epilog="example: crate-graph train quickstart schedule.epochs=2",
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    _add_train(verbs)
    planning.add_parser(verbs)
    _add_evaluate(verbs)
    restore.add_parser(verbs)
    analysis.add_parser(verbs)
    _add_export(verbs)
    shards.add_parser(verbs)
    checkpoint.add_parser(verbs)
    doctor.add_parser(verbs)
    _add_bench(verbs)
    return parser


def _add_train(verbs) -> None:
    train = _add_verb(
        verbs,
        "train",
        "train a model as a recipe says",
        "crate-graph train crate/imagenet1k_tiny_paper --run-dir runs/tiny batch.micro_batch=64. While it runs: "
        "touch RUN/save-now saves; touch RUN/stop-now, Ctrl-C or SIGTERM saves and stops; the same command goes on.",
    )
    train.add_argument("recipe", metavar="RECIPE", help="a file, or the name of a shipped recipe")
    _add_overrides(train)
    train.add_argument(
        "--run-dir", type=Path, metavar="DIR", help="where everything is written (runs/NAME of the recipe)"
    )
    train.add_argument(
        "--resume",
        type=_to_resume,
        default="auto",
        metavar="auto|never|CHECKPOINT",
        help="auto: from the newest checkpoint of the run folder, if there is one (default)",
    )
    train.add_argument(
        "--max-duration",
        type=_seconds,
        metavar="H:MM:SS",
        help="save, stop and exit 0 so long after this start, before an allocation ends; also 90s, 45m, 2h, 1d",
    )
    train.set_defaults(run=_train)


def _to_resume(text: str) -> str:
    """Not nothing, which as a path would be the folder that the command is given in."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r} names no checkpoint; write auto, never, or a checkpoint's folder")
    return text


def _seconds(text: str) -> float:
    """H:MM:SS, or a number with its unit."""
    clock = re.fullmatch(r"([0-9]+):([0-5][0-9]):([0-5][0-9])", text)
    number = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd])", text)
    seconds = 0.0
    if clock:
        hours, minutes, rest = map(float, clock.groups())
        seconds = 3600 * hours + 60 * minutes + rest
    elif number:
        seconds = float(number[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[number[2]]
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration; write 3:50:00, 90s, 45m, 2h or 1d")
    return seconds


def _train(args: argparse.Namespace) -> int:
    from crate_graph.config import load_recipe

    recipe = load_recipe(args.recipe, args.overrides)
    from crate_graph.train.run import train

    left = args.max_duration and args.max_duration - (time.monotonic() - args.begun)
    summary = train(recipe, args.run_dir or Path("runs") / recipe.name, args.resume, left, args.begun)
    _report(summary, args.json)
    if summary["finished"] and not args.json:
        _say_what_next(summary["run_dir"], recipe)
    return 0


def _say_what_next(run_dir: str, recipe: Recipe) -> None:
    from crate_graph.cluster.ranks import discover
    from crate_graph.export.restorer import words_to_try

    if discover().rank != 0:
        return
    here, name = Path(sys.executable).parent, Path(run_dir).name
    commands = [["crate-graph", "evaluate", run_dir, "--data", redact(recipe.data.dataset)]]
    if recipe.task.kind == "restoration":
        trial = ["YOUR_PHOTO.png", *words_to_try(recipe.data.degradation), "--compare", "--output", "restored"]
        commands += [["crate-graph", "restore", run_dir, *trial]]
        commands += [["crate-graph", "export", run_dir, "--format", "safetensors", "--output", f"{name}.safetensors"]]
    elif recipe.task.kind == "masked_autoencoding":
        commands[0] += ["--pictures", f"{name}.png"]
    else:
        commands += [["crate-graph", "export", run_dir, "--format", "timm", "--output", f"exported/{name}"]]
    commands += [["crate-graph", "analyze", run_dir, "--output", f"analysis/{name}"]]
    commands += [["tensorboard", "--logdir", f"{run_dir}/tensorboard"]]
    print("\nWorth trying next:")
    for program, *words in commands:
        print(f"  {shlex.join([str(here / program), *words])}")


def _add_evaluate(verbs) -> None:
    evaluate = _add_verb(
        verbs,
        "evaluate",
        "measure a checkpoint, shipped weights or a classical method on a data set",
        "crate-graph evaluate runs/quickstart --data fashion_mnist --json; of photographs: crate-graph evaluate "
        "ugtv_fast_demosaicking --data FOLDER, bilinear, malvar2004 and menon2007 with pip install "
        "'crate-graph[restoration]'",
    )
    evaluate.add_argument(
        "subject",
        metavar="CHECKPOINT|NAME",
        help="a checkpoint, a run folder for its newest one, or shipped or exported weights of a restoration network, "
        "or a method without training: bilinear, malvar2004, menon2007 (demosaicking), bicubic, bicubic_misaligned (x2 "
        "interpolation), iglr, igtv",
    )
    _add_overrides(evaluate)
    evaluate.add_argument(
        "--data",
        required=True,
        metavar="DATASET",
        help="a shipped name, a folder or an address (https://, s3://, hf://, pipe:) with dataset.yaml, or for "
        "restoration any folder of pictures",
    )
    evaluate.add_argument(
        "--tile", type=int, metavar="N", help="restore pictures that do not fit in memory in tiles of N x N pixels"
    )
    evaluate.add_argument(
        "--pictures",
        type=Path,
        metavar="FILE.png",
        help="of a masked autoencoder: write what it sees of the first images, its completions and the originals",
    )
    evaluate.set_defaults(run=_evaluate)


def _evaluate(args: argparse.Namespace) -> int:
    from crate_graph.evaluation.run import evaluate

    return _report(evaluate(args.subject, args.data, args.overrides, args.tile, args.pictures), args.json)


def _add_export(verbs) -> None:
    export = _add_verb(
        verbs,
        "export",
        "write a checkpoint for another library, and check that it computes the same",
        "crate-graph export runs/quickstart --format onnx --output quickstart.onnx",
    )
    export.add_argument("checkpoint", metavar="CHECKPOINT", help="a checkpoint, or a run folder for its newest one")
    export.add_argument("--format", required=True, choices=("timm", "hf", "safetensors", "onnx"))
    export.add_argument(
        "--output", required=True, type=Path, metavar="PATH", help="a folder or file that does not exist"
    )
    export.set_defaults(run=_export)


def _export(args: argparse.Namespace) -> int:
    from crate_graph.export import export

    return _report(export(args.checkpoint, args.format, args.output), args.json)


def _add_bench(verbs) -> None:
    bench = _add_verb(verbs, "bench", "time one way of computing beside another", "crate-graph bench ops")
    bench.add_argument(
        "name",
        metavar="NAME",
        choices=("ops", "checkpointing", "graph", "whitebox"),
        help="ops: fast operators beside their references; checkpointing: memory and time of each mode; graph: graph "
        "networks beside the plain reference; whitebox: telemetry.whitebox beside steps of training",
    )
    bench.set_defaults(run=_bench)


def _bench(args: argparse.Namespace) -> int:
    from crate_graph.models import bench as checkpointing
    from crate_graph.models import bench_graph as graph
    from crate_graph.ops import bench as ops
    from crate_graph.train import bench_white_box as whitebox

    benches = {"ops": ops, "checkpointing": checkpointing, "graph": graph, "whitebox": whitebox}
    return _report(benches[args.name].run(), args.json)


def _add_verb(verbs, name: str, what: str, example: str) -> argparse.ArgumentParser:
    verb = verbs.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.", epilog=f"example: {example}")
    verb.add_argument("--json", action="store_true", help="print the result as JSON")
    return verb


def _add_overrides(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("overrides", nargs="*", metavar="key.path=value", help="a setting of the recipe to change")


def _report(result: dict[str, Any] | list[dict[str, Any]], as_json: bool) -> int:
    """Prints a result once, however many processes there are."""
    from crate_graph.cluster.ranks import discover

    if discover().rank == 0:
        print(json.dumps(result, indent=2, default=str) if as_json else _as_text(result))
    return 0


def _as_text(result: dict[str, Any] | list[dict[str, Any]]) -> str:
    """A dict as one `key  value` line each, rows as a table with a head."""
    if isinstance(result, dict):
        table = [[key, _cell(value)] for key, value in result.items()]
    else:
        head = list(result[0]) if result else []
        table = [head, *([_cell(row.get(key)) for key in head] for row in result)]
    widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table)
    return "\n".join(line.rstrip() for line in lines)


def _cell(value: Any) -> str:
    if value == {}:
        return "not measured"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_cell(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(_cell, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _on_rank() -> str:
    """`rank 3: ` where there is more than one process, since each reports its own mistake."""
    from crate_graph.cluster.ranks import discover

    try:
        ranks = discover()
    except UserError:
        return ""
    return f"rank {ranks.rank}: " if ranks.world > 1 else ""
