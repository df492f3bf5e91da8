"""What operators ask of a running job: save, stop. All ranks do it at the same step, then exit 0."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from crate_graph import cli
from crate_graph.resilience import requests

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


@pytest.fixture
def journal(tmp_path, monkeypatch):
    """What the launcher hears."""
    path = tmp_path / "journal"
    monkeypatch.setenv("CRATE_GRAPH_JOURNAL", str(path))
    return path


def assert_stopped_whole(run, by):
    """It says by what, and its last step is recorded."""
    assert run.code == 0, run.err
    assert run.summary["finished"] is False and run.summary["stopped_by"] == by
    told = f"stopped as asked at step {run.summary['step']} of 600, by {by}; the same command goes on"
    assert told in run.err and all(told in log.read_text() for log in (run.run_dir / "logs").glob("rank-*.log"))
    assert list(run.losses)[-1] == run.summary["step"]
    newest = max((run.run_dir / "checkpoints").iterdir())
    assert run.summary["step"] == int(newest.name[5:]) < 600
    assert json.loads((newest / "state.json").read_text())["step"] == run.summary["step"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_one_rank_stops_both(runner, number, journal):
    run = f"one-rank-{number.name}"
    process = runner.start(run, LONG, "data.workers=1", world=2)
    wait_for_step(runner, run, process, 5)
    os.kill(trainers_under(process)[1], number)
    assert_stopped_whole(runner.finish(process, run), number.name)
    assert journal.read_text() == "start 0\npreempted\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_loader_workers_too(runner, number):
    """A scheduler signals every process of a job, and so does Ctrl-C."""
    run = f"group-{number.name}"
    process = runner.start(run, LONG, "data.workers=2")
    wait_for_step(runner, run, process, 5)
    os.killpg(process.pid, number)
    assert_stopped_whole(runner.finish(process, run), number.name)


def test_switch_files(runner, journal):
    process = runner.start("switches", LONG)
    wait_for_step(runner, "switches", process, 5)
    folder = runner.folder / "switches"
    (folder / "save-now").touch()
    while not list((folder / "checkpoints").glob("step-*")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    (folder / "stop-now").touch()
    run = runner.finish(process, "switches")
    assert_stopped_whole(run, "stop-now")
    assert len(list((folder / "checkpoints").iterdir())) == 2
    assert not (folder / "save-now").exists() and not (folder / "stop-now").exists()
    assert journal.read_text() == "start 0\nstopped\n"


def test_a_run_folder_that_is_moved_away(runner):
    """What went on under its name would be mixed with another run, which no lock keeps out any more."""
    process = runner.start("moved", LONG)
    wait_for_step(runner, "moved", process, 5)
    away = (runner.folder / "moved").rename(runner.folder / "away")
    run = runner.finish(process, "moved")
    assert run.code == 1 and "Traceback" not in run.err
    for said in (run.err, (away / "logs" / "rank-0.log").read_text()):
        assert "the run folder was moved or removed" in said
    assert not (runner.folder / "moved").exists()


def test_a_folder_is_no_switch(tmp_path):
    (tmp_path / "stop-now").mkdir()
    asked = requests.Requests(tmp_path, True)
    try:
        assert asked.poll() == (False, False)
    finally:
        asked.close()


def test_a_further_signal_does_not_cut_an_orderly_end_short(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    asked = requests.Requests(tmp_path, True)
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked.poll() == (False, True)
        asked.close()
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)


def test_a_duration_ends_both_ranks_at_one_step(runner):
    """Of which there is a record although it was none to be logged."""
    run = runner.train("duration", LONG, "telemetry.log_every=1000", world=2, options=["--max-duration", "1s"])
    assert_stopped_whole(run, "--max-duration")
    (record,) = run.records
    assert record["samples_seen"] == 16 * run.summary["step"] and "slowest_rank" in record


def test_the_record_of_a_stop(runner):
    """Asked to stop before it began, a run ends after two steps, and again two steps later, where its recipe ends.

    The record of the stop is that of an undisturbed run; at its last step a run has finished, whatever was asked of it.
    """
    words = ["schedule.max_steps=4", "evaluation.batch_size=200"]
    life = {"options": ["--max-duration", "0.001s"]}
    summary = runner.trained("stopped", *words, "telemetry.log_every=3", **life).summary
    assert (summary["finished"], summary["step"], summary["stopped_by"]) == (False, 2, "--max-duration")
    assert summary["start_seconds"] >= 0
    second = runner.trained("stopped", *words, "telemetry.log_every=3", **life)
    assert (second.summary["finished"], second.summary["stopped_by"]) == (True, None)
    assert "stopped as asked" not in second.err
    whole = runner.trained("whole", *words)
    assert list(second.losses) == [2, 3, 4] and list(whole.losses) == [1, 2, 3, 4]
    assert second.losses.items() <= whole.losses.items()
    assert second.records[0].keys() == whole.records[1].keys()


def test_the_clock_of_a_duration(tmp_path):
    at_once = requests.Requests(tmp_path, True, deadline=time.monotonic())
    later = requests.Requests(tmp_path, True, deadline=time.monotonic() + 3600)
    try:
        assert at_once.poll() == (False, True) and later.poll() == (False, False)
    finally:
        later.close()
        at_once.close()


@pytest.mark.parametrize(
    "text, seconds", [("0:00:30", 30), ("3:50:00", 13_800), ("90s", 90), ("1.5m", 90), ("2h", 7200), ("1d", 86_400)]
)
def test_durations(text, seconds):
    assert cli._seconds(text) == seconds


NO_DURATIONS = (
    *("", " 90s", "90 s", "90s\n", f"{'9' * 400}:00:00"),
    *("5", "0s", "s", "nan", "infs", "nans", "1e3s", "1_000s", "+5m", "90S"),
    *("1:00", "0:00:00", "1:60:00", "1:2:03", "1:2:x"),
    *("\u0661:00:00", "1:00:0\u00b2", "\u0665m"),  # digits, but not ours
)


@pytest.mark.parametrize("text", NO_DURATIONS)
def test_what_is_no_duration(text, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "quickstart", "--max-duration", text])
    assert stop.value.code == 2 and "is no duration; write 3:50:00" in capsys.readouterr().err


@pytest.mark.parametrize("pause, code", [(0.0, 0), (0.4, 128 + signal.SIGUSR1)])
def test_a_further_signal(tmp_path, pause, code):
    """At the same time it says the same; later on it ends the process at once."""
    program = (
        "import sys, time; from pathlib import Path; from crate_graph.resilience import requests\n"
        "requests.GRACE = 0.2; r = requests.Requests(Path(sys.argv[1]), True); print('ready', flush=True)\n"
        "end = time.monotonic() + 2.0\n"
        "while time.monotonic() < end: time.sleep(0.01)\n"
        "sys.exit(0 if r.poll() == (False, True) else 9)\n"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], **pipes, text=True)
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    time.sleep(pause)
    process.send_signal(signal.SIGUSR1)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert ("a further SIGUSR1 ends this process at once, without a save" in said) == (code != 0)
