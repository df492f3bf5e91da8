"""A rank for which the other one waits, for a while or for ever."""

from __future__ import annotations

from fault_lab import SAVE_EVERY, Trial, expect


def slow_rank(trial: Trial) -> tuple[str, str]:
    """One rank half a second slower in each step"""
    lab, steps, cases = trial.lab, 2 * SAVE_EVERY, ((1, "forward"), (0, "data"))
    for rank, how in cases:
        run, more = f"slow-{how}", [f"schedule.max_steps={steps}", f"telemetry.log_every={SAVE_EVERY}"]
        lab.start(run, *more, fault=("slow_rank.py", rank, how)).end((0, 0))
        records = lab.records(run)
        expect([record["step"] for record in records] == [SAVE_EVERY, steps], f"{run}: other steps were recorded")
        for record in records:
            seconds = [record["slowest_data_wait_seconds"], record["slowest_forward_seconds"]]
            named = record["slowest_rank"] == rank and seconds.index(max(seconds)) == ("data", "forward").index(how)
            expect(named, f"{run}: the record names another cause: {record}")
        lab.compare_so_far(run)
    how_often = f"{len(cases)}: in its forward passes, in its data"
    return how_often, "metrics.jsonl names the rank and whether data or arithmetic; equal"


def standing_still(trial: Trial) -> tuple[str, str]:
    """One rank stands still"""
    lab, watchdog = trial.lab, "watchdog={seconds: 4, first_seconds: 60}"
    cases = ((1, "python"), (0, "native"))
    for rank, how in cases:
        run = f"still-{how}"
        life = lab.start(run, watchdog, fault=("standing_still.py", 12, rank, how))
        life.end((1, 1))
        stacks = (lab.folder / run / "logs" / f"rank-{rank}.hang.txt").read_text()
        expect("standing_still.py" in stacks, f"{run}: its stack is not on disk", life.text)
        lab.start(run, watchdog).end((0, 0))
        lab.compare(run)
    how_often = f"{len(cases)}: in Python, and in native code that keeps the interpreter"
    return how_often, "after `watchdog.seconds` both exit with code 1, stacks in logs/; the run goes on, equal"
