"""Shards that come over a network that fails."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from failing_server import FailingServer, s3_store
from fault_lab import RANKS, SHARDS, Trial, expect
from proof_runs import Skipped


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
