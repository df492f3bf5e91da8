"""Tries faults on real runs of two processes and prints, as a table, what came of each.

    .venv/bin/python tools/fault_table.py                        # all of it: some minutes
    .venv/bin/python tools/fault_table.py --only kills --kills 6 # one row
    .venv/bin/python tools/fault_table.py --work DIR             # keeps the runs, with what they said in DIR/logs

Each run is compared with one that nobody disturbed: every step trained exactly once, every loss equal in every bit,
and so are weights, optimizer and average of the last checkpoint. A row that does not survive says FAILED, and the exit
code is 1. `disk_full` needs root, since it mounts a small disk; `s3` needs the test extras. What cannot run says why.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGTERM, SIGUSR1
from signal import signal as set_handler

from failing_server import FailingServer, s3_store
from fault_lab import DEADLINE, EPOCHS, RANKS, SAMPLES, SAVE_EVERY, SHARDS, STEPS, WEIGHTS, Lab, Life, expect
from launcher_proof import Skipped, launcher
from spoil_shards import cut_images, flip_bit, flip_bits_of_images, flip_bits_of_labels, replace_samples
from watch_saves import SaveWatch

RECORDS = 48_000  # bytes that a life of a run needs besides its checkpoints


@dataclass
class Trial:
    """What a row is given."""

    lab: Lab
    random: random.Random
    kills: int


@dataclass
class Kills:
    """Where the processes of a run were when they were killed."""

    in_save: int = 0
    training: int = 0
    starting: int = 0
    runs: int = 0

    @property
    def number(self) -> int:
        return self.in_save + self.training + self.starting


def torchrun(trial: Trial) -> tuple[str, str]:
    """Nothing, to a run that torchrun starts as users do"""
    lab, run = trial.lab, "torchrun"
    command = [launcher("torchrun.sh"), *lab.words(run)]
    environment = {**os.environ, "PROCS_PER_NODE": "2"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=DEADLINE)
    expect(done.returncode == 0, f"ended with {done.returncode}", done.stderr)
    lab.compare(run)
    return "1", "equal to the run with which all below are compared"


def kills(trial: Trial) -> tuple[str, str]:
    """SIGKILL of one rank or of both, at random moments, the saves among them"""
    wanted_in_save = max(1, trial.kills // 5)
    done = Kills()
    while done.number < trial.kills:
        done.runs += 1
        kill_and_go_on(trial, f"killed-{done.runs}", done, wanted_in_save)
    expect(done.in_save >= wanted_in_save, f"only {done.in_save} of {done.number} kills hit inside a save")
    where = f"{done.in_save} inside a save, {done.training} in training, {done.starting} in the start"
    how_often = f"{done.number} in {done.runs} run{'s' if done.runs > 1 else ''}: {where}"
    return how_often, "no half-made checkpoint was picked up; each run goes on to its end, equal"


def kill_and_go_on(trial: Trial, run: str, done: Kills, wanted_in_save: int) -> None:
    """One run, killed and started again until its end or until there were enough kills."""
    lab = trial.lab
    while done.number < trial.kills and kill_once(trial, run, done, wanted_in_save - done.in_save):
        lab.compare_so_far(run)
    lab.start(run).end((0, 0))
    lab.compare(run)


def kill_once(trial: Trial, run: str, done: Kills, wanted_in_save: int) -> bool:
    """One life of a run and its end by SIGKILL; False where it came to its own end before."""
    lab, rng = trial.lab, trial.random
    aim = rng.choices(("save", "step", "start"), (5, 4, 1))[0]
    if wanted_in_save >= trial.kills - done.number:
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
    went_on = f"going on from {listed[-1]}\n" if listed else ""
    expect(aim == "start" or went_on in life.text, f"{run}: took another checkpoint", life.text)
    if -SIGKILL not in codes:
        return False
    if list((lab.folder / run / "checkpoints").glob(".writing-*")):
        done.in_save += 1
    elif aim == "start":
        done.starting += 1
    else:
        done.training += 1
    return True


def step_of(checkpoints: list[Path]) -> int:
    """The step of the newest one."""
    return int(checkpoints[-1].name[5:]) if checkpoints else 0


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


def disk_full(trial: Trial) -> tuple[str, str]:
    """No space left on the disk"""
    lab, in_save = trial.lab, 0
    one = size_of(lab.folder / "undisturbed" / "checkpoints" / f"step-{STEPS:08d}")
    rooms = (8_000, *(RECORDS + int(share * one) for share in (0.1, 0.3, 0.5, 0.7, 0.9)))  # bytes
    with small_disk(lab.folder / "disk", "4m") as disk:
        lab.start("disk/run", f"schedule.max_steps={3 * SAVE_EVERY}").end((0, 0))
        for room in rooms:
            fill(disk, room)
            life = lab.start("disk/run")
            codes = life.end()
            expect(codes[0] == 2 and codes[1] in (1, 2), f"ended with {codes}", life.text)
            line = next(line for line in life.text.splitlines() if line.startswith("crate-graph: error:"))
            expect(str(disk) in line and "No space left on device" in line and "make room" in line, "no cause", line)
            expect("Traceback" not in life.text, "a traceback", life.text)
            in_save += "could not be saved" in line
            (disk / "ballast").unlink()
            expect(not list((disk / "run" / "checkpoints").glob(".*")), "something half-made is left", life.text)
            lab.compare_so_far("disk/run")
        lab.start("disk/run").end((0, 0))
        lab.compare("disk/run")
    expect(in_save >= 3, f"only {in_save} saves met the full disk")
    what = "exit code 2, nothing half-made; with room again the run goes on, equal"
    return f"{len(rooms)}, of which {in_save} inside a save", what


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    if os.geteuid() != 0:
        raise Skipped("needs root, to mount a small disk")
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if (done := subprocess.run(mount, capture_output=True, text=True)).returncode:
        raise Skipped(f"no disk can be mounted ({done.stderr.strip()})")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path, room: int) -> None:
    """Leave so many bytes of room, in whole blocks."""
    about = os.statvfs(disk)
    with (disk / "ballast").open("wb") as ballast:
        os.posix_fallocate(ballast.fileno(), 0, max(1, about.f_bavail * about.f_frsize - room))


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


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
        known = [numbers_of(lab, name)[:12] for name in (run, "undisturbed")]
        expect(known[0] == known[1], f"{run}: differs before the fault")
        expect('"event": "rollback", "to_step": 12' in (lab.folder / run / "metrics.jsonl").read_text(), "no rollback")
    lab.compare("rolled-back-0", to="rolled-back-1")
    what = (
        "back to the weights of the last checkpoint, on with the data after the fault; the same whichever rank it was"
    )
    return f"{len(RANKS)}, once on each rank", what


def numbers_of(lab: Lab, run: str) -> list[float]:
    return [record["loss"] for record in lab.records(run)]


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
        lab.call(flip_bits_of_labels, folder, [shard * SAMPLES // SHARDS], rng.random())
        text = lab.told("shards", "verify", str(folder), code=2)
        expect(f"train-{shard:06d}.tar" in text, "the shard is not named", text)
    return f"{number}, in a shard each", "`crate-graph shards verify` names the shard; training does not look"


def spoilt_copies(trial: Trial, name: str, samples: list[int], spoil: Callable) -> tuple[Path, Path]:
    """The data with `samples` spoilt, and with the next good ones already in their place."""
    lab = trial.lab
    damaged, replaced = (lab.folder / f"{name}-{kind}" for kind in ("damaged", "replaced"))
    for folder in (damaged, replaced):
        shutil.copytree(lab.data, folder)
    lab.call(spoil, damaged, samples, trial.random.random())
    lab.call(replace_samples, replaced, samples)
    return damaged, replaced


def train_on_replaced(lab: Lab, name: str, data: Path) -> str:
    run = f"{name}-undisturbed"
    lab.start(run, f"data.dataset={data}").end((0, 0))
    expect(numbers_of(lab, run) != numbers_of(lab, "undisturbed"), "the damage makes no difference")
    return run


def expect_damage(lab: Lab, run: str, number: int) -> None:
    found = lab.records(run)[-1]["damaged_total"]
    expect(found == number, f"{run}: {found} damaged samples were counted instead of {number}")


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
    life.end((2, 2))
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


def http(trial: Trial) -> tuple[str, str]:
    """Shards on an HTTP server that drops connections, answers 503, hangs up, stalls, sends half of a file"""
    with FailingServer(trial.lab.data) as server:
        return through_faults(trial, "http", server, [f"data.dataset={server.url}"])


def s3(trial: Trial) -> tuple[str, str]:
    """The same before a store of S3"""
    absent = [name for name in ("boto3", "moto") if find_spec(name) is None]
    if absent:
        raise Skipped(f"{', '.join(absent)} not installed; it comes with the extra test")
    keys = {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none"}
    keys |= {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
    with s3_store() as store, FailingServer(trial.lab.data, upstream=store) as front:
        upload(trial.lab.data, store)
        settings = ["data.dataset=s3://faults/small", f"data.remote.s3_endpoint={front.url}"]
        return through_faults(trial, "s3", front, settings, **keys)


def upload(data: Path, store: str) -> None:
    import boto3

    client = boto3.client(
        "s3", endpoint_url=store, region_name="us-east-1", aws_access_key_id="none", aws_secret_access_key="none"
    )
    client.create_bucket(Bucket="faults")
    for file in data.iterdir():
        client.upload_file(str(file), "faults", f"small/{file.name}")


def through_faults(
    trial: Trial, run: str, server: FailingServer, settings: list[str], **environment: str
) -> tuple[str, str]:
    """A run through one fault of each kind, killed half-way; one from which a shard stays away."""
    lab, rng = trial.lab, trial.random
    quick = ("timeout=1", "retries=4", "backoff=0.02", "read_ahead=0")
    settings = [*settings, "data.workers=1", *(f"data.remote.{word}" for word in quick)]
    kinds = ("drop", "503", "hang up", "stall", "truncated") * 2
    for kind, shard in zip(kinds, rng.sample(range(SHARDS), len(kinds)), strict=True):
        server.fail(f"*/train-{shard:06d}.tar", kind)
    words = [f"data.cache.folder={lab.folder / run}-cache", *settings]
    life = lab.start(run, *words, **environment)
    expect(life.reaches(rng.randint(8, 50)), "ended too soon", life.text)
    life.kill(*RANKS)
    life.end()
    lab.compare_so_far(run)
    lab.start(run, *words, **environment).end((0, 0))
    lab.compare(run)
    met = len(kinds) - sum(fault.times for fault in server.faults)
    expect(met == len(kinds), f"only {met} of {len(kinds)} faults were met")
    lost = f"train-{rng.randrange(SHARDS):06d}.tar"
    server.fail(f"*/{lost}", "503", times=float("inf"))
    words[0] = f"data.cache.folder={lab.folder / run}-cache-2"
    life = lab.start(f"{run}-lost", *words, **environment)
    life.end((1, 1))
    expect(f"/{lost}: HTTP 503 (5 tries)" in life.text and "Traceback" not in life.text, "says no cause", life.text)
    server.faults.clear()
    lab.start(f"{run}-lost", *words, **environment).end((0, 0))
    lab.compare(f"{run}-lost")
    what = "fetched again or on from where it broke, equal, killed half-way too; a shard that stays away ends the run"
    return f"{len(kinds)} faults, 1 lost shard", f"{what} by name, exit code 1; when it is back the run goes on, equal"


ROWS: dict[str, Callable[[Trial], tuple[str, str]]] = {
    row.__name__: row
    for row in (
        torchrun,
        kills,
        loader_workers,
        disk_full,
        not_finite_skipped,
        not_finite_rolled_back,
        not_finite_given_up,
        slow_rank,
        standing_still,
        signals,
        second_signal,
        damaged_samples,
        flipped_bits,
        flipped_labels,
        truncated_shard,
        flipped_checkpoint,
        http,
        s3,
    )
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=ROWS, metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--kills", type=int, default=50, metavar="N", help="how many kills the row `kills` makes (50)")
    parser.add_argument("--seed", type=int, default=0, help="of every random choice (0)")
    parser.add_argument("--work", type=Path, metavar="DIR", help="a new folder for the runs, which is kept")
    args = parser.parse_args(argv)
    if args.work is not None and args.work.exists():
        print(f"fault_table: error: {args.work}: exists already; name a new folder", file=sys.stderr)
        return 2
    for number in (SIGINT, SIGTERM):
        set_handler(number, lambda *_: sys.exit(1))  # leaves the blocks, so that no process is left behind
    place = nullcontext(args.work) if args.work else tempfile.TemporaryDirectory(prefix="fault-table-")
    with place as folder, Lab(Path(folder).absolute()) as lab:
        return prove(lab, list(dict.fromkeys(args.only or ROWS)), args.kills, args.seed)


def prove(lab: Lab, names: list[str], number_of_kills: int, seed: int) -> int:
    failed = 0
    print("| what was done | how often | what came of it |\n|---|---|---|", flush=True)
    for name in names:
        row, started = ROWS[name], time.monotonic()
        try:
            how_often, outcome = row(Trial(lab, random.Random(f"{seed} {name}"), number_of_kills))
        except Skipped as reason:
            how_often, outcome = "0", f"skipped: {reason}"
        except (AssertionError, OSError, subprocess.SubprocessError) as error:
            failed += 1
            how_often, outcome = "", f"FAILED: {str(error).partition(chr(10))[0]}"
            print(f"--- {name}\n{error}", file=sys.stderr)
        lab.stop()
        print(f"| {row.__doc__} | {how_often} | {outcome} |", flush=True)
        print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
