"""Signals that ask a run to stop, and one that cannot."""

from __future__ import annotations

import time
from collections.abc import Callable
from signal import SIGTERM, SIGUSR1

from fault_lab import STEPS, Life, Trial, expect, step_of


def signals(trial: Trial) -> tuple[str, str]:
    """SIGUSR1 to one rank; SIGTERM to one; either to all ranks and loader workers; both at once"""
    lab, rng, run = trial.lab, trial.random, "signalled"
    ways: list[Callable[[Life], None]] = [
        lambda life: life.signal(SIGUSR1, 1),
        lambda life: life.signal(SIGTERM, 0),
        lambda life: life.signal_groups(SIGTERM),
        lambda life: life.signal_groups(SIGUSR1),
        lambda life: (life.signal_groups(SIGUSR1), life.signal_groups(SIGTERM)),
    ]
    for number, way in enumerate(ways):
        life = lab.start(run, "data.workers=2")
        expect(life.reaches(2 + 11 * number + rng.randrange(6)), "ended too soon", life.text)
        way(life)
        life.end((0, 0))
        step = step_of(lab.listed(run))
        expect(f"stopped as asked at step {step} of {STEPS}" in life.text, "not saved where it stopped", life.text)
        expect(lab.steps_of(run) == list(range(1, step + 1)), "steps are missing", life.text)
        lab.compare_so_far(run)
    lab.start(run).end((0, 0))
    lab.compare(run)
    return str(len(ways)), "both ranks save at the same step, exit code 0; the run goes on there, equal"


def second_signal(trial: Trial) -> tuple[str, str]:
    """A further SIGTERM, seconds later, to a run that stands still and cannot save"""
    lab, run = trial.lab, "impatient"
    life = lab.start(run, fault=("standing_still.py", 12, 0, "python"))
    expect(life.reaches(10), "ended too soon", life.text)
    time.sleep(0.5)
    life.signal_groups(SIGTERM)
    time.sleep(5.5)  # crate_graph.resilience.requests.GRACE
    expect(life.alive, "ended at the first signal", life.text)
    life.signal_groups(SIGTERM)
    life.end((128 + SIGTERM, 1))
    lab.compare_so_far(run)
    lab.start(run).end((0, 0))
    lab.compare(run)
    return "1", "ended at once, without a save; the run goes on from the checkpoint before, equal"
