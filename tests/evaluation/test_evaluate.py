"""The verbs that take a trained checkpoint further."""

import json
import shutil

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from crate_graph.cli import main
from crate_graph.data import open_dataset
from crate_graph.data.class_folders import class_folders
from crate_graph.evaluation.subjects import open_subject


@pytest.fixture(scope="module")
def trained(runner):
    return runner.trained(
        "trained", "schedule.max_steps=60", "ema.decay=0.9", "telemetry.tensorboard=true", "telemetry.peak_tflops=0.1"
    )


@pytest.fixture
def evaluate(forks):
    def run(*words, world=1):
        ended = forks.run("evaluate", *words, "--json", world=world)
        assert ended.returncode == 0, ended.stderr
        return json.loads(ended.stdout)

    return run


def test_evaluate_equals_what_training_measured_on_any_layout(evaluate, trained, fashion):
    metrics = trained.summary["metrics"]
    for world, overrides in ((1, []), (1, ["evaluation.batch_size=7", "data.workers=2"]), (2, ["data.workers=1"])):
        result = evaluate(trained.run_dir, "--data", fashion, *overrides, world=world)
        assert result["samples"] == 200 and result["damaged"] == 0 and result["step"] == 60
        assert {name: result[name] for name in metrics} == pytest.approx(metrics, rel=1e-5)


def test_average_and_raw_weights_differ(evaluate, trained, fashion):
    raw = evaluate(trained.run_dir, "--data", fashion, "evaluation.use_ema=false")
    assert raw["loss"] != pytest.approx(trained.summary["metrics"]["loss"], rel=1e-3)


def test_a_data_set_of_another_kind_is_refused(forks, trained):
    ended = forks.run("evaluate", trained.run_dir, "--data", "cifar10")
    assert ended.returncode == 2 and "channels" in ended.stderr
    ended = forks.run("evaluate", trained.run_dir, "--data", "cifar100")
    assert ended.returncode == 2 and "classes" in ended.stderr


@pytest.fixture(scope="module")
def clothes(fashion, tmp_path_factory):
    """The same pictures from folders of their classes: in alphabetical order, T-shirt/top under T-shirt_top."""
    folder = tmp_path_factory.mktemp("clothes")
    assert main(["shards", "extract", str(fashion), "--by-class", "--output", str(folder / "tree")]) == 0
    assert main(["shards", "make", str(folder / "tree"), "--split", "test", "--output", str(folder / "shards")]) == 0
    return folder / "shards"


def test_classes_in_another_order_are_matched_by_name(forks, trained, clothes):
    ended = forks.run("evaluate", trained.run_dir, "--data", clothes, "--json")
    metrics, result = trained.summary["metrics"], json.loads(ended.stdout)
    assert result["samples"] == 200
    assert {name: result[name] for name in metrics} == pytest.approx(metrics, rel=1e-5)
    (line,) = (line for line in ended.stderr.splitlines() if "matched by name" in line)
    assert "has its classes in another order" in line


def renamed(clothes, folder, classes):
    shutil.copytree(clothes, folder)
    described = yaml.safe_load((clothes / "dataset.yaml").read_text())
    (folder / "dataset.yaml").write_text(yaml.safe_dump({**described, "classes": classes(described["classes"])}))
    return str(folder)


def test_classes_of_other_names_are_refused(trained, clothes, tmp_path, capsys):
    other = renamed(clothes, tmp_path / "other", lambda names: ["Anorak", *names[1:9], "Wellies"])
    assert main(["evaluate", str(trained.run_dir), "--data", other]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"crate-graph: error: {other}: its classes are not those that the model was trained on")
    assert "'Anorak', 'Wellies' here, 'Trouser', 'Ankle boot' there; choose" in line


def test_classes_that_are_counted_or_in_order_stay_as_they_are(trained, clothes, fashion, tmp_path):
    assert open_subject(str(trained.run_dir), str(fashion)).labels == ()
    assert open_subject(str(trained.run_dir), renamed(clothes, tmp_path / "counted", len)).labels == ()
    in_order = renamed(
        clothes, tmp_path / "in_order", lambda _: list(class_folders(list(open_dataset(fashion).classes)))
    )
    assert open_subject(str(trained.run_dir), in_order).labels == ()


def test_tensorboard_and_metrics_hold_what_the_readme_says(trained):
    events = EventAccumulator(str(trained.run_dir / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    tags = events.Tags()
    rates = {"loss", "lr", "grad_norm", "images_per_second", "data_wait_fraction", "model_flop_utilisation"}
    assert rates <= set(tags["scalars"]) and "eval_top1" in tags["scalars"]
    assert "step_seconds" in tags["histograms"] and "train_samples" in tags["images"]
    scalars = {event.step: event.value for event in events.Scalars("loss")}
    assert scalars == pytest.approx(trained.losses, rel=1e-6)
    for record in trained.records[:-1]:
        assert record.keys() >= rates | {"epoch", "samples_seen", "peak_memory_bytes"}
        assert 0 <= record["data_wait_fraction"] <= 1 and record["model_flop_utilisation"] > 0


def test_fine_tuning_starts_from_the_average(runner, trained):
    tuned = runner.trained("tuned", f"model.init_from={trained.run_dir}", "schedule.max_steps=2")
    scratch = runner.trained("scratch", "schedule.max_steps=2")
    assert tuned.losses[1] < scratch.losses[1] - 0.2
    assert tuned.losses[1] == pytest.approx(trained.summary["metrics"]["loss"], abs=0.4)


def test_fine_tuning_says_what_it_changed_and_refuses_what_does_not_fit(runner, trained):
    larger = ["model.kwargs.img_size=35", "data.train_transform.size=35", "data.eval_transform.size=35"]
    resized = runner.trained("resized", f"model.init_from={trained.run_dir}", "schedule.max_steps=2", *larger)
    assert "resized pos_embed from 4 x 4 to 5 x 5" in resized.err
    assert "resized pos_embed from 4 x 4 to 5 x 5" in (resized.run_dir / "logs" / "rank-0.log").read_text()
    written = json.loads((resized.run_dir / "init_from.json").read_text())
    assert written["resized"] == {"pos_embed": {"from": [4, 4], "to": [5, 5]}} and "head.bias" in written["loaded"]
    assert written["kind"] == "checkpoint of step 60, moving average" and not (written["initial"] or written["ignored"])
    misfit = runner.train("misfit", f"model.init_from={trained.run_dir}", "model.kwargs.depth=3")
    assert misfit.code == 2 and "do not fit" in misfit.err


def test_checkpoint_verbs(forks, trained, tmp_path):
    listed = forks.run("checkpoint", "list", trained.run_dir, "--json")
    assert [row["step"] for row in json.loads(listed.stdout)] == [60]
    assert forks.run("checkpoint", "verify", trained.run_dir).returncode == 0
    published = tmp_path / "published.safetensors"
    assert forks.run("checkpoint", "convert", trained.run_dir, published, "--to", "published").returncode == 0
    back = tmp_path / "back.safetensors"
    assert forks.run("checkpoint", "convert", published, back, "--to", "crate-graph").returncode == 0
    from safetensors.torch import load_file

    ours = load_file(trained.run_dir / "checkpoints" / "step-00000060" / "ema.safetensors")
    again = load_file(back)
    assert all(again[name].equal(ours[name]) for name in ours)
    assert "to_patch_embedding.1.weight" in load_file(published)
    assert forks.run("checkpoint", "convert", trained.run_dir, back, "--to", "published").returncode == 2
