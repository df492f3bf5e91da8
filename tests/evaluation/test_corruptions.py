"""Corruptions against other implementations of their formulas, and what restoration is asked beyond its training."""

import io

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.stats import kstest, norm, poisson
from skimage.color import hsv2rgb, rgb2hsv

from crate_graph.config.load import load_recipe
from crate_graph.config.schema import Degradation
from crate_graph.data.augment import EvalView
from crate_graph.data.degrade import bayer_mask
from crate_graph.errors import UserError
from crate_graph.evaluation.corruptions import CORRUPTIONS, CorruptedView, Corruption
from crate_graph.evaluation.shifts import NOISE, observe_moved, shifts_for


def picture(side, channels):
    """Waves, with black and white in it: (side, side, channels) uint8."""
    rows, columns = np.mgrid[:side, :side]
    waves = np.sin(rows[..., None] / 3 + np.arange(channels)) * np.cos(columns[..., None] / (4 + np.arange(channels)))
    return (127.5 + 160 * waves).clip(0, 255).astype(np.uint8)


def by_other_means(name, c, x):
    """x (H, W, C) in [0, 1]."""
    if name == "gaussian_blur":
        return gaussian_filter(x, (c, c, 0), mode="nearest", truncate=4)
    if name == "contrast":
        return np.stack([c * (part - part.mean()) + part.mean() for part in np.moveaxis(x, -1, 0)], axis=-1)
    hsv = rgb2hsv(np.broadcast_to(x, (*x.shape[:2], 3)))
    hsv[..., 2] = (hsv[..., 2] + c).clip(0, 1)
    return hsv2rgb(hsv)[..., : x.shape[-1]]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("name", "side", "severity", "c"),
    [
        ("gaussian_blur", 28, 1, 0.4),
        ("gaussian_blur", 96, 5, 6),
        ("contrast", 32, 3, 0.4),
        ("contrast", 64, 5, 0.05),
        ("brightness", 28, 2, 0.1),
        ("brightness", 65, 5, 0.5),
    ],
)
def test_formulas(name, side, severity, c, channels):
    pixels = picture(side, channels)
    expected = by_other_means(name, c, pixels / 255).clip(0, 1) * 255
    found = Corruption(name, severity)(pixels, (0, 0, 3))
    assert found.dtype == np.uint8 and found.shape == pixels.shape
    assert np.abs(found - expected).max() <= 0.5 + 1e-9


@pytest.mark.parametrize(("side", "quality"), [(28, 58), (64, 50), (96, 15)])
def test_jpeg(side, quality):
    for channels in (1, 3):
        pixels, file = picture(side, channels), io.BytesIO()
        Image.fromarray(pixels.squeeze()).save(file, "JPEG", quality=quality)
        expected = np.asarray(Image.open(file)).reshape(pixels.shape)
        assert (Corruption("jpeg_compression", 3)(pixels, (0, 0, 3)) == expected).all()


def test_noises_have_their_distributions():
    grey = np.full((200, 200, 1), 102, dtype=np.uint8)  # 0.4
    gaussian = Corruption("gaussian_noise", 1)(grey, (0, 0, 3)) / 255 - 0.4
    dither = np.random.default_rng(0).uniform(-0.5, 0.5, gaussian.size) / 255  # undoes the rounding
    assert kstest(gaussian.ravel() + dither, norm(0, 0.08).cdf).pvalue > 0.01
    counts = np.rint(Corruption("shot_noise", 2)(grey, (0, 0, 3)) / 255 * 25).astype(int).ravel()
    expected = poisson(10).pmf(np.arange(25)) * counts.size
    seen = np.bincount(counts, minlength=26)[:25]
    assert (np.abs(seen - expected) < 4.5 * np.sqrt(expected + 1)).all()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_keys_and_severities(name):
    pixels = picture(32, 3)
    first = Corruption(name, 3)(pixels, (0, 0, 1))
    assert (first == Corruption(name, 3)(pixels, (0, 0, 1))).all()
    if "noise" in name:
        assert (first != Corruption(name, 3)(pixels, (0, 0, 2))).mean() > 0.5
    for side in (32, 64, 96):
        pixels = picture(side, 3)
        lost = [np.square(Corruption(name, s)(pixels, (0, 0, 1)) - pixels.astype(float)).mean() for s in range(1, 6)]
        assert lost == sorted(lost) and lost[0] > 0


def test_a_view_is_corrupted_after_it_is_cut():
    config = load_recipe("quickstart").data.eval_transform
    plain = EvalView(config, mean=(0.2,), std=(0.5,), num_classes=10)
    corruption, image = Corruption("shot_noise", 2), Image.fromarray(picture(40, 1)[..., 0])
    view = CorruptedView(plain, corruption)
    assert view.shape == (28, 28, 1)
    pixels = view.view(image, (0, 0, 7))
    assert (pixels == corruption(plain.view(image, ()), (0, 0, 7))).all()
    images, targets = view.batch(pixels[None], np.array([4]), [(0, 0, 7)], [])
    assert np.allclose(images[0, 0], (pixels[..., 0] / 255 - 0.2) / 0.5, atol=1e-6) and targets.tolist() == [4]


@pytest.mark.parametrize(("name", "severity"), [("fog", 1), ("contrast", 0), ("contrast", 6)])
def test_what_there_is_not_is_refused(name, severity):
    with pytest.raises(UserError, match="choose"):
        Corruption(name, severity)


def test_a_mask_moves_by_one_column():
    clean = np.random.default_rng(0).random((8, 9, 3), dtype=np.float32)
    observed, mask, _ = observe_moved(clean, Degradation(kind="bayer", phase="RGGB"), (0, 0, 1))
    assert (mask == bayer_mask(8, 9, "GRBG")).all() and (observed == clean * mask).all()
    _, mask, _ = observe_moved(clean, Degradation(kind="decimate"), (0, 0, 1))
    assert mask[::2, 1::2].all() and mask.sum() == mask[::2, 1::2].sum()


def test_shifts_by_task():
    classifier = load_recipe("quickstart")
    assert [shift.name for shift in shifts_for(classifier)] == list(CORRUPTIONS)
    assert len(shifts_for(classifier, (1, 5))) == 2 * len(CORRUPTIONS)

    def changed(recipe, *severities):
        return [(shift.name, shift.moved, shift.applied(recipe)) for shift in shifts_for(recipe, severities)]

    mosaic = load_recipe("restoration_quickstart")
    noise, more, moved = changed(mosaic, 3, 5)
    assert [noise[0], more[0], moved[0]] == ["noise", "noise", "mask_shift"] and moved[1:] == (True, mosaic)
    assert (noise[2].data.degradation.sigma, more[2].data.degradation.sigma) == (NOISE[3], NOISE[5]) == (20, 50)
    random = load_recipe("restoration_quickstart", ["data.degradation={kind: random, keep: 0.3}"])
    assert changed(random)[0][1:] == (
        False,
        load_recipe("restoration_quickstart", ["data.degradation={kind: random, keep: 0.15}"]),
    )
    denoiser = load_recipe("restoration_quickstart", ["data.degradation={kind: none, sigma: 10}"])
    assert [name for name, *_ in changed(denoiser, 1)] == ["noise"]
    [(name, _, recipe)] = changed(load_recipe("mae_quickstart"), 3)
    assert name == "mask_shift" and recipe.task.mask_ratio == 0.875
    with pytest.raises(UserError, match="from 1 to 5"):
        shifts_for(mosaic, (7,))
