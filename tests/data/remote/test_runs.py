"""Whole runs on shards behind a server that fails, from the command line."""

import json
import re
import shutil

import pytest

from crate_graph.cli import main
from crate_graph.shipped import shipped_folder

SECRETS = ("hunter2", "s1gnature")


@pytest.fixture(scope="module")
def local(runner):
    return runner.trained("local", "checkpoint.every_steps=5")


@pytest.fixture
def images(serve, tmp_path):
    """The shipped images behind a server."""
    return serve(shutil.copytree(shipped_folder("datasets") / "fashion_mnist", tmp_path / "images"))


@pytest.fixture
def settings(tmp_path):
    """Overrides of a recipe: the cache of this test, and little patience."""
    quick = ("timeout=5", "retries=3", "backoff=0.01")
    return [f"data.cache.folder={tmp_path}/cache", *(f"data.remote.{word}" for word in quick)]


def test_two_processes_on_one_cache_through_faults(runner, local, images, settings):
    """As a local run, to the last sample; each shard comes once; no credential is left anywhere."""
    for kind in ("503", "drop", "hang up", "truncated", "drop"):
        images.fail("/train-*.tar", kind)
    address = f"{images.url.replace('://', '://me:hunter2@')}?sig=s1gnature"
    run = runner.trained("two", f"data.dataset={address}", "checkpoint.every_steps=5", *settings, world=2)
    assert list(run.losses) == list(local.losses)
    assert list(run.losses.values()) == pytest.approx(list(local.losses.values()), rel=1e-5)
    assert run.summary["metrics"]["loss"] == pytest.approx(local.summary["metrics"]["loss"], rel=1e-5)
    for number in range(16):
        shard = f"train-{number:06d}.tar"
        asked = images.answered(f"/{shard}")
        size = (images.folder / shard).stat().st_size
        assert sum(request.sent for request in asked if request.status in (200, 206)) <= size + size // 2
        assert len([request for request in asked if request.sent == size]) <= 1
    assert len(images.answered("/train-*.tar")) == 16 + 5
    files = [path.read_bytes() for path in run.run_dir.rglob("*") if path.is_file()]
    assert len(files) > 10
    for secret in SECRETS:
        assert secret not in run.out + run.err and not any(secret.encode() in content for content in files)
    assert images.url.removeprefix("http") in (run.run_dir / "recipe.yaml").read_text().replace("***@", "")


def test_a_shard_that_is_gone_stops_the_run_and_it_goes_on_when_it_is_back(runner, local, images, settings):
    """Exit code 1 with the shard's name; nothing is trained twice, and the losses are those of a local run."""
    images.fail("/train-000003.tar", "503", times=float("inf"))
    overrides = [f"data.dataset={images.url}", "checkpoint.every_steps=5", "data.shuffle_block=1", *settings]
    overrides += ["data.workers=2", "data.remote.retries=1"]
    run = runner.train("gone", *overrides)
    line = next(line for line in run.err.splitlines() if line.startswith("crate-graph: failed:"))
    assert run.code == 1 and f"{images.url}/train-000003.tar: HTTP 503 (2 tries)" in line
    assert "Traceback" not in run.err
    assert not (run.run_dir / "summary.json").exists()
    images.faults.clear()
    again = runner.trained("gone", *overrides)
    whole = runner.trained("plain", "checkpoint.every_steps=5", "data.shuffle_block=1")
    assert again.losses == whole.losses
    assert len(again.records) == len(whole.records)  # each step once


def test_evaluate_and_extract_at_an_address(local, images, settings, capsys, tmp_path):
    assert main(["evaluate", str(local.run_dir), "--data", "fashion_mnist", "--json"]) == 0
    here = json.loads(capsys.readouterr().out)
    images.fail("/test-*.tar", "drop")
    assert main(["evaluate", str(local.run_dir), "--data", images.url, "--json", *settings]) == 0
    assert json.loads(capsys.readouterr().out) == here


def verify(*words):
    return main(["shards", "verify", *map(str, words)])


def test_verify_at_an_address(images, capsys):
    images.fail("/train-000004.tar", "drop")
    assert verify(images.url, "--decode") == 0
    assert "20 shards, 12000 samples: all sound" in capsys.readouterr().out
    assert verify(f"{images.url}/test-000001.tar") == 0
    assert len(images.answered("/test-000001.tar")) == 2  # no copy in a cache is believed
    images.fail("/test-000001.tar", "changed", times=float("inf"))
    assert verify(images.url) == 2
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
    from crate_graph.config.schema import Remote

    assert verify(address.format(url=images.url)) == code
    out, err = capsys.readouterr()
    assert words in out + err and (out + err).count("\n") <= 2
    assert not any(secret in out + err for secret in SECRETS)
