"""A user's mistake: one line that names it, exit code 2, nothing half-made."""

import os
import resource
import shutil
import signal
import time

import pytest

from crate_graph.cli import main
from crate_graph.data.index import read_index


@pytest.fixture
def data(fashion, tmp_path):
    """A copy of the data set that a test may spoil."""
    return shutil.copytree(fashion, tmp_path / "data")


@pytest.fixture(scope="module")
def trained(runner):
    return runner.trained("trained", "checkpoint.every_steps=10")


def refused(run, *words):
    """Exit code 2 and one line with all the words; no traceback."""
    assert run.code == 2, run.err
    line = next(line for line in run.err.splitlines() if line.startswith("crate-graph: error:"))
    for word in words:
        assert str(word) in line, line
    assert "Traceback" not in run.err


def untouched(run):
    assert not run.run_dir.exists()


def test_missing_shard(runner, data, request):
    (data / "train-000002.tar").unlink()
    run = runner.train(request.node.name, f"data.dataset={data}")
    refused(run, "train-000002.tar")
    untouched(run)


def test_truncated_shard(runner, data, request):
    shard = data / "train-000001.tar"
    os.truncate(shard, shard.stat().st_size // 2)
    run = runner.train(request.node.name, f"data.dataset={data}")
    refused(run, "train-000001.tar")
    untouched(run)


def test_index_of_another_shard(runner, data, request):
    shutil.copy(data / "train-000000.tar.index.json", data / "train-000001.tar.index.json")
    run = runner.train(request.node.name, f"data.dataset={data}")
    refused(run, "train-000001.tar")
    untouched(run)


def test_label_out_of_range(runner, data, request):
    """A description with five classes for labels up to nine."""
    description = data / "dataset.yaml"
    lines = description.read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("classes:"))
    end = next(i for i in range(start + 1, len(lines) + 1) if i == len(lines) or not lines[i].startswith(("-", " ")))
    description.write_text("\n".join([*lines[:start], "classes: 5", *lines[end:]]))
    run = runner.train(request.node.name, f"data.dataset={data}", "data.workers=2")
    refused(run, "train-00000", "label", "5")


