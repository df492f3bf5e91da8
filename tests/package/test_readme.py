"""The README's commands, run in its order by a stranger with an empty folder.

Only the trainings are cut short, and of Fashion-MNIST there are fewer images: test_life.py takes all that ship.

Each verb is started once as it stands, also by torchrun. When it comes again it is forked from a process that has
loaded PyTorch already.
"""

import glob
import os
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from crate_graph.cli import main
from crate_graph.config.load import load_recipe
from crate_graph.shipped import shipped_folder

README = Path(__file__).parents[2] / "README.md"
SHORT = ["schedule.max_steps=3", "data.workers=1", "evaluation.batch_size=100"]
TOOLS = ("crate-graph", "torchrun", "touch")


def blocks():
    """The indented blocks of the README, without their indentation."""
    text = re.sub(r"(?ms)^### A run's life$.*?^###? ", "", README.read_text())  # which test_life.py runs
    return [
        textwrap.dedent(block).strip("\n")
        for block in re.findall(r"(?:^ {4}.*\n|^\n(?= {4}))+", text, flags=re.MULTILINE)
    ]


def commands():
    lines = [line.split("  #")[0].strip() for block in blocks() for line in block.splitlines()]
    return [line for line in lines if line.startswith(TOOLS)]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home folder with the recipe that the README writes."""
    home = tmp_path_factory.mktemp("home")
    for block in blocks():
        if block.startswith("# ") and ".yaml\n" in block:
            (home / block[2:].split()[0]).write_text(block)
    (home / "runs" / "quickstart").mkdir(parents=True)
    return home


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Fashion-MNIST with a few of its images."""
    shipped, folder = shipped_folder("datasets") / "fashion_mnist", tmp_path_factory.mktemp("few")
    for split, samples in (("train", 640), ("test", 100)):
        words = ["--split", split, "--samples", str(samples), "--shards", "2", "--like", str(shipped)]
        assert main(["shards", "make", str(shipped), "--output", str(folder), *words]) == 0
    return folder


@pytest.fixture(scope="module")
def run(home, few, forks):
    bin_folder = Path(sys.executable).parent
    environment = {**os.environ, "HOME": str(home), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    environment["PATH"] = f"{bin_folder}{os.pathsep}{environment['PATH']}"

    started = set()

    def shorter(recipe):
        """The settings that cut a training short."""
        path = home / recipe
        of_fashion = load_recipe(str(path) if path.exists() else recipe).data.dataset == "fashion_mnist"
        return [*SHORT, *([f"data.dataset={few}", "batch.global_batch=64"] if of_fashion else [])]

    def run(command):
        words = [os.path.expanduser(word.replace("~", str(home), 1)) for word in shlex.split(command)]
        found = [sorted(glob.glob(word, root_dir=home)) if "*" in word else [word] for word in words]
        words = [str(few) if word == "fashion_mnist" else word for names in found for word in names]
        if words[0] in ("crate-graph", "torchrun"):
            at, world = (1, 1) if words[0] == "crate-graph" else (words.index("crate_graph") + 1, int(words[2]))
            if words[at] == "train" or words[0] == "torchrun":
                words += shorter(words[at + 1])
            if (words[0], words[at]) in started and forks.possible:
                return forks.run(*words[at:], world=world, folder=home, HOME=str(home))
            started.add((words[0], words[at]))
        return subprocess.run(words, cwd=home, env=environment, capture_output=True, text=True, timeout=240)

    return run


@pytest.mark.timeout(1200)
def test_every_command_works_in_the_order_of_the_readme(run, home):
    assert len(commands()) > 20
    for command in commands():
        ended = run(command)
        assert ended.returncode == 0, f"{command}\n{ended.stdout}\n{ended.stderr}"
    for snippet in (block for block in blocks() if block.startswith("import crate_graph")):
        environment = {**os.environ, "PYTHONSAFEPATH": "1"}
        ended = subprocess.run(
            [sys.executable, "-c", snippet], cwd=home, env=environment, capture_output=True, text=True, timeout=120
        )
        assert ended.returncode == 0, ended.stderr


def test_files_and_recipes_that_it_names_exist():
    text = README.read_text()
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (README.parent / target).exists(), target
    recipes = {path.stem for path in (README.parent / "recipes").rglob("*.yaml")}
    for name in ("quickstart", "imagenet1k_tiny_paper", "imagenet1k_large_readme", "scratch_vit", "oxford_pets_crate"):
        assert name in recipes


def test_the_page_of_tests_names_tests_that_exist():
    folder = Path(__file__).parents[1]
    rows = [line for line in (folder / "README.md").read_text().splitlines() if "](" in line]
    assert len(rows) > 10
    for row in rows:
        for part in row.split("[")[1:]:
            file = folder / re.search(r"\]\((.*?)\)", part)[1]
            names = re.findall(r"`(test_\w+)`", part)
            assert names, row
            for name in names:
                assert f"def {name}(" in file.read_text(), f"{file}: no {name}"
