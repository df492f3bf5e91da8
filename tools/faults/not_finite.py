"""Losses that are not finite: skipped, rolled back, given up."""

from __future__ import annotations

from fault_lab import RANKS, SAVE_EVERY, STEPS, WEIGHTS, Trial, expect


def not_finite_skipped(trial: Trial) -> tuple[str, str]:
    """NaN in the loss of one rank"""
    lab, step = trial.lab, 3 * SAVE_EVERY + 1
    for rank in RANKS:
        run = f"skipped-{rank}"
        lab.start(run, f"schedule.max_steps={step}", fault=("not_finite.py", step, step, rank)).end((0, 0))
        records = lab.records(run)
        expect([r["step"] for r in records if r["skipped"]] == [step], f"{run}: other steps were skipped")
        expect(lab.steps_of(run) == list(range(1, step + 1)), f"{run}: steps are missing")
        newest, before = lab.listed(run)[-1], lab.folder / "undisturbed" / "checkpoints" / f"step-{step - 1:08d}"
        for name in WEIGHTS[:2]:  # the average goes on towards the same weights
            expect((newest / name).read_bytes() == (before / name).read_bytes(), f"{run}: {name} differs")
    return f"{len(RANKS)}, once on each rank", "skipped on both: weights and optimizer are those of the step before"


def not_finite_rolled_back(trial: Trial) -> tuple[str, str]:
    """NaN on one rank in as many steps as `guard.max_consecutive_skips` allows"""
    lab = trial.lab
    for rank in RANKS:
        run = f"rolled-back-{rank}"
        lab.start(run, "guard.max_consecutive_skips=3", fault=("not_finite.py", 13, 15, rank)).end((0, 0))
        expect(lab.steps_of(run) == list(range(1, STEPS + 1)), f"{run}: steps are missing")
        known = [lab.losses(name)[:12] for name in (run, "undisturbed")]
        expect(known[0] == known[1], f"{run}: differs before the fault")
        expect('"event": "rollback", "to_step": 12' in (lab.folder / run / "metrics.jsonl").read_text(), "no rollback")
    lab.compare("rolled-back-0", to="rolled-back-1")
    what = (
        "back to the weights of the last checkpoint, on with the data after the fault; the same whichever rank it was"
    )
    return f"{len(RANKS)}, once on each rank", what


def not_finite_given_up(trial: Trial) -> tuple[str, str]:
    """NaN on one rank that does not end"""
    lab, run = trial.lab, "given-up"
    guard = ["guard.max_consecutive_skips=2", "guard.max_rollbacks=1"]
    life = lab.start(run, *guard, fault=("not_finite.py", 10, 999, 1))
    life.end((1, 1))
    expect("after 1 rollbacks" in life.text and "Traceback" not in life.text, "says no cause", life.text)
    expect(lab.listed(run)[-1].name == "step-00000009", "the last good checkpoint is not the newest")
    lab.start(run, *guard).end((0, 0))
    lab.compare(run)
    return "1", "exit code 1 with that cause after the roll-backs; without the fault the run goes on, equal"
