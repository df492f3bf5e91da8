"""Runs of two processes on small shards, to be disturbed and then compared, bit for bit, with one that was not.

    with Lab(folder) as lab:
        life = lab.start("mine")        # both ranks
        life.reaches(20)
        life.kill(1)
        life.end((1, -SIGKILL))
        lab.start("mine").end((0, 0))   # the same command goes on
        lab.compare("mine")

A life is two real processes of the command line, forks of one that has imported the package before (forks.py), so that
a life begins in a second.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from signal import SIGKILL

from forks import Fork, Forks
from proof_runs import RECIPE, ROOT, free_port

FAULTS = ROOT / "tests" / "faults"  # programs with a fault in them
RANKS = (0, 1)
SAMPLES, SHARDS, BATCH, EPOCHS = 480, 16, 16, 2
STEPS = EPOCHS * SAMPLES // BATCH
SAVE_EVERY = 3
WEIGHTS = ("model.safetensors", "optimizer.safetensors", "ema.safetensors")
DEADLINE = 240  # seconds for whatever is waited for
LOADED = (
    "crate_graph.cli",
    "crate_graph.train.run",
    "crate_graph.engine.accelerate",
    "crate_graph.checkpoint.commands",
)


class Lab:
    """Below `folder`: data, the run `undisturbed` with a checkpoint of each step, and the runs that are tried."""

    def __init__(self, folder: Path):
        self.folder, self.data = folder, folder / "data"
        self._logs = 0
        os.environ |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHON": sys.executable}
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        sys.path.insert(0, str(ROOT))
        self._forks = Forks(*LOADED)

    def __enter__(self) -> Lab:
        (self.folder / "logs").mkdir(parents=True)
        self.recipe = self.folder / "faults.yaml"
        self.recipe.write_text(RECIPE)
        try:
            self.make_data(self.data)
            self.train_undisturbed()
        except BaseException:  # Ctrl-C too
            self._forks.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._forks.close()

    def stop(self) -> None:
        """End whatever still runs."""
        self._forks.stop()

    def make_data(self, output: Path) -> None:
        """A part of the images that ship here, in small shards."""
        source = ROOT / "datasets" / "fashion_mnist"
        for split, samples, shards in (("train", SAMPLES, SHARDS), ("test", 64, 1)):
            words = ["--split", split, "--samples", str(samples), "--shards", str(shards), "--like", str(source)]
            self.told("shards", "make", str(source), "--output", str(output), "--name", "small", *words)

    def train_undisturbed(self) -> None:
        """Each step's checkpoint is kept."""
        life = self.start("undisturbed", "checkpoint={every_steps: 1, every_epochs: null, keep_every: 1}")
        life.end((0, 0))
        expect(self.steps_of("undisturbed") == list(range(1, STEPS + 1)), "the undisturbed run lacks steps", life.text)
        expect(len({record["loss"] for record in self.records("undisturbed")}) == STEPS, "its losses do not move")

    def words(self, run: str, *overrides: str) -> list[str]:
        """The words of `crate-graph` that train `run`, or go on with it."""
        common = [
            f"data.dataset={self.data}",
            f"schedule.epochs={EPOCHS}",
            "ema.decay=0.9",
            f"checkpoint.every_steps={SAVE_EVERY}",
            "evaluation.batch_size=64",
        ]
        return ["train", str(self.recipe), *common, *overrides, "--run-dir", str(self.folder / run)]

    def start(self, run: str, *overrides: str, fault: Sequence[object] = (), **environment: str) -> Life:
        """A life of `run`; `fault` is a program of tests/faults with its arguments."""
        program = [str(FAULTS / str(fault[0])), *map(str, fault[1:])] if fault else ["crate-graph"]
        program += self.words(run, *overrides)
        meet = {"WORLD_SIZE": str(len(RANKS)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
        log, before = self._log(run), inode(self.folder / run / "metrics.jsonl")
        ranks = [
            self._forks.start(program, environment={**environment, **meet, "RANK": rank, "LOCAL_RANK": rank}, out=log)
            for rank in RANKS
        ]
        return Life(ranks, self.folder / run, log, before)

    def told(self, *words: str, code: int = 0) -> str:
        """What another command of `crate-graph` says, which must end with `code`."""
        log = self._log("command")
        found = self._forks.start(["crate-graph", *words], out=log).wait(DEADLINE)
        text = log.read_text(errors="replace")
        expect(found == code, f"crate-graph {' '.join(words[:2])} ended with {found}", text)
        return text

    def listed(self, run: str) -> list[Path]:
        """The checkpoints of a run; each must be whole and that of the undisturbed run, and no file of them spoilt."""
        checkpoints = sorted((self.folder / run / "checkpoints").glob("step-*"))
        if not checkpoints:
            self.told("checkpoint", "verify", str(self.folder / run), code=2)
            return []
        rows = json.loads(self.told("checkpoint", "verify", str(self.folder / run), "--json"))
        expect([row["checkpoint"] for row in rows] == list(map(str, checkpoints)), f"{run}: not all are listed")
        return checkpoints

    def compare(self, run: str, steps: int = STEPS, to: str = "undisturbed") -> None:
        """A run has ended as if nobody had disturbed it.

        Raises:
            AssertionError: a step is missing or was trained twice, a loss or a weight differs in a bit.
        """
        expect(self.steps_of(run) == list(range(1, steps + 1)), f"{run}: trained the steps {self.steps_of(run)}")
        self.compare_so_far(run, to)
        newest = self.listed(run)[-1]
        expect(newest.name == f"step-{steps:08d}", f"{run}: its last checkpoint is {newest.name}")
        expect(not list(newest.parent.glob(".*")), f"{run}: something half-made is left")
        summary = json.loads((self.folder / run / "summary.json").read_text())
        expect(summary["finished"] and summary["step"] == steps, f"{run}: has not finished")

    def compare_so_far(self, run: str, to: str = "undisturbed", names: Sequence[str] = WEIGHTS) -> None:
        """What a run has recorded and saved is, up to where it is, what another one did."""
        theirs = {record["step"]: numbers(record) for record in self.records(to)}
        for record in self.records(run):
            step = record["step"]
            expect(numbers(record) == theirs[step], f"{run}: step {step} differs: {record}")
        for folder in self.listed(run)[-1:]:
            other = self.folder / to / "checkpoints" / folder.name
            if not other.exists():
                continue  # of runs other than `undisturbed` the last ones are kept
            for name in names:
                same = (folder / name).read_bytes() == (other / name).read_bytes()
                expect(same, f"{run}: {folder.name}/{name} differs")

    def records(self, run: str) -> list[dict]:
        """What the run wrote of its steps; a kill may have cut off the last line."""
        path = self.folder / run / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]
        return [record for record in map(json.loads, whole) if "loss" in record]

    def steps_of(self, run: str) -> list[int]:
        return [record["step"] for record in self.records(run)]

    def losses(self, run: str) -> list[float]:
        return [record["loss"] for record in self.records(run)]

    def _log(self, run: str) -> Path:
        self._logs += 1
        return self.folder / "logs" / f"{self._logs:04d}-{run.replace('/', '-')}.log"


@dataclass
class Trial:
    """What a row is given."""

    lab: Lab
    random: random.Random
    kills: int


@dataclass
class Life:
    """The ranks of a run from a start to their end, each the head of a group with its loader workers."""

    ranks: list[Fork]
    run_dir: Path
    log: Path
    before: int | None  # the metrics of the life before: this one writes the file anew

    @property
    def alive(self) -> bool:
        return any(process.alive for process in self.ranks)

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def reaches(self, step: int) -> bool:
        """Wait until `step` is recorded; False where the life has ended before."""
        metrics, end = self.run_dir / "metrics.jsonl", time.monotonic() + DEADLINE
        while inode(metrics) in (None, self.before) or f'"step": {step},' not in metrics.read_text():
            if not wait([process.sentinel for process in self.ranks], timeout=0.003):
                expect(time.monotonic() < end, f"step {step} never came", self.text)
            elif not self.alive:
                return False
        return True

    def signal(self, number: int, *ranks: int) -> None:
        for rank in ranks:
            with suppress(ProcessLookupError):
                os.kill(self.ranks[rank].pid, number)

    def signal_groups(self, number: int) -> None:
        """To ranks and loader workers, as a scheduler does."""
        for process in self.ranks:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)

    def kill(self, *ranks: int) -> None:
        self.signal(SIGKILL, *ranks)

    def workers(self, rank: int) -> list[int]:
        leader = self.ranks[rank].pid
        return [pid for pid in members(leader) if pid != leader]

    def end(self, codes: Sequence[int] | None = None) -> list[int]:
        """Wait for all ranks to end by themselves, as `codes` say (None: anyhow), and leave no process behind."""
        deadline = time.monotonic() + DEADLINE
        found = [process.wait(max(0.0, deadline - time.monotonic())) for process in self.ranks]
        expect(None not in found, "stands still", self.text)
        expect(codes is None or found == list(codes), f"ended with {found} instead of {codes}", self.text)
        while left := [pid for process in self.ranks for pid in members(process.pid)]:
            expect(time.monotonic() < deadline, f"processes {left} outlive their run", self.text)
            time.sleep(0.01)
        return found


def step_of(checkpoints: list[Path]) -> int:
    """The step of the newest one."""
    return int(checkpoints[-1].name[5:]) if checkpoints else 0


def members(group: int) -> list[int]:
    """The living processes of a group."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state, _, of_group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(of_group) == group and state not in "ZX":
                found.append(int(folder.name))
    return found


def inode(path: Path) -> int | None:
    return path.stat().st_ino if path.exists() else None


def numbers(record: dict) -> tuple:
    """What of a record does not depend on time."""
    return record["step"], record["epoch"], record["samples_seen"], record["loss"], record["grad_norm"], record["lr"]


def expect(true: bool, otherwise: str, log: str = "") -> None:
    if not true:
        raise AssertionError("\n".join([otherwise, *log.splitlines()[-30:]]))
