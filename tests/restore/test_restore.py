"""`crate-graph restore`: what it writes, what it says, what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from crate_graph.data import progress as data_progress
from crate_graph.data.degrade import PHASES, bayer_mask
from crate_graph.evaluation.run import evaluate
from crate_graph.models.observation import interpolate_known
from crate_graph.restore import run as restoring
from crate_graph.restore.pictures import quantize, read_picture, write_picture
from crate_graph.restore.scene import as_pixels, as_tensor
from crate_graph.tasks.metrics import to_8_bit
from crate_graph.weights import load_restorer


def restored(checkpoint, mosaic: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """By the network alone: observed, mask (H, W, C) -> (H, W, C)."""
    with torch.no_grad():
        return as_pixels(load_restorer(checkpoint).model(as_tensor(mosaic * mask), as_tensor(mask)))


def test_a_degraded_picture_is_restored_and_judged(restore, restorers, photo, scene, tmp_path):
    out = tmp_path / "out"
    code, text, err = restore(restorers["bayer"], photo, "--degrade", "bayer:RGGB", "--output", out, "--json")
    assert (code, err) == (0, "")
    (result,) = json.loads(text)
    assert [file.name for file in out.iterdir()] == ["photo.png"]
    clean, mask = scene.astype(np.float32) / 255, bayer_mask(*scene.shape[:2], "RGGB")
    expected = restored(restorers["bayer"], clean, mask)
    written = np.asarray(Image.open(out / "photo.png"))
    assert np.array_equal(written, quantize(expected, 8))
    assert np.array_equal(written[mask == 1], scene[mask == 1])  # known values are kept
    assert (result["width"], result["height"]) == (57, 41)
    error = np.mean((written / 255.0 - scene / 255.0) ** 2)
    assert result["psnr"] == pytest.approx(-10 * np.log10(error), abs=1e-3)
    bilinear = to_8_bit(interpolate_known(as_tensor(clean * mask), as_tensor(mask)))
    assert result["psnr_before"] == pytest.approx(-10 * np.log10(np.mean((as_pixels(bilinear) - clean) ** 2)), abs=1e-3)


@pytest.mark.parametrize(("problem", "how"), [("bayer", "bayer:RGGB"), ("decimate", "decimate")])
def test_it_agrees_with_evaluate(problem, how, restore, restorers, photo, tmp_path):
    words = (restorers[problem], photo, "--degrade", how, "--output", tmp_path / "out", "--json")
    (result,) = json.loads(restore(*words)[1])
    measured = evaluate(str(restorers[problem]), str(photo))
    assert result["psnr"] == pytest.approx(measured["psnr"], abs=1e-4)
    assert result["ssim"] == pytest.approx(measured["ssim"], abs=1e-6)


@pytest.mark.parametrize("phase", ["RGGB", "GRBG", "GBRG", "BGGR"])
@pytest.mark.parametrize("problem", ["bayer", "any_phase"])
def test_a_mosaic_of_any_phase_and_odd_sides(phase, problem, restore, restorers, scene, tmp_path):
    mask = bayer_mask(*scene.shape[:2], phase)
    mosaic = (scene * mask.astype(np.uint8)).sum(axis=2).astype(np.uint16) * 257
    tifffile.imwrite(tmp_path / "mosaic.tif", mosaic)
    code, _, err = restore(restorers[problem], tmp_path / "mosaic.tif", "--mosaic", phase, "--output", tmp_path / "out")
    assert code == 0, err
    written = read_picture(tmp_path / "out/mosaic.tif")
    assert written.bits == 16 and written.pixels.shape == scene.shape
    assert np.array_equal(quantize(written.pixels, 16)[mask == 1], scene[mask == 1].astype(np.uint16) * 257)
    # the same as of a mosaic in the phase of training, of which the first row or column is a mirror image
    rows, columns = PHASES[phase] if problem == "bayer" else (0, 0)
    border = ((rows, 0), (columns, 0), (0, 0))
    scene, mask = (np.pad(values, border, mode="reflect") for values in (scene / 255, mask))
    expected = restored(restorers[problem], scene, mask)[rows:, columns:]
    assert np.abs(written.pixels - expected.clip(0, 1)).max() < 1e-4


def test_a_turned_mosaic_keeps_its_phase(restore, restorers, scene, tmp_path):
    """The phase is that of the pixels as they are stored; the result is turned upright."""
    mosaic = (scene * bayer_mask(*scene.shape[:2], "GRBG").astype(np.uint8)).sum(axis=2, dtype=np.uint8)
    tifffile.imwrite(tmp_path / "as_is.tif", mosaic)
    tifffile.imwrite(tmp_path / "turned.tif", mosaic, extratags=[(274, "H", 1, 6, True)])
    photos = (tmp_path / "as_is.tif", tmp_path / "turned.tif")
    assert restore(restorers["bayer"], *photos, "--mosaic", "GRBG", "--output", tmp_path / "out")[0] == 0
    stored, turned = (read_picture(tmp_path / "out" / photo.name).pixels for photo in photos)
    assert np.array_equal(turned, np.rot90(stored, -1))


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_picture_is_enlarged(mode, restore, restorers, photo, scene, tmp_path):
    Image.open(photo).convert(mode).save(photo)
    assert restore(restorers["decimate"], photo, "--scale", "2", "--output", tmp_path / "out")[0] == 0
    large = np.asarray(Image.open(tmp_path / "out/photo.png"))
    assert large.shape[:2] == (82, 114) and large.ndim == (3 if mode == "RGB" else 2)
    small = np.asarray(Image.open(photo))
    assert np.abs(large[::2, ::2].astype(int) - small).max() <= 1  # through Y'CbCr and back


def test_the_noise_level_reaches_the_network(restore, restorers, photo, tmp_path):
    results = {}
    for name, words in {
        "told": ["--sigma", "40"],
        "less": ["--sigma", "5"],
        "added": ["--degrade", "none", "--noise", "40"],
        "misled": ["--degrade", "none", "--noise", "40", "--sigma", "5"],
    }.items():
        assert restore(restorers["denoise"], photo, *words, "--output", tmp_path / name)[0] == 0
        results[name] = np.asarray(Image.open(tmp_path / name / "photo.png")).astype(int)
    assert (results["told"] != results["less"]).any()
    assert (results["added"] != results["misled"]).any()
    assert (results["added"] != results["told"]).any()


def test_formats_depths_and_profiles_stay_what_they_were(restore, restorers, scene, tmp_path):
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    clean = scene.astype(np.float32) / 255
    for name, format, bits in (
        ("a.tiff", "TIFF", 16),
        ("b.PNG", "PNG", 16),
        ("c.jpeg", "JPEG", 8),
        ("d.tif", "TIFF", 32),
    ):
        write_picture(tmp_path / name, clean, format=format, bits=bits, icc=profile)
    photos = [tmp_path / name for name in ("a.tiff", "b.PNG", "c.jpeg", "d.tif")]
    words = ["--degrade", "random:0.5", "--output", tmp_path / "out"]
    assert restore(restorers["random"], *photos, *words)[0] == 0
    for photo in photos:
        before, after = read_picture(photo), read_picture(tmp_path / "out" / photo.name)
        assert (after.format, after.bits, after.icc) == (before.format, before.bits, profile)
    assert restore(restorers["random"], photos[0], *words, "--format", "jpeg")[0] == 0
    assert read_picture(tmp_path / "out/a.jpg").format == "JPEG"


def test_orientation_is_applied(restore, restorers, photo, tmp_path):
    image = Image.open(photo)
    exif = image.getexif()
    exif[274] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    words = (restorers["bayer"], tmp_path / "turned.png", "--degrade", "bayer:RGGB", "--output", tmp_path / "out")
    assert restore(*words)[0] == 0
    assert Image.open(tmp_path / "out/turned.png").size == (41, 57)


def test_tiles_give_the_same(restore, restorers, scene, tmp_path):
    """Tiles overlap by more than this network looks at."""
    Image.fromarray(np.tile(scene, (4, 3, 1))).save(tmp_path / "photo.png")
    words = (restorers["bayer"], tmp_path / "photo.png", "--degrade", "bayer:GBRG")
    assert restore(*words, "--output", tmp_path / "whole")[0] == 0
    assert restore(*words, "--output", tmp_path / "tiled", "--tile", "128")[0] == 0
    whole, tiled = (np.asarray(Image.open(tmp_path / name / "photo.png")).astype(int) for name in ("whole", "tiled"))
    assert np.abs(whole - tiled).max() <= 1


def test_what_appears_in_the_meantime_is_not_replaced(restore, restorers, photo, tmp_path, monkeypatch):
    """As by a second command with the same output: the first look found nothing there."""
    output = tmp_path / "out" / photo.with_suffix(".png").name
    honest = restoring.interpolate_known

    def slow(observed, mask):
        output.parent.mkdir(exist_ok=True)
        output.write_text("of another command")
        return honest(observed, mask)

    monkeypatch.setattr(restoring, "interpolate_known", slow)
    words = (restorers["bayer"], photo, "--degrade", "bayer:RGGB", "--output", output.parent, "--format", "png")
    code, _, err = restore(*words)
    assert code == 2 and "has appeared since the start" in err and output.read_text() == "of another command"
    assert restore(*words, "--force")[0] == 0 and output.read_bytes().startswith(b"\x89PNG")


def test_large_pictures_are_cut_unless_told_otherwise(restore, restorers, photo, tmp_path, monkeypatch):
    sizes = []
    monkeypatch.setattr(restoring, "estimate", lambda model, observed, *rest: sizes.append(observed.shape) or observed)
    monkeypatch.setattr(restoring, "MOST_WHOLE", 40 * 57)
    monkeypatch.setattr(restoring, "TILE", 128)
    large = tmp_path / "large.png"
    Image.open(photo).resize((180, 140)).save(large)
    words = (restorers["bayer"], large, "--degrade", "bayer:RGGB", "--output", tmp_path / "out", "--force")
    monkeypatch.setattr(data_progress, "INTERVAL", -1.0)
    code, _, err = restore(*words)
    assert code == 0 and err.splitlines() == [f"tiles restored: {n + 1} of {len(sizes)}" for n in range(len(sizes))]
    assert len(sizes) > 1 and max(max(shape[-2:]) for shape in sizes) <= 128
    sizes.clear()
    assert restore(*words, "--tile", "0")[0] == 0
    assert [tuple(shape) for shape in sizes] == [(1, 3, 140, 180)]


def test_lines_say_what_was_done(restore, restorers, photo, tmp_path):
    code, text, _ = restore(
        restorers["bayer"], photo, "--degrade", "bayer:RGGB", "--output", tmp_path / "out", "--compare"
    )
    (line,) = text.splitlines()
    assert code == 0 and line.startswith(f"{tmp_path / 'out/photo.png'}  57 x 41, ")
    assert " dB (before " in line and ", SSIM 0." in line and line.endswith(f"see {tmp_path / 'out/photo.compare.png'}")


def test_ended_in_mid_work_it_leaves_whole_pictures(forks, restorers, photo, tmp_path):
    """Each picture is told of as soon as it is there; SIGTERM takes back what was begun."""
    large, out, said = tmp_path / "large.png", tmp_path / "out", tmp_path / "said"
    Image.fromarray(np.zeros((3000, 3000, 3), np.uint8)).save(large)
    words = ("crate-graph", "restore", restorers["bayer"], photo, large, "--degrade", "bayer:RGGB", "--output", out)
    fork = forks.start(words, out=said, err=tmp_path / "err")
    while not (said.exists() and said.read_text().endswith("\n")) and fork.alive:
        time.sleep(0.05)
    os.kill(fork.pid, signal.SIGTERM)
    assert fork.wait(60) == 128 + signal.SIGTERM, said.read_text() + (tmp_path / "err").read_text()
    assert [file.name for file in out.iterdir()] == ["photo.png"]


def test_files_that_exist_are_kept(restore, refused, restorers, photo, tmp_path):
    out = tmp_path / "out"
    words = (restorers["bayer"], photo, "--degrade", "bayer:RGGB", "--output", out)
    assert restore(*words)[0] == 0
    before = (out / "photo.png").read_bytes()
    other = tmp_path / "other.png"
    shutil.copy(photo, other)
    code, _, err = restore(words[0], other, *words[1:])
    assert code == 2 and f"{out / 'photo.png'}: exists already; add --force to replace it" in err
    assert [file.name for file in out.iterdir()] == ["photo.png"]  # the other was not begun
    (out / "photo.png").write_bytes(b"old")
    assert restore(*words, "--force")[0] == 0
    assert (out / "photo.png").read_bytes() == before


def test_a_source_is_never_replaced(restore, restorers, photo):
    before = photo.read_bytes()
    words = (restorers["bayer"], photo, "--degrade", "bayer:RGGB", "--output", photo.parent, "--force")
    code, _, err = restore(*words)
    assert code == 2 and "is one of the pictures; choose another --output" in err
    assert photo.read_bytes() == before


def test_two_pictures_of_one_name_are_refused(refused, restorers, photo, tmp_path):
    (tmp_path / "more").mkdir()
    shutil.copy(photo, tmp_path / "more/photo.png")
    says = refused(restorers["bayer"], photo, tmp_path / "more/photo.png", "--degrade", "bayer:RGGB")
    assert "would both be written to" in says and "restore them one by one" in says
    shutil.copy(photo, tmp_path / "photo.compare.png")
    says = refused(restorers["bayer"], photo, tmp_path / "photo.compare.png", "--degrade", "bayer:RGGB", "--compare")
    assert "would both be written to" in says


def test_a_bad_picture_among_good_ones_stops_all(refused, restorers, photo, tmp_path):
    (tmp_path / "broken.png").write_bytes(photo.read_bytes()[:100])
    assert "broken.png: damaged" in refused(
        restorers["bayer"], photo, tmp_path / "broken.png", "--degrade", "bayer:RGGB"
    )


@pytest.mark.parametrize(
    ("problem", "words", "says"),
    [
        ("bayer", [], "trained for bayer:RGGB, not for a full picture as it is; it restores mosaics: give one with"),
        ("bayer", ["--degrade", "decimate"], "trained for bayer:RGGB, not for decimate"),
        ("bayer", ["--scale", "2"], "trained for bayer:RGGB, not for decimate"),
        ("bayer", ["--mosaic", "RGGB"], "a mosaic has one channel and this is in colour; .* --degrade bayer:RGGB"),
        ("bayer", ["--degrade", "bayer"], None),
        ("bayer", ["--degrade", "fog"], "degradation 'fog': unknown"),
        ("bayer", ["--degrade", "bayer:RGGB", "--sigma", "5"], "takes no noise level; leave --sigma 5 out"),
        ("bayer", ["--degrade", "bayer:RGGB", "--tile", "31"], "tiles of 31 pixels"),
        ("bayer", ["--degrade", "bayer:RGGB", "--device", "warp"], "--device warp: cannot be used"),
        ("decimate", ["--mosaic", "RGGB"], "trained for decimate, not for bayer; it doubles the size: write --scale 2"),
        ("random", ["--scale", "2"], "trained for random:0.25, not for decimate; it fills in missing pixels"),
        ("denoise", [], "removes noise; say how much there is with --sigma S"),
        ("denoise", ["--scale", "2"], "trained for none, not for decimate; it removes noise"),
    ],
)
def test_what_a_network_was_not_trained_for_is_refused(
    problem, words, says, restore, refused, restorers, photo, tmp_path
):
    if says is None:
        assert restore(restorers[problem], photo, *words, "--output", tmp_path / "out")[0] == 0
        return
    import re

    assert re.search(says, refused(restorers[problem], photo, *words))


@pytest.mark.parametrize(
    ("problem", "words"), [("bayer", ["--degrade", "bayer:RGGB"]), ("random", ["--degrade", "random"])]
)
def test_a_picture_smaller_than_the_window_is_refused(problem, words, restore, refused, restorers, tmp_path):
    small = tmp_path / "small.png"
    Image.new("RGB", (20, 4)).save(small)
    assert "small.png: 20 x 4 pixels are fewer than the window of 5 x 5" in refused(restorers[problem], small, *words)
    Image.new("RGB", (6, 5)).save(small)  # too small for SSIM, and no mistake
    (result,) = json.loads(restore(restorers[problem], small, *words, "--output", tmp_path / "out", "--json")[1])
    assert result["ssim"] is None and result["psnr"] > 0


def test_too_little_memory_is_said(refused, restorers, photo, monkeypatch):
    def exhausted(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(restoring, "estimate", exhausted)
    says = refused(restorers["bayer"], photo, "--degrade", "bayer:RGGB")
    assert "57 x 41 pixels do not fit into the memory of cpu; use --tile 512" in says


def test_another_failure_is_not_hidden(restore, restorers, photo, tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(restoring, "estimate", broken)
    with pytest.raises(RuntimeError, match="device is gone"):
        restore(restorers["bayer"], photo, "--degrade", "bayer:RGGB", "--output", tmp_path / "out")


def test_training_then_restoring(restoration, restore, photographs, tmp_path):
    """The real way: train a moment, restore a picture that was held back, with the run folder's name."""
    run = restoration.trained("to_restore", "schedule.max_steps=3")
    pictures = sorted((photographs / "pictures/test").iterdir())
    words = (*pictures, "--degrade", "bayer:RGGB", "--output", tmp_path / "out", "--compare", "--json")
    code, text, err = restore(run.run_dir, *words)
    assert code == 0, err
    results = json.loads(text)
    assert len(list((tmp_path / "out").iterdir())) == 2 * len(pictures)
    assert np.mean([result["psnr"] for result in results]) == pytest.approx(run.summary["metrics"]["psnr"], abs=1e-3)
    assert "crate-graph restore" in run.out and "--degrade bayer:RGGB --compare" in run.out  # what to try next
