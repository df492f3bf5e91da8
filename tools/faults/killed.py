"""Processes that end without a word: ranks, in training, inside a save and in the start, and loader workers."""

from __future__ import annotations

import os
import random
import time
from dataclasses import dataclass
from signal import SIGKILL

from fault_lab import DEADLINE, RANKS, STEPS, Life, Trial, expect, step_of
from watch_saves import SaveWatch

MOST_KILLS = 3  # for each one that was asked for, until enough have hit inside a save


@dataclass
class Kills:
    """Where the processes of a run were when they were killed."""

    wanted: int
    wanted_in_save: int
    in_save: int = 0
    training: int = 0
    starting: int = 0
    runs: int = 0

    @property
    def number(self) -> int:
        return self.in_save + self.training + self.starting

    @property
    def missing(self) -> int:
        """How many are still to come: some more than were asked for, where too few hit inside a save."""
        return max(self.wanted - self.number, self.wanted_in_save - self.in_save, 0)


def kills(trial: Trial) -> tuple[str, str]:
    """SIGKILL of one rank or of both, at random moments, the saves among them"""
    done = Kills(trial.kills, max(1, trial.kills // 5))
    while done.missing:
        done.runs += 1
        kill_and_go_on(trial, f"killed-{done.runs}", done)
        enough = not done.missing or done.number < MOST_KILLS * trial.kills
        expect(enough, f"only {done.in_save} of {done.number} kills hit inside a save")
    where = f"{done.in_save} inside a save, {done.training} in training, {done.starting} in the start"
    how_often = f"{done.number} in {done.runs} run{'s' if done.runs > 1 else ''}: {where}"
    return how_often, "no half-made checkpoint was picked up; each run goes on to its end, equal"


def kill_and_go_on(trial: Trial, run: str, done: Kills) -> None:
    """One run, killed and started again until its end or until there were enough kills."""
    lab = trial.lab
    while done.missing and kill_once(trial, run, done):
        lab.compare_so_far(run)
    lab.start(run).end((0, 0))
    lab.compare(run)


def kill_once(trial: Trial, run: str, done: Kills) -> bool:
    """One life of a run and its end by SIGKILL; False where it came to its own end before."""
    lab, rng = trial.lab, trial.random
    aim = rng.choices(("save", "step", "start"), (5, 4, 1))[0]
    if done.missing <= done.wanted_in_save - done.in_save:
        aim = "save"
    victims = RANKS if aim == "start" else rng.choice((RANKS, RANKS, RANKS[:1], RANKS[1:]))
    listed = lab.listed(run)
    with SaveWatch(lab.folder / run / "checkpoints") as watch:
        life = lab.start(run, f"data.workers={rng.choice((0, 1, 2))}")
        moment = {"save": in_a_save, "step": at_a_step, "start": in_the_start}[aim]
        if moment(life, rng, step_of(listed), watch):
            life.kill(*victims)
    codes = life.end()
    allowed = [(-SIGKILL, 0) if rank in victims else (0, 1) for rank in RANKS]  # 0: it had just finished
    expect(all(map(tuple.__contains__, allowed, codes)), f"{run}: ended with {codes}", life.text)
    went_on = (f"going on from {listed[-1]}\n", f"{listed[-1]} is where the recipe ends\n") if listed else ("",)
    expect(aim == "start" or any(each in life.text for each in went_on), f"{run}: took another checkpoint", life.text)
    if -SIGKILL not in codes:
        return False
    if list((lab.folder / run / "checkpoints").glob(".writing-*")):
        done.in_save += 1
    elif aim == "start":
        done.starting += 1
    else:
        done.training += 1
    return True


def in_a_save(life: Life, rng: random.Random, first: int, watch: SaveWatch) -> bool:
    """Wait until some time after a save has begun: no longer than the saves before it took."""
    sentinels, deadline, took = [process.sentinel for process in life.ranks], time.monotonic() + DEADLINE, []
    for _ in range(rng.randint(1, 4)):
        if not watch.begins(sentinels, deadline):
            return False
        began = time.monotonic()
        if not watch.ends(sentinels, deadline):
            return False
        took.append(time.monotonic() - began)
    if not watch.begins(sentinels, deadline):
        return False
    time.sleep(rng.uniform(0, min(took)))
    return True


def at_a_step(life: Life, rng: random.Random, first: int, watch: SaveWatch) -> bool:
    reached = life.reaches(min(STEPS, first + rng.randint(1, 25)))
    time.sleep(rng.uniform(0, 0.03))
    return reached


def in_the_start(life: Life, rng: random.Random, first: int, watch: SaveWatch) -> bool:
    time.sleep(rng.uniform(0, 0.7))
    return True


def loader_workers(trial: Trial) -> tuple[str, str]:
    """SIGKILL of a loader worker, as by the OOM killer"""
    lab, rng, times = trial.lab, trial.random, 4
    for number in range(times):
        life = lab.start("workers", "data.workers=2")
        expect(life.reaches(4 + 12 * number + rng.randrange(6)), "ended too soon", life.text)
        os.kill(rng.choice(life.workers(rng.choice(RANKS))), SIGKILL)
        life.end((1, 1))
        expect("a loader process was killed" in life.text, "says no cause", life.text)
        lab.compare_so_far("workers")
    lab.start("workers", "data.workers=2").end((0, 0))
    lab.compare("workers")
    return str(times), "exit code 1 with that cause; the run goes on, equal"
