"""What tests of every layer share: real runs of the command line, on one process or on many."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from forks import Forks
from PIL import Image

LONGEST = (
    "test_two_hosts.py",  # waits for time-outs, and so does the next but one;
    "test_restoration_trace.py",  # runs of two processes take both cores then
    "test_life.py",
    "test_resume.py",
    "test_white_box.py",
    "test_precision.py",
    "test_readme.py",
    "test_slurm.py",
    "test_same_trace.py",
    "test_fault_table.py",
    "test_export.py",
    "test_zero.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first, so that the other worker is not idle at the end."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))  # stable: the others stay in their order


# A CRATE that trains in a moment, on the images of `fashion`.
TINY = (
    "name: tiny\n"
    "data: {dataset: DATASET, slots: 8, workers: 0,\n"
    "  train_transform: {size: 28, crop: pad_and_crop, padding: 2}, eval_transform: {size: 28, resize: null}}\n"
    "model: {name: crate_tiny_patch16_224, kwargs: {img_size: 28, patch_size: 7, in_chans: 1, embed_dim: 32,\n"
    "  depth: 2, num_heads: 2}}\n"
    "batch: {global_batch: 16}\n"
    "optimizer: {lr: 2.0e-3, clip_norm: 1.0}\n"
    "schedule: {epochs: 1, max_steps: 20, warmup_epochs: 0.01}\n"
    "evaluation: {batch_size: 50}\n"
    "checkpoint: {every_epochs: null}\n"
    "telemetry: {log_every: 1, tensorboard: false}\n"
)

# A restoration network likewise, on the pictures that `photographs` makes.
TINY_RESTORER = (
    "name: restorer\n"
    "task: {kind: restoration}\n"
    "data: {dataset: DATASET, slots: 8, workers: 0, patch: 32, degradation: {kind: bayer, phase: RGGB}}\n"
    "model: {name: conv_restorer, kwargs: {dim: 12, depth: 1}}\n"
    "batch: {global_batch: 16}\n"
    "optimizer: {lr: 2.0e-3, clip_norm: 1.0}\n"
    "schedule: {epochs: 100, max_steps: 20, warmup_epochs: 0.01}\n"
    "evaluation: {every_epochs: 100}\n"
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


class CommandLine(Forks):
    """`crate-graph` by forks of one process, which has loaded what every run loads, or would under DeepSpeed.

    Where there is a GPU, each run is started as a user starts it.
    """

    possible = not torch.cuda.is_available()  # a process that has loaded DeepSpeed for the CPU has no GPU
    LOADED = (
        "crate_graph.doctor.run",
        "crate_graph.engine.accelerate",
        "crate_graph.train.run",
        "torch._dynamo",
        *(("deepspeed", "deepspeed.runtime.zero.muon.muon_optimizer") if possible else ()),  # it brings TorchInductor
    )

    def __init__(self, folder: Path):
        loading = {"DS_ACCELERATOR": "cpu"} if self.possible else {}
        super().__init__(*self.LOADED, environment=environment, loading=loading)
        self.folder = folder

    def run(self, *words: object, **how: object) -> subprocess.CompletedProcess:
        """`crate-graph WORDS`, as `run_program` has it."""
        return self.run_program("crate-graph", *words, **how)

    def run_program(
        self, *words: object, world: int = 1, folder: Path = Path(), **own: str
    ) -> subprocess.CompletedProcess:
        """A program run to its end in a folder, with some variables of its own, on one process or more."""
        if not self.possible:
            of_python = ["-m", "crate_graph"] if words[0] == "crate-graph" else [words[0]]
            command = [*interpreter(world), *map(str, [*of_python, *words[1:]])]
            own = environment() | own
            return subprocess.run(command, cwd=folder, env=own, capture_output=True, text=True, timeout=240)
        printed = {name: self.folder / name for name in ("out", "err")}
        for file in printed.values():
            file.write_text("")
        fork = self.start(words, world=world, folder=folder, environment=own, **printed)
        try:
            code = fork.wait(240)
        except BaseException:  # a test's time is up
            fork.kill()
            raise
        out, err = (file.read_text() for file in printed.values())
        if code is None:
            fork.kill()
            pytest.fail(f"{' '.join(map(str, words))} did not end:\n{out}\n{err}")
        return subprocess.CompletedProcess(list(words), code, out, err)


class Runner:
    """Starts `crate-graph train` for a recipe, which says DATASET for `data`, alone or under torchrun."""

    def __init__(self, folder: Path, forks: CommandLine, recipe: str, data: Path):
        self.folder = folder
        self.forks = forks
        self.recipe = folder / "tiny.yaml"
        self.recipe.write_text(recipe.replace("DATASET", str(data)))

    def words(self, run_dir: Path, *overrides: str, options: Sequence[str] = ()) -> list[str]:
        return ["train", str(self.recipe), *overrides, "--run-dir", str(run_dir), *options]

    def start(self, run: str, *overrides: str, world: int = 1, options: Sequence[str] = ()) -> subprocess.Popen:
        words = self.words(self.folder / run, *overrides, options=options)
        return subprocess.Popen(
            [*interpreter(world), "-m", "crate_graph", *words],
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

    def train(
        self,
        run: str,
        *overrides: str,
        world: int = 1,
        options: Sequence[str] = (),
        program: Sequence[object] = (),
    ) -> Finished:
        """A run that nothing is done to from without; forked, since its start costs more than its steps.

        A `program`, with its arguments, takes the words of `crate-graph` and has a fault in it.
        """
        words = self.words(self.folder / run, *overrides, options=options)
        ended = self.forks.run_program(*(program or ["crate-graph"]), *words, world=world)
        return Finished(ended.returncode, ended.stdout, ended.stderr, self.folder / run)

    def trained(self, run: str, *overrides: str, world: int = 1, options: Sequence[str] = ()) -> Finished:
        """A run that must end well."""
        finished = self.train(run, *overrides, world=world, options=options)
        assert finished.code == 0, f"{run} ended with {finished.code}:\n{finished.out}\n{finished.err}"
        return finished


def interpreter(world: int) -> list[str]:
    """Python, on several processes as torchrun starts it."""
    if world == 1:
        return [sys.executable]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]


def environment() -> dict[str, str]:
    """One thread per process, so that runs are alike whatever runs beside them."""
    alike = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return {**os.environ, **alike, "CRATE_GRAPH_MEETING_SECONDS": "200"}  # where the machine is busy


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    with CommandLine(tmp_path_factory.mktemp("forks")) as forks:
        yield forks


@pytest.fixture(scope="session")
def fashion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images that ship with the project, 200 of them to test: all 2,000 take longer than the tiny CRATE trains."""
    from crate_graph.cli import main
    from crate_graph.shipped import shipped_folder

    shipped, folder = shipped_folder("datasets") / "fashion_mnist", tmp_path_factory.mktemp("fashion")
    for file in shipped.glob("train-*"):
        shutil.copy(file, folder)
    description = yaml.safe_load((shipped / "dataset.yaml").read_text())
    del description["splits"]["test"]
    (folder / "dataset.yaml").write_text(yaml.safe_dump(description, sort_keys=False))
    words = ["--split", "test", "--samples", "200", "--shards", "4"]
    assert main(["shards", "make", str(shipped), "--output", str(folder), *words]) == 0
    return folder


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory, forks: CommandLine, fashion: Path) -> Runner:
    return Runner(tmp_path_factory.mktemp("runs"), forks, TINY, fashion)


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of pictures with edges and texture: 32 to train (96 x 80), 3 to test (61 x 54)."""
    from crate_graph.cli import main

    folder = tmp_path_factory.mktemp("photographs")
    generator = np.random.default_rng(0)
    for split, count, size in (("train", 32, (80, 96)), ("test", 3, (54, 61))):
        (folder / "pictures" / split).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(scene(generator, *size)).save(folder / "pictures" / split / f"{number:02d}.png")
        made = ["shards", "make", str(folder / "pictures" / split), "--output", str(folder / "shards"), "--unlabelled"]
        assert main([*made, "--split", split, "--shards", "1"]) == 0
    return folder


def scene(generator: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Coloured discs over waves: (height, width, 3) uint8."""
    rows, columns = np.mgrid[:height, :width]
    fast, slow = generator.uniform(0.3, 1.5, 2), generator.uniform(-0.1, 0.1, 2)
    waves = np.sin(fast[0] * rows + fast[1] * columns) + np.sin(slow[0] * rows + slow[1] * columns)  # (H, W)
    picture = 0.5 + 0.15 * waves[..., None] * generator.uniform(0.5, 1, 3)  # (H, W, 3)
    for _ in range(8):
        row, column, radius = generator.uniform(0, height), generator.uniform(0, width), generator.uniform(3, 20)
        inside = (rows - row) ** 2 + (columns - column) ** 2 < radius**2
        picture[inside] = 0.5 * picture[inside] + 0.5 * generator.uniform(0, 1, 3)
    return (picture.clip(0, 1) * 255).astype(np.uint8)


