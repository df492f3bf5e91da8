"""Files that a run cannot do without, damaged: a shard, and each file of its newest checkpoint."""

from __future__ import annotations

import os
import shutil

from fault_lab import RANKS, Trial, expect
from spoil_shards import flip_bit


def truncated_shard(trial: Trial) -> tuple[str, str]:
    """A shard is cut off, while it is read and before a start"""
    lab, rng, run = trial.lab, trial.random, "truncated"
    data = shutil.copytree(lab.data, lab.folder / "truncated-data")
    words, shards = [f"data.dataset={data}"], sorted(data.glob("train-*.tar"))
    sound = {shard: shard.read_bytes() for shard in shards}
    life = lab.start(run, *words, fault=("slow_rank.py", 1, "forward"))
    expect(life.reaches(4), "ended too soon", life.text)
    for shard in shards:
        os.truncate(shard, 1024)
    codes = life.end()  # a rank that is still at work when the other has ended says so, with 1
    expect(2 in codes and set(codes) <= {1, 2}, f"ended with {codes}", life.text)
    expect(".tar: the shard ends before byte" in life.text and "Traceback" not in life.text, "no cause", life.text)
    for shard, content in sound.items():
        shard.write_bytes(content)
    steps, victim = lab.steps_of(run), rng.choice(shards)
    os.truncate(victim, victim.stat().st_size // 2)
    life = lab.start(run, *words)
    life.end((2, 2))
    expect(f"{victim}: the shard has" in life.text and "Traceback" not in life.text, "says no cause", life.text)
    expect(lab.steps_of(run) == steps, "something was trained")
    victim.write_bytes(sound[victim])
    lab.start(run, *words).end((0, 0))
    lab.compare(run)
    return "2", "exit code 2 with the name of the shard; with the shard whole again the run goes on, equal"


def flipped_checkpoint(trial: Trial) -> tuple[str, str]:
    """A flipped bit in a file of the newest checkpoint"""
    lab, rng, run = trial.lab, trial.random, "spoilt"
    life = lab.start(run)
    expect(life.reaches(20), "ended too soon", life.text)
    life.kill(*RANKS)
    life.end()
    newest = lab.listed(run)[-1]
    files = sorted(newest.iterdir())
    for file in files:
        content = file.read_bytes()
        flip_bit(file, rng.random())
        text = lab.told("checkpoint", "verify", str(newest), code=2)
        expect(str(file) in text, "the file is not named", text)
        life = lab.start(run)
        life.end((2, 2))
        expect(str(file) in life.text and "Traceback" not in life.text, "says no cause", life.text)
        file.write_bytes(content)
    flip_bit(rng.choice(files), rng.random())
    shutil.rmtree(newest)
    life = lab.start(run)
    life.end((0, 0))
    lab.compare(run)
    what = (
        "refused with the name of the file, exit code 2, also by `checkpoint verify`; when the operator has deleted it"
    )
    return f"{len(files)}, in each file once", f"{what} the run goes on from the one before, equal"
