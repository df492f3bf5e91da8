"""`evaluate` for restoration: checkpoints and methods, on data sets and folders, whole and in tiles, alone or not."""

import json
import math
import shutil

import pytest
from PIL import Image

from crate_graph.checkpoint.manifest import seal
from crate_graph.cli import main
from crate_graph.data.photographs import SMALLEST
from crate_graph.tasks.metrics import SSIM_WINDOW

METRICS = {"loss", "psnr", "ssim", "psnr_pooled", "ssim_float"}


@pytest.fixture(scope="module")
def trained(restoration):
    return restoration.trained(
        "trained",
        "schedule.max_steps=40",
        "ema.decay=0.9",
        "telemetry.tensorboard=true",
        "evaluation.every_epochs=10",
        "checkpoint.every_epochs=10",
    )


@pytest.fixture
def evaluate(capsys):
    """The verb in this process, which has imported everything already: what it reports."""

    def run(*words):
        capsys.readouterr()
        code = main(["evaluate", *map(str, words), "--json"])
        printed = capsys.readouterr()
        assert code == 0, printed.err
        return json.loads(printed.out)

    return run


@pytest.fixture
def refused(capsys):
    """The one line that the verb ends with, exit code 2."""

    def run(*words):
        capsys.readouterr()
        code = main(["evaluate", *map(str, words)])
        printed = capsys.readouterr()
        assert code == 2 and not printed.out and len(printed.err.splitlines()) == 1, printed
        return printed.err

    return run


def test_evaluate_equals_what_training_measured(evaluate, forks, trained, photographs):
    """Three pictures on two processes: one of them gets a blank one."""
    expected = trained.summary["metrics"]
    assert expected.keys() == METRICS
    shards, folder = photographs / "shards", photographs / "pictures" / "test"
    shared = json.loads(forks.run("evaluate", trained.run_dir, "--data", folder, "--json", world=2).stdout)
    for result in (evaluate(trained.run_dir, "--data", shards), evaluate(trained.run_dir, "--data", folder), shared):
        assert result["samples"] == 3 and result["damaged"] == 0 and result["step"] == 40
        assert {name: result[name] for name in METRICS} == pytest.approx(expected, rel=1e-6)


def test_exported_weights_measure_the_same(evaluate, refused, trained, photographs, tmp_path):
    file, folder = tmp_path / "weights.safetensors", photographs / "pictures" / "test"
    assert main(["export", str(trained.run_dir), "--format", "safetensors", "--output", str(file)]) == 0
    result = evaluate(file, "--data", folder)
    expected = trained.summary["metrics"]
    assert {name: result[name] for name in METRICS} == pytest.approx(expected, rel=1e-6) and result["step"] == 40
    assert "not for random:0.5" in refused(
        file, "--data", folder, "data.degradation.kind=random", "data.degradation.keep=0.5"
    )


def test_the_manifest_says_what_was_learned(trained):
    manifest = json.loads((trained.run_dir / "checkpoints" / "step-00000040" / "manifest.json").read_text())
    degradation = {"kind": "bayer", "phase": "RGGB", "keep": 0.25, "sigma": 0.0}
    assert manifest["task"] == {"kind": "restoration", "degradation": degradation, "color": "rgb"}
    assert manifest["model"] == {
        "name": "conv_restorer",
        "kwargs": {"in_chans": 3, "dim": 12, "depth": 1},
        "num_classes": None,
    }
    assert manifest["metrics"].keys() == METRICS


def test_training_measures_and_shows_pictures(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained.run_dir / "tensorboard"))
    events.Reload()
    assert "train_samples" in events.Tags()["images"]
    assert [event.step for event in events.Scalars("eval_psnr")] == [20, 40]


