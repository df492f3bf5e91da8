"""The README's section "A run's life", line by line in one shell, as an operator types it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUN = Path("runs/life")
SHORT = (
    "batch.global_batch=16 data.slots=8 checkpoint.every_steps=100 evaluation.batch_size=1000 telemetry.log_every=1 "
    "telemetry.tensorboard=false"
)


class Shell:
    """A bash with job control in a folder of its own; what it prints and the exit code of each line."""

    def __init__(self, folder: Path):
        self.folder = folder
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHON": sys.executable}
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        self.bash = subprocess.Popen(
            ["bash", "--norc"],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(folder / "errors.txt").open("w"),
            text=True,
        )
        self.run("set -m; shopt -s expand_aliases")

    def run(self, line: str) -> tuple[int, str]:
        self.bash.stdin.write(f'{line}\necho "=ended=$?"\n')
        self.bash.stdin.flush()
        printed = ""
        while not (ended := re.search(r"=ended=(\d+)\n$", printed)):
            printed += (more := self.bash.stdout.readline())
            assert more, f"the shell ended at {line}:\n{printed}"
        return int(ended[1]), printed[: ended.start()]

    def close(self) -> None:
        self.bash.stdin.write("kill -CONT $(jobs -p) 2>/dev/null; kill -KILL $(jobs -p) 2>/dev/null\n")
        self.bash.stdin.close()
        self.bash.wait(30)


def lines_of_the_readme() -> list[str]:
    section = re.search(r"(?ms)^### A run's life$(.*?)^###? ", (ROOT / "README.md").read_text())[1]
    return [line[4:].split("  #")[0].strip() for line in section.splitlines() if line.startswith("    ")]


@pytest.fixture
def shell(tmp_path):
    shell = Shell(tmp_path)
    yield shell
    shell.close()


@pytest.mark.timeout(900)
def test_a_runs_life_from_its_first_minute_to_its_last(shell):
    """Only the trainings are shortened."""
    folder = shell.folder / RUN

    def steps() -> list[int]:
        text = (folder / "metrics.jsonl").read_text() if (folder / "metrics.jsonl").exists() else ""
        records = [json.loads(line) for line in text.split("\n")[:-1]]
        return [record["step"] for record in records if "loss" in record]

    starts, waits = [], []
    for line in lines_of_the_readme():
        seen = max(steps(), default=0)
        line = line.replace("./launch", f"{ROOT}/launch")
        if "torchrun.sh train" in line:
            starts.append(seen)
            end = f"schedule.max_steps={seen + 20}" if len(starts) == 3 else ""
            line = line.replace(" --run-dir", f" {SHORT} {end} --run-dir")
        code, printed = shell.run(line)
        if line.startswith("wait"):
            waits.append(code)
        else:
            assert code == 0, f"{line}\n{printed}"
        if line.startswith("cat "):
            assert printed.startswith("rank 0: no progress for"), printed
    assert waits == [75, 1]
    assert len(starts) == 3 and 0 == starts[0] < starts[1] < starts[2]
    assert steps()[-1] == starts[2] + 20 and json.loads((folder / "summary.json").read_text())["finished"]
    assert (shell.folder / "exported/life").is_dir()
