"""Loader processes under signals. Each test starts a process of its own, with a deadline."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

SCRIPT = """
import sys, time, torch
from crate_graph.config.schema import EvalTransform
from crate_graph.data import PlannedLoader, open_dataset
from crate_graph.data.augment import build_eval_transform

dataset = open_dataset(sys.argv[1])
view = build_eval_transform(EvalTransform(size=12, resize=None), mean=dataset.mean, std=dataset.std,
                            channels=dataset.channels, num_classes=dataset.num_classes)
loader = PlannedLoader("train", dataset=dataset, transform=view, slots=2, global_batch=2, workers=2)
batches = loader.epoch(0)
next(batches)
print(*(worker.pid for worker in loader._workers._iterator._workers), flush=True)
"""
WAIT = "\nsys.stdin.readline()\nprint(1 + sum(1 for _ in batches), loader.steps(0), flush=True)\n"
DEADLINE = 60  # seconds


@pytest.fixture
def start(make_dataset):
    dataset = make_dataset((20, 20))
    started = []

    def run(script):
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(dataset.root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        workers = [int(pid) for pid in process.stdout.readline().split()]
        started.append((process, workers))
        return process, workers

    yield run
    for process, workers in started:
        for pid in filter(alive, workers):  # only after a failure
            os.kill(pid, signal.SIGKILL)
        process.kill()
        process.communicate()


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def all_gone(pids):
    end = time.monotonic() + DEADLINE
    while any(map(alive, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    return not any(map(alive, pids))


def test_signals_to_the_workers_cost_no_batch(start):
    process, workers = start(SCRIPT + WAIT)
    assert len(workers) == 2
    for pid in workers:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(pid, number)
    out, err = process.communicate("go\n", timeout=DEADLINE)
    assert out.split() == ["20", "20"] and process.returncode == 0, err
    assert all_gone(workers)


FULL_PIPE = """
loader = PlannedLoader("train", dataset=dataset, transform=view, slots=2, global_batch=16384, tail="pad", workers=2)
loader._tasks.tasks = [(0, 0, part) for part in range(2)]
results = iter(loader._workers)  # nobody takes them, and they are more than a pipe holds
print(*(worker.pid for worker in results._workers), flush=True)
time.sleep(1000)
"""


@pytest.mark.parametrize("script", [SCRIPT + WAIT, SCRIPT.rpartition("loader =")[0] + FULL_PIPE], ids=["idle", "full"])
def test_a_killed_parent_leaves_no_worker(start, script):
    process, workers = start(script)
    time.sleep(1)
    process.kill()
    assert len(workers) == 2 and all_gone(workers)


@pytest.mark.parametrize("end", ["", "\nimport os; os._exit(3)"])
def test_workers_end_with_the_program(start, end):
    process, workers = start(SCRIPT + end)
    process.communicate(timeout=DEADLINE)
    assert process.returncode == (3 if "3" in end else 0) and all_gone(workers)


def test_a_killed_worker_is_a_failure_not_a_hang(start):
    process, workers = start(SCRIPT + WAIT.replace("sys.stdin", "time.sleep(1); sys.stdin"))
    os.kill(workers[0], signal.SIGKILL)
    _, err = process.communicate("go\n", timeout=DEADLINE)
    assert process.returncode == 1 and "DataLoader worker" in err
    assert all_gone(workers)
