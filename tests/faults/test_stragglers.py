"""The record of a run says which rank keeps the others waiting, and whether for data or for arithmetic."""

from pathlib import Path

import pytest

FAULTY = Path(__file__).with_name("slow_rank.py")
SHORT = ["schedule.max_steps=6", "telemetry.log_every=3"]


def train_with_a_slow_rank(runner, run, rank, how):
    return runner.train(run, *SHORT, world=2, program=[FAULTY, rank, how])


@pytest.mark.parametrize("rank, how", [(1, "forward"), (0, "data")])
def test_the_slow_rank_is_named(runner, rank, how):
    run = train_with_a_slow_rank(runner, how, rank, how)
    assert run.code == 0, run.err
    records = [record for record in run.records if "loss" in record]
    assert [record["step"] for record in records] == [3, 6]
    for record in records:
        assert record["slowest_rank"] == rank
        slow, other = ("slowest_forward_seconds", "slowest_data_wait_seconds")[:: 1 if how == "forward" else -1]
        assert record[slow] > record[other] and record[slow] > record["median_busy_seconds"] / 2


def test_one_process_keeps_nobody_waiting(runner):
    assert "slowest_rank" not in runner.trained("alone", *SHORT).records[0]


def test_slowness_changes_no_number(runner):
    assert train_with_a_slow_rank(runner, "slow", 1, "forward").losses == runner.trained("fast", *SHORT, world=2).losses
