"""What operators start: launch/local.sh and tools/*.sh, with a Python that only records how it was called."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Plays both the Python that makes .venv and the one inside it.
FAKE_PYTHON = """#!/bin/bash
folder=$(cd "$(dirname "$0")" && pwd)
log=$(cat "$folder/log-path")
case "$*" in
  "-m venv --clear "*) mkdir -p "$4/bin" && cp "$0" "$folder/log-path" "$4/bin/" && mv "$4/bin/fake" "$4/bin/python" ;;
  "-m pip install "*) echo "install ${*: -1}" >> "$log"; sleep 0.3; [[ ! -e $log.broken ]] ;;
  "-m crate_graph "*) echo "run ${*:3}" >> "$log" ;;
  "-m pip --version") ;;
  "-m "*) echo "$2" >> "$log" ;;
esac
"""


class Checkout:
    """A copy of the files that the scripts need."""

    def __init__(self, folder):
        self.root = folder / "a checkout"
        for name in ("launch", "tools"):
            shutil.copytree(ROOT / name, self.root / name)
        shutil.copy(ROOT / "pyproject.toml", self.root)
        self.log = folder / "log"
        self.log.touch()
        self.python = folder / "fake"
        self.python.write_text(FAKE_PYTHON)
        self.python.chmod(0o755)
        (folder / "log-path").write_text(str(self.log))

    def command(self, script, *args, python=None):
        environment = {**os.environ, "PYTHON": str(python or self.python)}
        return {"args": [str(self.root / script), *args], "env": environment, "cwd": "/", "text": True}

    def run(self, script, *args, **kwargs):
        return subprocess.run(**self.command(script, *args, **kwargs), capture_output=True, timeout=60)

    def calls(self):
        """What was called since the last time."""
        lines = self.log.read_text().splitlines()
        self.log.write_text("")
        return lines


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


def test_quickstart_sets_up_once_and_trains(checkout):
    assert checkout.run("launch/local.sh", "quickstart", "name=a b").returncode == 0
    assert checkout.calls() == [f"install {checkout.root}", "run train quickstart name=a b"]
    assert checkout.run("launch/local.sh", "evaluate", "runs/x", "--json").returncode == 0
    assert checkout.calls() == ["run evaluate runs/x --json"]


def test_restoration_quickstart_trains_and_restores(checkout):
    for settings in ([], ["schedule.epochs=2"]):
        assert checkout.run("launch/local.sh", "restoration-quickstart", *settings).returncode == 0
        run = "runs/restoration_quickstart"
        _, trained, extracted, restored = checkout.calls() if not settings else ["", *checkout.calls()]
        assert trained.split() == ["run", "train", "restoration_quickstart", "--run-dir", run, *settings]
        assert extracted == f"run shards extract photo_crops --split test --output {run}/pictures"
        assert restored.startswith(f"run restore {run} {run}/pictures/*.png --degrade bayer:RGGB --compare --force")


@pytest.mark.parametrize("changed", ["pyproject.toml", "tools/constraints.txt"])
def test_changed_dependencies_are_installed(checkout, changed):
    checkout.run("launch/local.sh", "quickstart")
    checkout.calls()
    with (checkout.root / changed).open("a") as file:
        file.write("# changed\n")
    checkout.run("launch/local.sh", "quickstart")
    assert checkout.calls() == [f"install {checkout.root}", "run train quickstart"]


def test_an_installation_that_failed_is_done_again(checkout):
    broken = Path(f"{checkout.log}.broken")
    broken.touch()
    assert checkout.run("launch/local.sh", "quickstart").returncode != 0
    assert checkout.calls() == [f"install {checkout.root}"]
    broken.unlink()
    assert checkout.run("launch/local.sh", "quickstart").returncode == 0
    assert checkout.calls() == [f"install {checkout.root}", "run train quickstart"]


def test_two_starts_at_once_install_once(checkout):
    starts = [subprocess.Popen(**checkout.command("launch/local.sh", "quickstart")) for _ in range(3)]
    assert [start.wait(60) for start in starts] == [0, 0, 0]
    assert checkout.calls() == [f"install {checkout.root}", *["run train quickstart"] * 3]


def test_the_environment_of_the_tests_serves_the_launcher(checkout):
    checkout.run("tools/test.sh")
    assert checkout.calls()[0] == f"install {checkout.root}[test]"
    checkout.run("launch/local.sh", "quickstart")
    assert checkout.calls() == ["run train quickstart"]


def test_the_environment_of_the_launcher_lacks_what_the_tests_need(checkout):
    checkout.run("launch/local.sh", "quickstart")
    checkout.calls()
    checkout.run("tools/test.sh")
    assert checkout.calls()[0] == f"install {checkout.root}[test]"


def test_print_shows_the_commands_and_runs_nothing(checkout):
    done = checkout.run("launch/local.sh", "--print", "quickstart", "schedule.epochs=2")
    root = str(checkout.root).replace(" ", r"\ ")
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        f"{checkout.python} -m venv --clear {root}/.venv",
        f"{root}/.venv/bin/python -m pip install --quiet --disable-pip-version-check"
        f" -c {root}/tools/constraints.txt -e {root}",
        f"{root}/.venv/bin/python -m crate_graph train quickstart schedule.epochs=2",
    ]
    assert checkout.calls() == []
    assert not (checkout.root / ".venv").exists()


def test_without_arguments_the_usage_is_shown(checkout):
    done = checkout.run("launch/local.sh")
    assert done.returncode == 2
    assert "./launch/local.sh quickstart" in done.stderr
    assert checkout.calls() == []


@pytest.mark.parametrize("python", ["/nonexistent/python", "/bin/false"])
def test_a_python_that_does_not_work_is_one_line(checkout, python):
    done = checkout.run("launch/local.sh", "--print", "quickstart", python=python)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"local.sh: error: PYTHON={python} is not a working Python 3.10 or newer; set PYTHON")


def test_a_python_without_ensurepip_names_the_package(checkout, tmp_path):
    bare = tmp_path / "bare"
    bare.write_text(f'#!/bin/bash\n[[ $2 == *ensurepip* ]] && exit 1\nexec {sys.executable} "$@"\n')
    bare.chmod(0o755)
    done = checkout.run("launch/local.sh", "--print", "quickstart", python=bare)
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert done.returncode == 2
    assert f"apt-get install python{version}-venv" in done.stderr


def test_the_scripts_are_clean():
    patterns = ("launch/*.sh", "launch/*.sbatch", "launch/env/*.sh", "tools/*.sh")
    scripts = [ROOT / ".ci/run", *(script for pattern in patterns for script in sorted(ROOT.glob(pattern)))]
    shellcheck = Path(sys.executable).parent / "shellcheck"
    done = subprocess.run([shellcheck, "-x", *scripts], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout


def test_scripts_that_are_started_can_be():
    launchers = [*ROOT.glob("launch/*.sh"), *ROOT.glob("launch/*.sbatch")]
    for name in (".ci/run", "tools/test.sh", "tools/lock.sh", *launchers):
        assert os.access(ROOT / name, os.X_OK), name


def test_the_constraints_name_no_host_and_no_path():
    lines = (ROOT / "tools/constraints.txt").read_text().splitlines()
    assert len(lines) > 50
    for line in lines:
        requirement = line.partition(";")[0].strip()
        name, _, version = requirement.partition("==")
        assert name and version and "/" not in line and "[" not in name, line
