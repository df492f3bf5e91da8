"""What operators ask of a running job: save, stop. All ranks do it at the same step, then exit 0."""

import json
import os
import signal
import subprocess
import time

import pytest

LONG = "schedule.max_steps=600"


def wait_for_step(runner, run, process, step):
    metrics = runner.folder / run / "metrics.jsonl"
    while f'"step": {step},' not in (metrics.read_text() if metrics.exists() else ""):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)


def trainers_under(process):
    """Process ids of the ranks that torchrun started."""
    listing = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
    return [int(pid) for pid in listing.stdout.split()]


def assert_stopped_whole(run):
    assert run.code == 0, run.err
    assert run.summary["finished"] is False
    newest = max((run.run_dir / "checkpoints").iterdir())
    assert run.summary["step"] == int(newest.name[5:]) < 600
    assert json.loads((newest / "state.json").read_text())["step"] == run.summary["step"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_one_rank_stops_both(runner, number):
    run = f"one-rank-{number.name}"
    process = runner.start(run, LONG, "data.workers=1", world=2)
    wait_for_step(runner, run, process, 5)
    os.kill(trainers_under(process)[1], number)
    assert_stopped_whole(runner.finish(process, run))


def test_a_signal_to_loader_workers_too(runner):
    process = runner.start("group", LONG, "data.workers=2")
    wait_for_step(runner, "group", process, 5)
    os.killpg(process.pid, signal.SIGTERM)
    assert_stopped_whole(runner.finish(process, "group"))


def test_switch_files(runner):
    process = runner.start("switches", LONG)
    wait_for_step(runner, "switches", process, 5)
    folder = runner.folder / "switches"
    (folder / "save-now").touch()
    while not list((folder / "checkpoints").glob("step-*")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    (folder / "stop-now").touch()
    run = runner.finish(process, "switches")
    assert_stopped_whole(run)
    assert len(list((folder / "checkpoints").iterdir())) == 2
    assert not (folder / "save-now").exists() and not (folder / "stop-now").exists()


def test_a_second_signal_ends_at_once(runner):
    process = runner.start("impatient", LONG, "checkpoint.every_steps=5")
    wait_for_step(runner, "impatient", process, 10)
    process.send_signal(signal.SIGSTOP)  # both signals are there when it wakes
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGUSR1)
    process.send_signal(signal.SIGCONT)
    run = runner.finish(process, "impatient")
    assert run.code in (128 + signal.SIGTERM, 128 + signal.SIGUSR1)
    names = [path.name for path in (run.run_dir / "checkpoints").iterdir() if not path.name.startswith(".")]
    assert names and all((run.run_dir / "checkpoints" / name / "manifest.json").exists() for name in names)
