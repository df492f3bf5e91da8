"""A masked autoencoder from training to a classifier that starts from its encoder, by the command line."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from crate_graph.cli import main
from crate_graph.evaluation.gallery import GAP, HEAD, check_gallery, write_gallery
from crate_graph.tasks.masked_autoencoding import PANELS

SIZE = "img_size: 28, patch_size: 7, embed_dim: 32, depth: 2, num_heads: 2"


@pytest.fixture(scope="module")
def trained(runner):
    return runner.trained(
        "mae",
        "task.kind=masked_autoencoding",
        "model.name=crate_mae_tiny_patch16_224",
        "model.kwargs=null",
        f"model.kwargs={{{SIZE}}}",
        "telemetry.tensorboard=true",
    )


def test_training_measures_and_shows(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert trained.losses[20] < trained.losses[1]
    assert trained.summary["metrics"].keys() == {"loss", "psnr", "psnr_of_visible_mean"}
    assert "--pictures mae.png" in trained.out and "export" not in trained.out
    events = EventAccumulator(str(trained.run_dir / "tensorboard"))
    events.Reload()
    assert {"train_samples", "evaluation"} <= set(events.Tags()["images"])


def test_evaluation_repeats_the_metrics_and_writes_pictures(trained, fashion, tmp_path, capsys):
    words = ["evaluate", str(trained.run_dir), "--data", str(fashion), "--json"]
    assert main([*words, "--pictures", str(tmp_path / "new" / "mae.png")]) == 0
    result = json.loads(capsys.readouterr().out)
    for name, value in trained.summary["metrics"].items():
        assert result[name] == pytest.approx(value, rel=1e-5)
    with Image.open(tmp_path / "new" / "mae.png") as sheet:
        assert sheet.size == (3 * 4 * 28 + 2 * GAP, HEAD + 8 * (4 * 28 + GAP) - GAP)  # each pixel four times
        headings = np.asarray(sheet.convert("L"))[:HEAD]
        for column in range(3):  # each has words, and they end before the next column
            left = column * (4 * 28 + GAP)
            assert headings[:, left : left + 4 * 28].min() < 80
            assert headings[:, left + 4 * 28 : left + 4 * 28 + GAP].min(initial=255) == 255
    assert main([*words, "data.train_split=test"]) == 2  # changes nothing in an evaluation
    assert main(["evaluate", str(trained.run_dir), "--data", "cifar10"]) == 2
    assert "channels" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("run/recipe.yaml", "name a file that ends in .png"),
        ("", "name a file that ends in .png"),
        ("text.png", "exists and is no PNG"),
        ("folder.png", "exists and is no PNG"),
        ("loop.png", "exists and is no PNG"),
        ("text.png/new/mae.png", "cannot be written (Not a directory)"),
        ("folder.png/" + "n" * 250 + ".png", "cannot be written (File name too long)"),
        ("/proc/new/mae.png", "cannot be written"),
    ],
)
def test_pictures_replace_nothing_but_pictures(name, said, tmp_path, monkeypatch, capsys):
    """It is refused before anything else is looked at: there is neither this run nor this data."""
    monkeypatch.chdir(tmp_path)
    for folder in ("run", "folder.png"):
        (tmp_path / folder).mkdir()
    for file in ("run/recipe.yaml", "text.png"):
        (tmp_path / file).write_text("mine")
    (tmp_path / "loop.png").symlink_to("loop.png")
    before = sorted(tmp_path.rglob("*"))
    assert main(["evaluate", "no_run", "--data", "no_data", "--pictures", name]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"--pictures {name or '.'}: " in error and said in error
    assert sorted(tmp_path.rglob("*")) == before and (tmp_path / "text.png").read_text() == "mine"


def test_a_picture_is_replaced_where_a_link_leads(tmp_path):
    (tmp_path / "link.png").symlink_to("mae.png")
    for side in (24, 48):
        if side == 48:
            check_gallery(tmp_path / "link.png")
        write_gallery(tmp_path / "link.png", torch.rand(2, 1, side, 3 * side), PANELS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.png", "mae.png"]
    assert (tmp_path / "link.png").is_symlink() and Image.open(tmp_path / "mae.png").width == 3 * 96 + 2 * GAP


def test_it_is_converted_and_not_exported(trained, tmp_path, capsys):
    from safetensors.torch import load_file

    assert main(["export", str(trained.run_dir), "--format", "timm", "--output", str(tmp_path / "timm")]) == 2
    assert "fine-tune its encoder" in capsys.readouterr().err
    there, back = tmp_path / "published.safetensors", tmp_path / "back.safetensors"
    assert main(["checkpoint", "convert", str(trained.run_dir), str(there), "--to", "published"]) == 0
    assert {"decoder_embed.weight", "decoder_blocks.1.layers.0.0.fn.weight"} <= load_file(there).keys()
    assert main(["checkpoint", "convert", str(there), str(back), "--to", "crate-graph"]) == 0
    ours = load_file(trained.run_dir / "checkpoints" / "step-00000020" / "model.safetensors")
    again = load_file(back)
    assert ours.keys() == again.keys() and all(again[name].equal(ours[name]) for name in ours)


def test_a_classifier_starts_from_the_encoder(runner, trained):
    from safetensors.torch import load_file

    words = ["model.kwargs=null", f"model.init_from={trained.run_dir}", "optimizer.lr=1e-9", "schedule.max_steps=1"]
    tuned = runner.trained("tuned", *words, f"model.kwargs={{{SIZE}, in_chans: 1, patch_embed: conv, lambd: 0.5}}")
    assert "ignored: decoder_blocks.0." in (tuned.run_dir / "logs" / "rank-0.log").read_text()
    encoder = load_file(trained.run_dir / "checkpoints" / "step-00000020" / "model.safetensors")
    classifier = load_file(tuned.run_dir / "checkpoints" / "step-00000001" / "model.safetensors")
    name = "blocks.1.ista.dictionary"
    assert (classifier[name] - encoder[name]).abs().max() < 1e-6
    assert (classifier["fc_norm.weight"] - encoder["norm.weight"]).abs().max() < 1e-6