def spoil_images(data, every):
    """Cut off every so-many-th image of each training shard: its bytes are there, but they no longer decode."""
    for shard in sorted(data.glob("train-*.tar")):
        members = read_index(shard).compact
        spans = list(zip(members.image_offset.tolist(), members.image_size.tolist(), strict=True))
        with shard.open("r+b") as file:
            for offset, size in spans[::every]:
                file.seek(offset + size // 3)
                file.write(bytes(size - size // 3))


def test_damaged_images_within_the_budget(runner, data):
    """Replaced, counted, logged with shard and key; the same images whoever reads."""
    spoil_images(data, every=3)
    runs = [
        runner.trained(
            f"damaged-{workers}", f"data.dataset={data}", "data.damaged_budget=1.0", f"data.workers={workers}"
        )
        for workers in (0, 2)
    ]
    assert runs[0].losses == runs[1].losses
    counts = [run.summary["damaged_samples"] for run in runs]
    assert counts[0] == counts[1] and 50 < counts[0] < 200  # about a third of 320 samples
    log = (runs[0].run_dir / "logs" / "rank-0.log").read_text()
    assert log.count("damaged sample replaced") == counts[0] and "train-00000" in log


def test_damaged_images_over_the_budget(runner, data, request):
    spoil_images(data, every=3)
    run = runner.train(request.node.name, f"data.dataset={data}")
    refused(run, "over the budget of 10", "shards verify")
    assert not (run.run_dir / "summary.json").exists()


def test_flipped_bit_in_a_checkpoint(runner, trained, tmp_path):
    shutil.copytree(trained.run_dir, runner.folder / "flipped")
    weights = runner.folder / "flipped" / "checkpoints" / "step-00000020" / "model.safetensors"
    spoiled = bytearray(weights.read_bytes())
    spoiled[-5] ^= 1
    weights.write_bytes(spoiled)
    run = runner.train("flipped", "schedule.max_steps=30")
    refused(run, weights, "sha256")
    assert len(run.losses) == 20


def test_checkpoint_of_another_architecture(runner, trained):
    checkpoint = trained.run_dir / "checkpoints" / "step-00000020"
    run = runner.train("wider", "model.kwargs.embed_dim=48", options=["--resume", str(checkpoint)])
    refused(run, checkpoint, "another architecture")
    untouched(run)


def test_going_back_inside_a_run_is_refused(runner, trained):
    """Its later checkpoints are not silently kept in the place of new ones."""
    earlier = trained.run_dir / "checkpoints" / "step-00000010"
    run = runner.train("trained", "schedule.max_steps=30", options=["--resume", str(earlier)])
    refused(run, "step 20", "--run-dir")
    elsewhere = runner.trained("elsewhere", options=["--resume", str(earlier)])
    assert elsewhere.losses == {step: loss for step, loss in trained.losses.items() if step > 10}


def test_repeating_a_finished_run_changes_nothing(runner):
    first = runner.trained("repeated")
    names = ("summary.json", "environment.json", "metrics.jsonl", "recipe.yaml")
    before = [(first.run_dir / name).read_bytes() for name in names]
    again = runner.trained("repeated")
    assert "is where the recipe ends" in again.err
    assert [(first.run_dir / name).read_bytes() for name in names] == before


def test_a_folder_that_only_looks_like_a_checkpoint_gives_way(runner):
    (runner.folder / "occupied" / "checkpoints" / "step-00000020").mkdir(parents=True)
    run = runner.trained("occupied")
    assert (run.run_dir / "checkpoints" / "step-00000020" / "manifest.json").exists()


@pytest.mark.parametrize(
    "override",
    [
        "data.eval_transform.size=35",
        "model.kwargs.patch_size=5",
        "model.kwargs.patch_size=0",
        "model.kwargs.embed_dim=abc",
        "model.kwargs.depth=0",
        "model.kwargs.num_classes=3",
        "model.kwargs.in_chans=3",
        "model.name=crate_tinny",
        "data.dataset=fashion",
        "data.eval_split=val",
        "name=../elsewhere",
        "seed=20241101120000",
        "model.init_from=~nobody_of_that_name/run",
        "data.root=~nobody_of_that_name/data",
    ],
)
def test_a_refused_recipe_leaves_no_folder(runner, override, capfd):
    """In this process, since nothing is trained."""
    run_dir = runner.folder / "refused"
    code = main(["train", str(runner.recipe), override, "--run-dir", str(run_dir)])
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("crate-graph: error:")]
    assert code == 2 and len(lines) == 1
    key, _, value = override.partition("=")
    assert value in lines[0] or key.rpartition(".")[2] in lines[0] or "no user of that name" in lines[0]
    assert key != "model.init_from" or (key in lines[0] and value in lines[0])
    assert not run_dir.exists()


def test_resume_never_spares_an_old_run(runner, trained):
    before = (trained.run_dir / "metrics.jsonl").read_bytes()
    refused(runner.train("trained", options=["--resume", "never"]), "step 20", "--run-dir")
    assert (trained.run_dir / "metrics.jsonl").read_bytes() == before


def test_run_folder_that_cannot_be_written(runner):
    (runner.folder / "a_file").write_text("")
    refused(runner.train("a_file/run"), "a_file/run", "--run-dir")


def test_two_runs_in_one_folder(runner):
    first = runner.start("shared", "schedule.max_steps=600")
    wait_for(runner.folder / "shared" / "metrics.jsonl", first)
    refused(runner.train("shared"), "another run")
    first.send_signal(signal.SIGTERM)
    ended = runner.finish(first, "shared")
    assert ended.code == 0 and not ended.summary["finished"]


def test_batch_that_does_not_divide(runner):
    run = runner.train("indivisible", "batch.micro_batch=3")
    refused(run, "batch.micro_batch=3", "divides 16")
    untouched(run)


def test_mistake_on_two_processes_ends_both(runner):
    run = runner.train("indivisible-2", "batch.micro_batch=3", world=2)
    assert run.code != 0 and run.err.count("crate-graph: error:") == 2


def test_disk_full_during_a_save(runner):
    """Files may not grow over a few kilobytes any more: the save fails in its middle, as on a full disk."""
    process = runner.start("full", "schedule.max_steps=3000", "checkpoint.every_steps=20")
    checkpoints = runner.folder / "full" / "checkpoints"
    wait_for(checkpoints / "step-00000020", process)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (40_000, 40_000))
    run = runner.finish(process, "full")
    refused(run, checkpoints, "could not be saved")
    left = sorted(path.name for path in checkpoints.iterdir())
    assert left and all(name.startswith("step-") for name in left)  # nothing half-made
    went_on = runner.train("full", f"schedule.max_steps={int(left[-1][5:]) + 20}")
    assert went_on.code == 0 and f"going on from {checkpoints / left[-1]}" in went_on.err


def wait_for(path, process):
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
