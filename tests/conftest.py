"""What tests of every layer share: real runs of the command line, on one process or on many."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

# A CRATE that trains in a moment, on the real images that ship with the project.
TINY = (
    "name: tiny\n"
    "data: {dataset: fashion_mnist, slots: 8, workers: 0,\n"
    "  train_transform: {size: 28, crop: pad_and_crop, padding: 2}, eval_transform: {size: 28, resize: null}}\n"
    "model: {name: crate_tiny_patch16_224, kwargs: {img_size: 28, patch_size: 7, in_chans: 1, embed_dim: 32,\n"
    "  depth: 2, num_heads: 2}}\n"
    "batch: {global_batch: 16}\n"
    "optimizer: {lr: 2.0e-3, clip_norm: 1.0}\n"
    "schedule: {epochs: 1, max_steps: 20, warmup_epochs: 0.01}\n"
    "evaluation: {batch_size: 500}\n"
    "checkpoint: {every_epochs: null}\n"
    "telemetry: {log_every: 1, tensorboard: false}\n"
)


@dataclass
class Finished:
    """A run of the command line that has ended."""

    code: int
    out: str
    err: str
    run_dir: Path

    @property
    def records(self) -> list[dict]:
        return read_records(self.run_dir)

    @property
    def losses(self) -> dict[int, float]:
        return {record["step"]: record["loss"] for record in self.records if "loss" in record}

    @property
    def summary(self) -> dict:
        return json.loads((self.run_dir / "summary.json").read_text())


def read_records(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


class Runner:
    """Starts `crate-graph train` for a recipe, alone or under torchrun."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.recipe = folder / "tiny.yaml"
        self.recipe.write_text(TINY)

    def command(self, run_dir: Path, *overrides: str, world: int = 1, options: Sequence[str] = ()) -> list[str]:
        start = [sys.executable, "-m"]
        if world > 1:
            start += ["torch.distributed.run", "--standalone", f"--nproc-per-node={world}", "-m"]
        return [*start, "crate_graph", "train", str(self.recipe), *overrides, "--run-dir", str(run_dir), *options]

    def start(self, run: str, *overrides: str, world: int = 1, options: Sequence[str] = ()) -> subprocess.Popen:
        return subprocess.Popen(
            self.command(self.folder / run, *overrides, world=world, options=options),
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def finish(self, process: subprocess.Popen, run: str) -> Finished:
        try:
            out, err = process.communicate(timeout=240)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            pytest.fail(f"{run} did not end:\n{out}\n{err}")
        return Finished(process.returncode, out, err, self.folder / run)

    def train(self, run: str, *overrides: str, world: int = 1, options: Sequence[str] = ()) -> Finished:
        return self.finish(self.start(run, *overrides, world=world, options=options), run)

    def trained(self, run: str, *overrides: str, world: int = 1, options: Sequence[str] = ()) -> Finished:
        """A run that must end well."""
        finished = self.train(run, *overrides, world=world, options=options)
        assert finished.code == 0, f"{run} ended with {finished.code}:\n{finished.out}\n{finished.err}"
        return finished


def environment() -> dict[str, str]:
    """One thread per process, so that runs are alike whatever runs beside them."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return Runner(tmp_path_factory.mktemp("runs"))
