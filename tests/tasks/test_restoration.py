"""The losses by their formulas, and metrics that do not depend on how the pictures are dealt out."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from crate_graph.config.schema import Degradation
from crate_graph.data.degrade import observe, pack
from crate_graph.errors import UserError
from crate_graph.tasks import RestorationTask
from crate_graph.tasks.build import check_degradation
from crate_graph.tasks.metrics import ssim, to_8_bit


class Interpolating(nn.Module):
    """Known values, and a constant where nothing is known; it notes the noise level that it is told."""

    def __init__(self, noise_aware=False):
        super().__init__()
        self.noise_aware, self.told = noise_aware, []

    def forward(self, observed, mask, sigma=None):
        self.told.append(sigma)
        return observed + 0.4 * (1 - mask)


def batch(count=4, height=20, width=24, **degradation):
    """Images, targets, weights of random pictures, mosaicked."""
    generator = np.random.default_rng(height)
    clean = generator.random((count, height, width, 3), dtype=np.float32)
    degradation = Degradation(kind="bayer", **degradation)
    images = pack([observe(picture, degradation, (0, 0, number)) for number, picture in enumerate(clean)])
    return images, torch.from_numpy(clean).movedim(-1, 1).contiguous(), torch.ones(count)


@pytest.mark.parametrize(
    "name, formula",
    [
        ("l1", lambda e: abs(e)),
        ("mse", lambda e: e * e),
        ("charbonnier", lambda e: math.sqrt(e * e + 1e-6)),
        ("huber", lambda e: e * e / 0.02 if abs(e) < 0.01 else abs(e) - 0.005),
    ],
)
def test_a_loss_is_the_mean_over_the_values_of_a_picture(name, formula):
    images, targets, weights = batch()
    weights[1] = 0
    total, count = RestorationTask(name).loss(Interpolating(), images, targets, weights)
    estimates = Interpolating()(images[:, :3], images[:, 3:6])
    errors = (estimates - targets)[weights > 0].flatten().tolist()
    expected = sum(map(formula, errors)) / (len(errors) / 3)
    assert total.item() == pytest.approx(expected, rel=1e-5) and count.item() == 3


def test_metrics_are_the_same_however_pictures_are_dealt_out():
    task, model = RestorationTask(), Interpolating()
    images, targets, weights = batch()
    whole = task.measure(model, images, targets, weights)
    single = [task.measure(model, *(t[n : n + 1] for t in (images, targets, weights))) for n in range(4)]
    torch.testing.assert_close(sum(single), whole, rtol=1e-12, atol=0)


def test_both_forms_by_their_definitions():
    """The usual one averages over pictures; the pooled one over values, so a larger picture weighs more."""
    task, model = RestorationTask(), Interpolating()
    parts = [batch(2, 20, 24), batch(1, 40, 30)]
    metrics = task.summarize(sum(task.measure(model, *part) for part in parts))
    pairs = [
        (model(images[n : n + 1, :3], images[n : n + 1, 3:6]), targets[n : n + 1])
        for images, targets, _ in parts
        for n in range(len(targets))
    ]
    errors = [(x - y).double().square() for x, y in pairs]
    ratios = [-10 * math.log10((to_8_bit(x) - y).double().square().mean()) for x, y in pairs]
    assert metrics["psnr"] == pytest.approx(sum(ratios) / 3, abs=1e-6)
    assert metrics["ssim"] == pytest.approx(sum(ssim(to_8_bit(x), y).item() for x, y in pairs) / 3, abs=1e-9)
    pooled = sum(error.sum() for error in errors) / sum(error.numel() for error in errors)
    assert metrics["psnr_pooled"] == pytest.approx(-10 * math.log10(pooled), abs=1e-6)
    assert metrics["ssim_float"] == pytest.approx(sum(ssim(x, y).item() for x, y in pairs) / 3, abs=1e-9)


def test_the_paper_form_neither_clips_nor_rounds():
    class Outside(nn.Module):
        def forward(self, observed, mask, sigma=None):
            return torch.full_like(observed, 1.2)

    images, _, weights = batch()
    metrics = RestorationTask().summarize(
        RestorationTask().measure(Outside(), images, torch.ones(4, 3, 20, 24), weights)
    )
    assert metrics["psnr"] == 100 and metrics["psnr_pooled"] == pytest.approx(-20 * math.log10(0.2), abs=1e-4)


def test_padding_counts_for_nothing_whatever_it_holds():
    task, model = RestorationTask(), Interpolating()
    images, targets, weights = batch()
    expected = task.measure(model, images[:3], targets[:3], weights[:3])
    images[3], weights[3] = math.nan, 0
    assert task.measure(model, images, targets, weights).equal(expected)
    assert task.measure(model, images[3:], targets[3:], weights[3:]).equal(torch.zeros(7, dtype=torch.float64))


@pytest.mark.parametrize("aware", [False, True])
def test_the_noise_level_is_told_to_a_model_that_is_aware_of_it(aware):
    model = Interpolating(aware)
    RestorationTask().loss(model, *batch(sigma=(10, 30)))
    (told,) = model.told
    if aware:
        assert told.shape == (4,) and len(set(told.tolist())) == 4
        assert all(10 <= 255 * level <= 30 for level in told.tolist())
    else:
        assert told is None


def test_what_is_shown_of_a_batch_is_what_was_observed():
    images, targets, _ = batch(sigma=50)
    shown = RestorationTask.pictures(images)
    assert shown.shape == targets.shape and shown.min() == 0 and shown.max() == 1
    assert shown.equal(images[:, :3].clamp(0, 1))


@pytest.mark.parametrize(
    "trained, asked, fits",
    [
        ({"kind": "bayer"}, {"kind": "bayer", "sigma": 20}, True),
        ({"kind": "bayer", "phase": "any"}, {"kind": "bayer", "phase": "BGGR"}, True),
        ({"kind": "bayer"}, {"kind": "bayer", "phase": "BGGR"}, False),
        ({"kind": "bayer"}, {"kind": "bayer", "phase": "any"}, False),
        ({"kind": "bayer"}, {"kind": "decimate"}, False),
        ({"kind": "random", "keep": 0.5}, {"kind": "random", "keep": 0.2}, True),
        ({"kind": "none", "sigma": 5}, {"kind": "none", "sigma": 50}, True),
    ],
)
def test_another_problem_is_refused_and_another_noise_level_is_not(trained, asked, fits):
    trained, asked = Degradation(**trained), Degradation(**asked)
    if fits:
        check_degradation(trained, asked, "weights")
    else:
        with pytest.raises(UserError, match=f"weights: was trained for {trained.kind}.*not for {asked.kind}"):
            check_degradation(trained, asked, "weights")