@pytest.fixture(scope="module")
def restoration(tmp_path_factory: pytest.TempPathFactory, photographs: Path, forks: CommandLine) -> Runner:
    """Starts `crate-graph train` for a restoration network."""
    return Runner(tmp_path_factory.mktemp("runs"), forks, TINY_RESTORER, photographs / "shards")


# The problems that small restoration networks, of random weights, are said to have been trained for.
PROBLEMS = {
    "bayer": ({"kind": "bayer", "phase": "RGGB"}, "rgb"),
    "any_phase": ({"kind": "bayer", "phase": "any"}, "rgb"),
    "decimate": ({"kind": "decimate"}, "y"),
    "random": ({"kind": "random", "keep": 0.25}, "rgb"),
    "random_y": ({"kind": "random", "keep": 0.5}, "y"),
    "denoise": ({"kind": "none", "sigma": (0.0, 50.0)}, "rgb"),
}


@pytest.fixture(scope="session")
def restorers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint for each of `PROBLEMS`, as training writes it; the weights differ from their average."""
    folder = tmp_path_factory.mktemp("restorers")
    return {name: write_restorer(folder / name, *problem) for name, problem in PROBLEMS.items()}


def write_restorer(folder: Path, degradation: dict, color: str) -> Path:
    import torch

    from crate_graph import create_model
    from crate_graph.checkpoint import CheckpointStore
    from crate_graph.checkpoint.contents import Contents
    from crate_graph.config.load import dump_recipe
    from crate_graph.config.schema import Recipe
    from crate_graph.engine.base import Portable

    name, arguments = "conv_restorer", {"dim": 8, "depth": 1, "in_chans": 1 if color == "y" else 3}
    if degradation["kind"] == "none":
        name, arguments = "ugtv_fast", {**arguments, "features": 2, "layers": 1, "noise_aware": True}
    torch.manual_seed(0)
    weights = create_model(name, **arguments).state_dict()
    weights = {key: tensor + 0.05 * torch.randn_like(tensor) for key, tensor in weights.items()}  # some begin at zero
    average = {key: 0.5 * tensor for key, tensor in weights.items()}
    recipe = Recipe(
        name="toy_restorer",
        seed=5,
        task={"kind": "restoration"},
        model={"name": name, "kwargs": arguments},
        data={"dataset": "/somewhere/pictures", "degradation": degradation, "color": color},
        ema={"decay": 0.9},
    )
    facts = {
        "task": {"kind": "restoration", "degradation": recipe.data.degradation.model_dump(), "color": color},
        "model": {"name": name, "kwargs": arguments, "num_classes": None},
        "dataset": {"name": "toy", "classes": ["photograph"], "mean": [0.5], "std": [0.25]},
        "metrics": {"psnr": 31.5, "ssim": 0.875},
    }
    contents = Contents(Portable(weights, {}, 30), average, {"step": 30}, dump_recipe(recipe))
    return CheckpointStore(folder).write(30, contents.to_files(), facts)