def test_pruning_keeps_the_best_psnr(trained, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(trained.run_dir, run)
    manifest = run / "checkpoints" / "step-00000020" / "manifest.json"
    described = json.loads(manifest.read_text())
    described["metrics"]["psnr"] = 99.0
    manifest.write_text(json.dumps(seal(described)))
    assert main(["checkpoint", "prune", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert main(["checkpoint", "prune", str(run), "--metric", "loss", "--json"]) == 0
    assert "step-00000020" in capsys.readouterr().out


def test_reduced_precision_and_training_on_from_a_run(evaluate, restoration, trained, photographs):
    exact = trained.summary["metrics"]["psnr"]
    rounded = evaluate(trained.run_dir, "--data", photographs / "shards", "precision=bf16")["psnr"]
    assert rounded == pytest.approx(exact, abs=0.1) and rounded != exact
    tuned = restoration.trained("tuned", f"model.init_from={trained.run_dir}", "schedule.max_steps=2")
    assert tuned.losses[1] < 0.8 * trained.losses[1]


def test_training_on_from_shipped_weights(restoration):
    """A network of the shipped one's size, one step on small patches: its loss is that of trained weights."""
    words = (
        "model.name=ugtv_fast",
        "model.kwargs.dim=48",
        "model.kwargs.depth=2",
        "batch.global_batch=8",
        "schedule.max_steps=1",
    )
    fresh = restoration.trained("fresh", *words)
    tuned = restoration.trained("shipped", *words, "model.init_from=ugtv_fast_demosaicking")
    assert tuned.losses[1] < 0.75 * fresh.losses[1]
    assert "ugtv_fast_demosaicking (exported restorer, ugtv_fast)" in tuned.err


def test_a_network_without_weights_is_not_trained(tmp_path, capsys):
    words = ("model.name=igtv", "--run-dir", str(tmp_path / "run"))
    assert main(["train", "restoration_quickstart", *words]) == 2
    assert "crate-graph evaluate igtv --data photo_crops" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_patches_larger_than_the_pictures_leave_no_run(restoration):
    run = restoration.train("too_large", "data.patch=512")
    assert run.code == 2 and "smaller than a patch" in run.err.replace("data.patch=512", "a patch"), run.err
    assert not run.run_dir.exists()


def test_tiles_change_nothing_that_matters(evaluate, refused, trained, photographs):
    """A tile is at least twice what it shares, so the pictures are made larger."""
    folder = photographs / "larger"
    folder.mkdir()
    with Image.open(photographs / "pictures" / "test" / "00.png") as picture:
        picture.resize((183, 162), Image.Resampling.BICUBIC).save(folder / "one.png")
    whole = evaluate(trained.run_dir, "--data", folder)
    tiled = evaluate(trained.run_dir, "--data", folder, "--tile", 128)
    assert {name: tiled[name] for name in METRICS} == pytest.approx({name: whole[name] for name in METRICS}, rel=1e-6)
    assert "an even number of 128 pixels or more" in refused(trained.run_dir, "--data", folder, "--tile", 126)


def test_noise_that_was_not_trained_for_costs_quality_step_by_step(evaluate, trained, photographs):
    results = [
        evaluate(trained.run_dir, "--data", photographs / "shards", f"data.degradation.sigma={sigma}")
        for sigma in (0, 10, 30)
    ]
    ratios = [result["psnr"] for result in results]
    assert ratios[0] > ratios[1] + 0.5 > ratios[2] + 1
    again = evaluate(trained.run_dir, "--data", photographs / "shards", "data.degradation.sigma=30")
    assert again["psnr"] == ratios[2]  # the same noise for all that are compared


def test_methods_without_training(evaluate, photographs):
    pytest.importorskip("colour_demosaicing")
    folder = photographs / "pictures" / "test"
    bilinear, malvar = (evaluate(name, "--data", folder) for name in ("bilinear", "malvar2004"))
    assert bilinear["method"] == "bilinear" and bilinear["samples"] == 3
    assert 15 < bilinear["psnr"] < malvar["psnr"] < 60
    shifted = evaluate("bilinear", "--data", photographs / "shards", "data.degradation.phase=GBRG")
    assert shifted["split"] == "test" and math.isclose(shifted["psnr"], bilinear["psnr"], abs_tol=1.5)
    aligned, misaligned = (evaluate(name, "--data", folder) for name in ("bicubic", "bicubic_misaligned"))
    assert aligned["psnr"] > misaligned["psnr"] + 0.5
    graph = evaluate("igtv", "--data", folder, "data.degradation.kind=random", "data.degradation.keep=0.5")
    assert 15 < graph["psnr"] < 60


def test_another_problem_than_the_trained_one_is_refused(refused, trained, photographs):
    folder = photographs / "pictures" / "test"
    assert "bayer:RGGB, not for bayer:BGGR" in refused(trained.run_dir, "--data", folder, "data.degradation.phase=BGGR")
    words = ["data.degradation.kind=decimate", "data.color=y"]
    assert "not for decimate" in refused(trained.run_dir, "--data", folder, *words)
    assert "kind=decimate" in refused("bicubic", "--data", folder, "data.degradation.kind=random")
    assert "task.kind" in refused(
        trained.run_dir, "--data", folder, "task.kind=classification", "data.degradation=null", "evaluation.metric=top1"
    )


def test_bad_data_is_named(refused, trained, photographs, tmp_path):
    assert "no image" in refused("bicubic", "--data", tmp_path)
    Image.new("RGB", (40, 6)).save(tmp_path / "flat.png")
    assert "flat.png: 40 x 6 pixels are fewer than the 7 x 7" in refused("bicubic", "--data", tmp_path)
    Image.new("RGB", (4, 40)).save(tmp_path / "flat.png")
    assert "flat.png: 4 x 40 pixels" in refused(trained.run_dir, "--data", tmp_path)
    Image.new("RGBA", (40, 40), (9, 9, 9, 9)).save(tmp_path / "flat.png")
    assert "flat.png" in refused("bicubic", "--data", tmp_path)
    (tmp_path / "flat.png").write_bytes(b"no picture")
    assert "flat.png" in refused("bicubic", "--data", tmp_path)
    assert "no-such-thing" in refused("no-such-thing", "--data", photographs / "shards")


def test_what_an_evaluation_does_not_depend_on_is_refused(refused, trained, photographs):
    folder = photographs / "pictures" / "test"
    for word in ("model.name=ugtv", "seed=5", "optimizer.lr=1", "data.patch=9"):
        for subject in (trained.run_dir, "bilinear"):
            assert f"{word}: is for training" in refused(subject, "--data", folder, word)
    for word in ("data.eval_split=train", "data.root=elsewhere"):
        assert "has no splits" in refused(trained.run_dir, "--data", folder, word)
    assert f"is on --data {folder}" in refused(trained.run_dir, "--data", folder, "data.dataset=photo_crops")


def test_the_smallest_picture_is_that_of_ssim():
    assert SMALLEST == SSIM_WINDOW


def test_a_mistake_on_one_process_ends_both_in_words(forks, photographs, tmp_path):
    """One process cannot read its picture; the other waits for it, and must say so in a line."""
    shutil.copy(photographs / "pictures" / "test" / "00.png", tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    ended = forks.run("evaluate", "bicubic", "--data", tmp_path, world=2)
    assert ended.returncode != 0 and "b.png: cannot be read" in ended.stderr
    assert "crate_graph/evaluation" not in ended.stderr  # no traceback of ours


def test_a_model_for_another_task_is_refused_before_training(restoration):
    run = restoration.train("misfit", "model={name: vit_tiny_patch16_224}")
    assert run.code == 2 and "not for restoration; choose one of conv_restorer" in run.err
    run = restoration.train("misfit", "model.kwargs.in_chans=1")
    assert run.code == 2 and "data.color=rgb has 3" in run.err
    assert not run.run_dir.exists()
