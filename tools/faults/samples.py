"""Samples that are damaged: within the budget of a run, beyond it, and where only `shards verify` looks."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from fault_lab import EPOCHS, SAMPLES, SHARDS, Lab, Trial, expect
from spoil_shards import cut_images, flip_bits_of_images, flip_bits_of_labels, replace_samples


def damaged_samples(trial: Trial) -> tuple[str, str]:
    """Pictures that are cut off, as many as `data.damaged_budget` allows, and one more"""
    lab, rng, number = trial.lab, trial.random, 24
    damaged, replaced = spoilt_copies(trial, "cut", rng.sample(range(SAMPLES), number), cut_images)
    run = train_on_replaced(lab, "cut", replaced)
    budget = f"data.damaged_budget={number / SAMPLES}"
    lab.start("cut", f"data.dataset={damaged}", budget, "data.workers=1").end((0, 0))
    lab.compare("cut", to=run)
    expect_damage(lab, "cut", EPOCHS * number)
    less = f"data.damaged_budget={(number - 1) / SAMPLES}"
    life = lab.start("cut-too-many", f"data.dataset={damaged}", less)
    life.end((2, 2))
    expect(f"{number} damaged samples" in life.text, "says no cause", life.text)
    logs = "".join(log.read_text() for log in (lab.folder / "cut-too-many" / "logs").glob("rank-*.log"))
    expect(logs.count("damaged sample replaced: DamagedSample(shard='train-0000") >= number, "not logged", logs)
    lab.start("cut-too-many", f"data.dataset={damaged}", budget).end((0, 0))
    lab.compare("cut-too-many", to=run)
    what = "replaced, counted, logged with shard and key, equal to shards in which they were replaced before; one more:"
    return f"{number} of {SAMPLES}", f"{what} exit code 2, and with a larger budget the run goes on, equal"


def flipped_bits(trial: Trial) -> tuple[str, str]:
    """A flipped bit in a picture, anywhere in it"""
    lab, rng, number = trial.lab, trial.random, 40
    damaged, replaced = spoilt_copies(trial, "flipped", rng.sample(range(SAMPLES), number), flip_bits_of_images)
    run = train_on_replaced(lab, "flipped", replaced)
    lab.start("flipped", f"data.dataset={damaged}", f"data.damaged_budget={number / SAMPLES}").end((0, 0))
    lab.compare("flipped", to=run)
    expect_damage(lab, "flipped", EPOCHS * number)
    lab.told("shards", "verify", str(damaged), code=2)
    return f"{number} pictures", "each found by its checksum, replaced, counted; equal as above"


def flipped_labels(trial: Trial) -> tuple[str, str]:
    """A flipped bit in a label"""
    lab, rng = trial.lab, trial.random
    number = SHARDS // 2
    for shard in rng.sample(range(SHARDS), number):
        folder = shutil.copytree(lab.data, lab.folder / f"label-{shard}")
        flip_bits_of_labels(folder, [shard * SAMPLES // SHARDS], rng.random())
        text = lab.told("shards", "verify", str(folder), code=2)
        expect(f"train-{shard:06d}.tar" in text, "the shard is not named", text)
    return f"{number}, in a shard each", "`crate-graph shards verify` names the shard; training does not look"


def spoilt_copies(trial: Trial, name: str, samples: list[int], spoil: Callable) -> tuple[Path, Path]:
    """The data with `samples` spoilt, and with the next good ones already in their place."""
    lab = trial.lab
    damaged, replaced = (lab.folder / f"{name}-{kind}" for kind in ("damaged", "replaced"))
    for folder in (damaged, replaced):
        shutil.copytree(lab.data, folder)
    spoil(damaged, samples, trial.random.random())
    replace_samples(replaced, samples)
    return damaged, replaced


def train_on_replaced(lab: Lab, name: str, data: Path) -> str:
    run = f"{name}-undisturbed"
    lab.start(run, f"data.dataset={data}").end((0, 0))
    expect(lab.losses(run) != lab.losses("undisturbed"), "the damage makes no difference")
    return run


def expect_damage(lab: Lab, run: str, number: int) -> None:
    found = lab.records(run)[-1]["damaged_total"]
    expect(found == number, f"{run}: {found} damaged samples were counted instead of {number}")
