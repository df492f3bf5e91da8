"""A run that stands still ends by itself with its stacks on disk, and goes on where it was."""

import json
from pathlib import Path

import pytest

FAULTY = Path(__file__).with_name("standing_still.py")
SHORT = ["watchdog={seconds: 4, first_seconds: 60}", "checkpoint.every_steps=5"]


def train_standing_still(runner, run, step, rank, how, *overrides, world=1):
    return runner.train(run, *SHORT, *overrides, world=world, program=[FAULTY, step, rank, how])


@pytest.mark.parametrize("engine", ["accelerate", "deepspeed"])
def test_one_rank_stands_still_and_both_say_where(runner, engine):
    """Rank 1 sleeps before step 12; rank 0 waits for it in a collective of that step."""
    unbroken = runner.trained(f"{engine}-unbroken", f"engine.name={engine}", *SHORT, world=2)
    assert not list((unbroken.run_dir / "logs").glob("*.hang.txt"))
    run = train_standing_still(runner, engine, 12, 1, "python", f"engine.name={engine}", world=2)
    assert run.code == 1 and not (run.run_dir / "summary.json").exists()
    assert "crate-graph: failed: rank" in run.err and "no progress for" in run.err
    stacks = [(run.run_dir / "logs" / f"rank-{rank}.hang.txt").read_text() for rank in range(2)]
    assert all(text.startswith(f"rank {rank}: no progress for") for rank, text in enumerate(stacks))
    assert "standing_still.py" in stacks[1] and "train/loop.py" in stacks[0]
    flights = [json.loads((run.run_dir / "logs" / f"rank-{rank}.flight.json").read_text()) for rank in range(2)]
    begun = [max(entry["collective_seq_id"] for entry in flight["entries"]) for flight in flights]
    assert begun[0] > begun[1]  # the record tells who is missing
    resumed = runner.trained(engine, f"engine.name={engine}", *SHORT, world=2)
    assert "going on from" in resumed.err and resumed.losses == unbroken.losses


def test_native_code_that_keeps_the_interpreter_is_ended_too(runner):
    run = train_standing_still(runner, "native", 12, 0, "native", "watchdog.first_seconds=15")
    assert run.code == 1
    assert "standing_still.py" in (run.run_dir / "logs" / "rank-0.hang.txt").read_text()


def test_times_that_contradict_each_other_are_refused(runner):
    run = runner.train("contradiction", "watchdog={seconds: 60, first_seconds: 10}")
    assert run.code == 2 and "watchdog.first_seconds=10 is below watchdog.seconds=60" in run.err


def test_watching_nothing(runner):
    run = runner.trained("unwatched", "watchdog.seconds=null")
    assert not list((run.run_dir / "logs").glob("*.hang.txt"))


def test_a_time_beyond_a_week_is_refused(runner):
    run = runner.train("endless", "watchdog={seconds: 1.0e+10, first_seconds: 1.0e+10}")
    assert run.code == 2 and "watchdog.seconds" in run.err and not run.run_dir.exists()
