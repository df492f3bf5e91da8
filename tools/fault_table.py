"""Tries faults on real runs of two processes and prints, as a table, what came of each.

    .venv/bin/python tools/fault_table.py                        # all of it: some minutes
    .venv/bin/python tools/fault_table.py --only kills --kills 6 # one row
    .venv/bin/python tools/fault_table.py --work DIR             # keeps the runs, with what they said in DIR/logs

Each run is compared with one that nobody disturbed: every step trained exactly once, every loss equal in every bit,
and so are weights, optimizer and average of the last checkpoint. A row that does not survive says FAILED, and the exit
code is 1. `disk_full` needs root, since it mounts a small disk; `s3` needs the test extras. What cannot run says why.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from signal import SIGINT, SIGTERM
from signal import signal as set_handler

from fault_lab import Lab, Trial
from faults.asked_to_stop import second_signal, signals
from faults.disk import disk_full
from faults.files import flipped_checkpoint, truncated_shard
from faults.killed import kills, loader_workers
from faults.not_finite import not_finite_given_up, not_finite_rolled_back, not_finite_skipped
from faults.remote import http, s3
from faults.samples import damaged_samples, flipped_bits, flipped_labels
from faults.slow import slow_rank, standing_still
from faults.undisturbed import torchrun
from proof_runs import Skipped

ROWS: dict[str, Callable[[Trial], tuple[str, str]]] = {
    row.__name__: row
    for row in (
        torchrun,
        kills,
        loader_workers,
        disk_full,
        not_finite_skipped,
        not_finite_rolled_back,
        not_finite_given_up,
        slow_rank,
        standing_still,
        signals,
        second_signal,
        damaged_samples,
        flipped_bits,
        flipped_labels,
        truncated_shard,
        flipped_checkpoint,
        http,
        s3,
    )
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=ROWS, metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--kills", type=int, default=50, metavar="N", help="how many kills the row `kills` makes (50)")
    parser.add_argument("--seed", type=int, default=0, help="of every random choice (0)")
    parser.add_argument("--work", type=Path, metavar="DIR", help="a new folder for the runs, which is kept")
    args = parser.parse_args(argv)
    if args.work is not None and args.work.exists():
        print(f"fault_table: error: {args.work}: exists already; name a new folder", file=sys.stderr)
        return 2
    for number in (SIGINT, SIGTERM):
        set_handler(number, lambda *_: sys.exit(1))  # leaves the blocks, so that no process is left behind
    place = nullcontext(args.work) if args.work else tempfile.TemporaryDirectory(prefix="fault-table-")
    with place as folder, Lab(Path(folder).absolute()) as lab:
        return prove(lab, list(dict.fromkeys(args.only or ROWS)), args.kills, args.seed)


def prove(lab: Lab, names: list[str], number_of_kills: int, seed: int) -> int:
    failed = 0
    print("| what was done | how often | what came of it |\n|---|---|---|", flush=True)
    for name in names:
        row, started = ROWS[name], time.monotonic()
        try:
            how_often, outcome = row(Trial(lab, random.Random(f"{seed} {name}"), number_of_kills))
        except Skipped as reason:
            how_often, outcome = "0", f"skipped: {reason}"
        except (AssertionError, OSError, subprocess.SubprocessError) as error:
            failed += 1
            how_often, outcome = "", f"FAILED: {str(error).partition(chr(10))[0]}"
            print(f"--- {name}\n{error}", file=sys.stderr)
        lab.stop()
        print(f"| {row.__doc__} | {how_often} | {outcome} |", flush=True)
        print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
