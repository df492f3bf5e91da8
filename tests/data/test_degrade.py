import random

import numpy as np
import pytest
import torch

from crate_graph.config.schema import Degradation
from crate_graph.data.degrade import PHASES, Observed, bayer_mask, luma, observe, pack, parse_degradation, unpack
from crate_graph.errors import UserError

KEY = (0, 1, 7)


def picture(height=21, width=18, channels=3):
    return np.random.default_rng(0).random((height, width, channels), dtype=np.float32)


@pytest.mark.parametrize("phase", PHASES)
def test_the_letters_of_a_phase_are_the_first_four_pixels(phase):
    mask = bayer_mask(5, 7, phase)
    letters = ["RGB"[channel] for channel in mask[:2, :2].reshape(4, 3).argmax(axis=1)]
    assert "".join(letters) == phase
    assert mask.shape == (5, 7, 3) and mask.dtype == np.float32 and (mask.sum(axis=2) == 1).all()
    assert np.array_equal(mask[2:], mask[:-2]) and np.array_equal(mask[:, 2:], mask[:, :-2])


@pytest.mark.parametrize(
    ("degradation", "share"),
    [
        (Degradation(kind="bayer", phase="GBRG"), 1 / 3),
        (Degradation(kind="decimate"), 11 * 9 / (21 * 18)),
        (Degradation(kind="random", keep=0.5), None),
        (Degradation(kind="none"), 1.0),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_without_noise_the_known_values_are_the_pictures(degradation, share):
    clean = picture()
    before = clean.copy()
    observed, mask, sigma = observe(clean, degradation, KEY)
    assert sigma == 0 and np.array_equal(observed, np.where(mask, clean, 0)) and np.array_equal(clean, before)
    assert observed.dtype == mask.dtype == np.float32 and set(np.unique(mask)) <= {0, 1}
    assert share is None or mask.mean() == pytest.approx(share)


def test_decimation_keeps_every_second_pixel_from_the_first():
    mask = observe(picture(5, 6), Degradation(kind="decimate"), KEY).mask
    assert mask[::2, ::2].all() and mask.sum() == 3 * 3 * 3


@pytest.mark.parametrize("keep", [0.1, 0.6, 1.0])
def test_random_pixels_are_known_in_all_channels_together(keep):
    mask = observe(picture(200, 200), Degradation(kind="random", keep=keep), KEY).mask
    assert mask.mean() == pytest.approx(keep, abs=0.01)
    assert np.array_equal(mask[..., 0], mask[..., 1]) and np.array_equal(mask[..., 0], mask[..., 2])


def test_noise_has_its_level_lies_on_known_values_and_is_not_clipped():
    clean = picture(200, 200)
    observed, mask, sigma = observe(clean, Degradation(kind="bayer", sigma=25), KEY)
    noise = (observed - clean)[mask > 0]
    assert sigma == 25 / 255 and noise.std() == pytest.approx(sigma, rel=0.01) and abs(noise.mean()) < 0.001
    assert not observed[mask == 0].any() and observed.min() < 0 and observed.max() > 1
    assert np.corrcoef(noise[:-1], noise[1:])[0, 1] == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("kind", ["bayer", "random"])
def test_the_mask_and_the_pattern_of_the_noise_do_not_depend_on_its_level(kind):
    clean = picture()
    plain, ten, twenty = (
        observe(clean, Degradation(kind=kind, phase="any", sigma=sigma), KEY) for sigma in (0, 10, 20)
    )
    assert np.array_equal(plain.mask, ten.mask) and np.array_equal(ten.mask, twenty.mask)
    np.testing.assert_allclose(twenty.observed - plain.observed, 2 * (ten.observed - plain.observed), atol=1e-6)


@pytest.mark.parametrize(
    "degradation",
    [
        Degradation(kind="bayer", phase="any", sigma=(0, 50)),
        Degradation(kind="random", keep=0.5),
        Degradation(kind="none", sigma=10),
    ],
    ids=lambda value: value.kind,
)
def test_what_is_random_depends_on_the_key_alone(degradation):
    clean = picture()
    first = observe(clean, degradation, KEY)
    random.random(), np.random.rand(), torch.rand(())
    again = observe(clean, degradation, KEY)
    assert np.array_equal(first.observed, again.observed) and first.sigma == again.sigma
    for key in ((0, 1, 8), (0, 2, 7), (1, 1, 7)):
        assert not np.array_equal(first.observed, observe(clean, degradation, key).observed)


def test_levels_fill_their_range_and_phases_come_equally_often():
    degradation = Degradation(kind="bayer", phase="any", sigma=(10, 30))
    found = [observe(picture(2, 2), degradation, (0, 0, sample)) for sample in range(2000)]
    levels = 255 * np.array([one.sigma for one in found])
    assert 10 <= levels.min() < 10.1 and 29.9 < levels.max() <= 30 and levels.mean() == pytest.approx(20, abs=0.5)
    phases = [next(phase for phase in PHASES if np.array_equal(one.mask, bayer_mask(2, 2, phase))) for one in found]
    assert all(440 < phases.count(phase) < 560 for phase in PHASES)


def test_a_mosaic_of_a_grey_picture_is_refused():
    with pytest.raises(UserError, match="needs 3 channels, the picture has 1"):
        observe(picture(channels=1), Degradation(kind="bayer"), KEY)


@pytest.mark.parametrize(
    ("color", "expected"),
    [((0, 0, 0), 16), ((1, 1, 1), 235), ((1, 0, 0), 81.481), ((0, 1, 0), 144.553), ((0, 0, 1), 40.966)],
)
def test_luma_is_that_of_bt601_in_studio_range(color, expected):
    rgb = np.full((2, 3, 3), color, dtype=np.float32)
    assert luma(rgb).shape == (2, 3, 1) and luma(rgb).dtype == np.float32
    np.testing.assert_allclose(255 * luma(rgb), expected, rtol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_unpack_gives_back_what_was_packed(channels):
    generator = np.random.default_rng(0)
    made = [Observed(*generator.random((2, 6, 5, channels), dtype=np.float32), sigma) for sigma in (0.0, 0.1, 0.2)]
    images = pack(made)
    assert images.shape == (3, 2 * channels + 1, 6, 5) and images.dtype == torch.float32
    observed, mask, sigma = unpack(images)
    for number, one in enumerate(made):
        assert np.array_equal(observed[number].permute(1, 2, 0), one.observed)
        assert np.array_equal(mask[number].permute(1, 2, 0), one.mask)
    torch.testing.assert_close(sigma, torch.tensor([0.0, 0.1, 0.2]))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bayer", {"kind": "bayer"}),
        ("bayer:RGGB", {"kind": "bayer"}),
        ("bayer:grbg", {"kind": "bayer", "phase": "GRBG"}),
        ("bayer:any", {"kind": "bayer", "phase": "any"}),
        ("decimate", {"kind": "decimate"}),
        ("random:0.1", {"kind": "random", "keep": 0.1}),
        ("none", {"kind": "none"}),
    ],
)
def test_degradations_as_users_write_them(text, expected):
    assert parse_degradation(text, sigma=(5, 10)) == Degradation(**expected, sigma=(5, 10))


@pytest.mark.parametrize(
    "text",
    ["", "blur", "bayer:", "bayer:RGBG", "Bayer:RGGB", "decimate:2", "none:1", "random:", "random:x", "random:0"]
    + ["random:1.5", "random:nan", "bayer:RGGB:RGGB"],
)
def test_an_unknown_degradation_is_one_line_with_those_that_are_known(text):
    with pytest.raises(UserError, match=r"^degradation .*bayer:RGGB .*decimate, random:0\.25") as error:
        parse_degradation(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("sigma", [-1, 256, (20, 10), float("nan")])
def test_a_level_out_of_range_is_refused(sigma):
    with pytest.raises(UserError, match="sigma between 0 and 255"):
        parse_degradation("none", sigma=sigma)
