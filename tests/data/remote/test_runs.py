"""Whole runs on shards behind a server that fails, from the command line."""

import json
import re
import shutil

import pytest

from crate_graph.cli import main
from crate_graph.config.schema import Remote
from crate_graph.data import plan_epoch
from crate_graph.shipped import shipped_folder

SECRETS = ("hunter2", "s1gnature")


@pytest.fixture
def images(serve, tmp_path):
    """The shipped images behind a server."""
    return serve(shutil.copytree(shipped_folder("datasets") / "fashion_mnist", tmp_path / "images"))


@pytest.fixture
def settings(tmp_path):
    """Overrides of a recipe: the cache of this test, and little patience."""
    quick = ("timeout=5", "retries=5", "backoff=0.01")
    return [f"data.cache.folder={tmp_path}/cache", *(f"data.remote.{word}" for word in quick)]


def shard_needed_last(shards):
    """Which shard of the recipe below is needed for the first time when the epoch is well under way."""
    plan = plan_epoch([shard.samples for shard in shards], seed=0, epoch=0, slots=2, global_batch=16, block=4)
    first_need = {}
    for step in range(plan.steps):
        for number in plan.batch(step).tolist():
            first_need.setdefault(number // 20, step)
    number, step = max(first_need.items(), key=lambda item: item[1])
    assert len(first_need) == 16 and step > 12
    return shards[number].name


@pytest.mark.timeout(900)
def test_a_run_through_faults_stops_with_the_shard_and_goes_on(runner, make_dataset, serve, settings, capsys):
    """One epoch, three times: on local shards; through faults, until one shard stays away; on to its end on two
    processes, when it is back. Losses equal the local ones, no shard comes twice, and no credential is left anywhere.
    """
    dataset = make_dataset((20,) * 16, size=(28, 28), channels=1)
    common = ["data.eval_split=train", "data.slots=2", "data.shuffle_block=4", "checkpoint.every_steps=5"]
    local = runner.trained("local", f"data.dataset={dataset.root}", *common)

    server = serve(dataset.root)
    lost = shard_needed_last(dataset.split("train").shards)
    server.fail(f"/{lost}", "503", times=float("inf"))
    for kind in ("503", "drop", "hang up", "truncated", "drop"):
        server.fail("/train-*.tar", kind)
    address = f"data.dataset={server.url.replace('://', '://me:hunter2@')}?sig=s1gnature"
    broken = runner.train("run", address, *common, *settings, "data.workers=2")
    line = next(line for line in broken.err.splitlines() if line.startswith("crate-graph: failed:"))
    assert broken.code == 1 and f"/{lost}?***: HTTP 503 (6 tries)" in line and "Traceback" not in broken.err
    assert len(broken.losses) > 10 and not (broken.run_dir / "summary.json").exists()

    server.faults.clear()
    run = runner.trained("run", address, *common, *settings, world=2)
    assert list(run.losses) == list(local.losses) == list(range(1, 21))
    assert list(run.losses.values()) == pytest.approx(list(local.losses.values()), rel=1e-5)
    assert run.summary["metrics"]["loss"] == pytest.approx(local.summary["metrics"]["loss"], rel=1e-5)
    for shard in dataset.split("train").shards:
        assert len([seen for seen in server.answered(f"/{shard.name}") if seen.sent == shard.bytes]) <= 1

    files = [path.read_bytes() for path in run.run_dir.rglob("*") if path.is_file()]
    assert len(files) > 10 and b"***@127.0.0.1" in (run.run_dir / "recipe.yaml").read_bytes()
    for secret in SECRETS:
        assert not any(secret in one.out + one.err for one in (run, broken))
        assert not any(secret.encode() in content for content in files)

    # what was trained is judged at the address, too
    capsys.readouterr()
    results = []
    for data, more in ((str(dataset.root), []), (server.url, settings)):
        assert main(["evaluate", str(run.run_dir), "--data", data, "--json", *more]) == 0
        results.append(json.loads(capsys.readouterr().out))
    assert results[0] == results[1]


def verify(*words):
    return main(["shards", "verify", *map(str, words)])


def test_verify_at_an_address(images, capsys):
    images.fail("/train-000004.tar", "drop")
    assert verify(images.url) == 0
    assert "20 shards, 12000 samples: all sound" in capsys.readouterr().out
    assert verify(f"{images.url}/test-000001.tar", "--decode") == 0
    assert len(images.answered("/test-000001.tar")) == 2  # no copy in a cache is believed
    images.fail("/test-000001.tar", "changed", times=float("inf"))
    assert verify(f"{images.url}/test-000001.tar") == 2
    assert re.search(r"test-000001\.tar: .*its sha256 is not the one in its index", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("address", "code", "words"),
    [
        ("gopher://host/shards", 2, "gopher:// is not an address"),
        ("{url}/nowhere", 2, "dataset.yaml: there is no such file (HTTP 404)"),
        ("{url}/nowhere.tar", 2, ""),
        ("http://me:hunter2@nowhere.invalid/a?sig=s1gnature", 1, "http://***@nowhere.invalid/a/dataset.yaml?***"),
        ("pipe:false hunter2 s1gnature", 1, "pipe:*** dataset.yaml: the command ended with exit code 1"),
    ],
)
def test_what_cannot_be_read_is_one_line(images, address, code, words, capsys, monkeypatch):
    monkeypatch.setattr("crate_graph.data.verify.Remote", lambda: Remote(retries=0))
    assert verify(address.format(url=images.url)) == code
    out, err = capsys.readouterr()
    assert words in out + err and (out + err).count("\n") <= 2
    assert not any(secret in out + err for secret in SECRETS)
