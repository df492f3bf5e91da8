"""What the proofs share: runs of one small recipe that are started, disturbed, and compared loss by loss."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
RECIPE = """\
name: proof
data: {dataset: fashion_mnist, slots: 8, workers: 1,
  train_transform: {size: 28, crop: pad_and_crop, padding: 2}, eval_transform: {size: 28, resize: null}}
model: {name: crate_tiny_patch16_224, kwargs: {img_size: 28, patch_size: 7, in_chans: 1, embed_dim: 32,
  depth: 2, num_heads: 2}}
batch: {global_batch: 16}
optimizer: {lr: 2.0e-3, clip_norm: 1.0}
schedule: {epochs: 1, warmup_epochs: 0.01}
evaluation: {batch_size: 500}
checkpoint: {every_epochs: null}
telemetry: {log_every: 1, tensorboard: false}
"""
DEADLINE = 400  # seconds for each thing that is waited for


class Skipped(Exception):
    """Why something cannot run here."""


class Runs:
    """Runs below `folder`, each with its run folder and a log of what its launchers said."""

    def __init__(self, folder: Path, *settings: str, **environment: str):
        self.folder, self.settings = folder, settings
        self.recipe = folder / "proof.yaml"
        self.recipe.write_text(RECIPE)
        python_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        own = {"PYTHON": sys.executable, "PYTHONPATH": python_path, "OMP_NUM_THREADS": "1"}
        self.environment = {**os.environ, **own, **environment}
        self._started: list[subprocess.Popen] = []

    def start(
        self,
        run: str,
        *command: str,
        settings: tuple[str, ...] = (),
        starter: Callable[..., subprocess.Popen] = subprocess.Popen,
        **environment: str,
    ) -> subprocess.Popen:
        """`command train RECIPE ...` with more environment variables."""
        words = ["train", str(self.recipe), "--run-dir", str(self.folder / run), *self.settings, *settings]
        with self.log(run).open("a") as log:
            process = starter(
                [*command, *words],
                cwd=self.folder,
                env={**self.environment, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def end(self, run: str, *processes: subprocess.Popen, code: int = 0) -> None:
        """Wait until all have ended, each with this exit code."""
        codes = [process.wait(DEADLINE) for process in processes]
        if codes != [code] * len(processes):
            raise AssertionError(f"{run} ended with {codes} instead of {code}\n{self.said(run)[-4000:]}")

    def until(self, run: str, what: str, holds: Callable[[], object], *processes: subprocess.Popen) -> None:
        """Wait until `holds()`, which must come true before one of the processes ends."""
        deadline = time.monotonic() + DEADLINE
        while not holds():
            if time.monotonic() > deadline or any(process.poll() is not None for process in processes):
                raise AssertionError(f"{run}: never saw that {what}\n{self.said(run)[-4000:]}")
            time.sleep(0.05)

    def until_step(self, run: str, step: int, *processes: subprocess.Popen) -> None:
        self.until(run, f"step {step} is trained", lambda: step in self.losses(run), *processes)

    def losses(self, run: str) -> dict[int, float]:
        return losses(self.folder / run)

    def log(self, run: str) -> Path:
        return self.folder / f"{run}.log"

    def said(self, run: str) -> str:
        """What its launchers and processes have said so far."""
        return self.log(run).read_text() if self.log(run).exists() else ""

    def stop(self) -> None:
        """End what has not ended."""
        for process in self._started:
            if process.poll() is None:
                process.terminate()
                process.wait(60)

    def __enter__(self) -> Runs:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()


def losses(run: Path) -> dict[int, float]:
    """Loss by step, as far as the run has come."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("\n")]  # the last may not be whole yet
    return {record["step"]: record["loss"] for record in records if "loss" in record}


def is_worker(command: str, run: Path) -> bool:
    """Whether a command line of /proc is that of a rank of the run, and not of torchrun or a loader worker."""
    words = command.split("\0")
    return words[1:4] == ["-u", "-m", "crate_graph"] and str(run) in words


def launcher(name: str) -> str:
    return str(ROOT / "launch" / name)


def free_port() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


def print_table(title: str, cases: Mapping[str, Callable[[], str]], failed: Callable[[], None] = lambda: None) -> int:
    """A row for each case: what it returns, and how long it took. Returns 1 where one of them failed."""
    code = 0
    print(f"| {title} | outcome | seconds |\n|---|---|---|", flush=True)
    for name, case in cases.items():
        started = time.monotonic()
        try:
            outcome = case()
        except Skipped as reason:
            outcome = f"skipped: {reason}"
        except (AssertionError, OSError, RuntimeError, StopIteration, subprocess.TimeoutExpired) as error:
            code = 1
            failed()
            outcome = f"FAILED: {error}"
        print(f"| {name} | {outcome} | {time.monotonic() - started:.0f} |", flush=True)
    return code
