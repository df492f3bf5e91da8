"""Which patches are hidden, the loss by its formula, and metrics that do not depend on how images are dealt out."""

import math

import pytest
import torch
from torch import nn

from crate_graph.config import load_recipe
from crate_graph.data import PlannedLoader, open_dataset
from crate_graph.errors import UserError
from crate_graph.models.crate_mae import to_patches
from crate_graph.tasks import MaskedAutoencodingTask
from crate_graph.tasks.build import build_task, model_arguments, train_transform
from crate_graph.tasks.masked_autoencoding import random_masks

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


class Guessing(nn.Module):
    """A constant for each pixel; it notes the masks that it is given."""

    def __init__(self, value=0.1):
        super().__init__()
        self.value, self.masks, self.patch_embed = value, [], nn.Identity()
        self.patch_embed.patch_size = (4, 4)

    def grid_size(self, height, width):
        return height // 4, width // 4

    def forward(self, images, mask):
        self.masks.append(mask)
        return torch.full_like(to_patches(images, (4, 4)), self.value)


def task(**kwargs):
    return MaskedAutoencodingTask(
        **{"mask_ratio": 0.75, "normalize_patches": False, "mean": MEAN, "std": STD, **kwargs}
    )


def batch(count=4):
    """Images whose pixels are multiples of 1/255, as those of files are; numbers; weights."""
    generator = torch.Generator().manual_seed(0)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (MEAN, STD))
    pixels = torch.randint(0, 256, (count, 3, 16, 16), generator=generator) / 255
    numbers = torch.randint(-(2**63), 2**63 - 1, (count,), generator=generator)
    return (pixels - mean) / std, numbers, torch.ones(count)


@pytest.mark.parametrize(
    "patches, ratio, hidden", [(16, 0.75, 12), (49, 0.75, 37), (10, 0.9, 9), (4, 0.99, 3), (4, 0.01, 1)]
)
def test_as_many_patches_are_hidden_as_the_published_code_hides(patches, ratio, hidden):
    mask = random_masks(batch(50)[1], patches, ratio)
    assert mask.shape == (50, patches) and set(mask.sum(dim=1).tolist()) == {hidden}


def test_every_patch_is_hidden_equally_often():
    mask = random_masks(torch.arange(20_000), 16, 0.75)  # numbers that differ by one, too
    share = mask.mean(dim=0)
    assert (share - 0.75).abs().max() < 5 * math.sqrt(0.75 * 0.25 / 20_000)
    pairs = (mask.T @ mask) / len(mask)
    expected = 0.75 * 11 / 15  # of drawing without replacement
    assert (pairs - torch.diag(pairs.diagonal()) + expected * torch.eye(16) - expected).abs().max() < 0.02


def test_the_loss_is_the_mean_over_the_hidden_patches():
    images, numbers, weights = batch()
    weights[1] = 0
    total, count = task().loss(model := Guessing(), images, numbers, weights)
    (mask,) = model.masks
    errors = (to_patches(images, (4, 4)) - 0.1).square()
    expected = sum(errors[n][mask[n] > 0].mean() for n in (0, 2, 3))
    torch.testing.assert_close(total, expected)
    assert count == 3


def test_normalised_patches_have_mean_zero_and_variance_one():
    images, numbers, weights = batch()
    total, _ = task(normalize_patches=True).loss(Guessing(0.0), images, numbers, weights)
    values = 4 * 4 * 3
    assert total.item() / 4 == pytest.approx((values - 1) / values, rel=1e-4)  # the variance is the unbiased one


def test_psnr_is_that_of_the_hidden_pixels():
    images, numbers, weights = batch()
    judge, model = task(), Guessing()
    metrics = judge.summarize(judge.measure(model, images, numbers, weights))
    pixels = to_patches(images, (4, 4)).unflatten(-1, (-1, 3)) * torch.tensor(STD) + torch.tensor(MEAN)
    constant = (0.1 * torch.tensor(STD) + torch.tensor(MEAN)).mul(255).round() / 255
    psnr, guess = [], []
    for image, mask in zip(pixels.double(), model.masks[0] > 0, strict=True):
        psnr.append(-10 * math.log10((image[mask] - constant).square().mean()))
        guess.append(-10 * math.log10((image[mask] - image[~mask].mean(dim=(0, 1))).square().mean()))
    assert metrics["psnr"] == pytest.approx(sum(psnr) / 4, abs=1e-4)
    assert metrics["psnr_of_visible_mean"] == pytest.approx(sum(guess) / 4, abs=1e-4)


def test_a_normalised_patch_is_brought_back_before_it_is_judged():
    """Right up to its mean and deviation: a completion that the network would call perfect is one."""

    class Perfect(Guessing):
        def forward(self, images, mask):
            patches = to_patches(images, (4, 4))
            return (patches - patches.mean(-1, keepdim=True)) / patches.std(-1, keepdim=True)

    judge = task(normalize_patches=True)
    metrics = judge.summarize(judge.measure(Perfect(), *batch()))
    assert metrics["psnr"] == 100 and metrics["loss"] < 1e-4


def test_metrics_are_the_same_however_images_are_dealt_out():
    images, numbers, weights = batch()
    whole = task().measure(Guessing(), images, numbers, weights)
    single = [task().measure(Guessing(), *(t[n : n + 1] for t in (images, numbers, weights))) for n in range(4)]
    torch.testing.assert_close(sum(single), whole, rtol=1e-6, atol=0)
    images[3], weights[3] = math.nan, 0
    torch.testing.assert_close(task().measure(Guessing(), images, numbers, weights), sum(single[:3]), rtol=1e-6, atol=0)


def test_the_gallery_shows_what_is_seen_completed_and_there():
    judge, model, (images, numbers, weights) = task(), Guessing(), batch()
    weights[0] = 0
    judge.measure(model, images, numbers, weights)
    judge.measure(model, images + 1, numbers, weights)  # only what comes first is kept
    gallery = judge.take_gallery()
    assert gallery.shape == (3, 3, 16, 48) and judge.take_gallery() is None
    seen, completed, there = gallery.split(16, dim=-1)
    original = judge.pictures(images)[1:]
    torch.testing.assert_close(there, original)
    hidden = model.masks[0][1:].view(3, 1, 4, 1, 4, 1).expand(-1, 3, -1, 4, -1, 4).reshape(3, 3, 16, 16) > 0
    assert (seen[hidden] == 0.5).all() and (completed[hidden] != there[hidden]).any()
    torch.testing.assert_close(seen[~hidden], original[~hidden])
    torch.testing.assert_close(completed[~hidden], original[~hidden])


def _masks_by_sample(recipe, dataset, *, world, workers, epoch):
    found = {}
    for rank in range(world):
        loader = PlannedLoader(
            "train",
            dataset=dataset,
            transform=train_transform(recipe, dataset),
            slots=8,
            global_batch=16,
            seed=recipe.seed,
            rank=rank,
            world=world,
            workers=workers,
        )
        for step, part in enumerate(loader.epoch(epoch)):
            found |= dict(zip(part.samples.tolist(), part.targets.tolist(), strict=True))
            if step == 3:
                break
        loader.close()
    return found


def test_masks_are_keyed_by_seed_epoch_and_sample():
    recipe, dataset = load_recipe("mae_quickstart"), open_dataset("fashion_mnist")
    alone = _masks_by_sample(recipe, dataset, world=1, workers=0, epoch=1)
    assert len(set(alone.values())) == len(alone) == 64
    assert _masks_by_sample(recipe, dataset, world=2, workers=2, epoch=1) == alone
    later = _masks_by_sample(recipe, dataset, world=1, workers=0, epoch=2)
    assert not set(later.values()) & set(alone.values())
    other = load_recipe("mae_quickstart", ["seed=1"])
    assert not set(_masks_by_sample(other, dataset, world=1, workers=0, epoch=1).values()) & set(alone.values())


def test_model_and_task_must_fit():
    dataset = open_dataset("fashion_mnist")
    recipe = load_recipe("mae_quickstart")
    assert model_arguments(recipe, dataset)["in_chans"] == 1
    assert isinstance(build_task(recipe, dataset.mean, dataset.std), MaskedAutoencodingTask)
    with pytest.raises(UserError, match="set task.kind=masked_autoencoding"):
        model_arguments(load_recipe("quickstart", ["model.name=crate_mae_tiny_patch16_224"]), dataset)
    with pytest.raises(UserError, match="choose one of crate_mae"):
        model_arguments(load_recipe("mae_quickstart", ["model.name=crate_tiny_patch16_224"]), dataset)


@pytest.mark.parametrize(
    "override, message",
    [
        ("task.label_smoothing=0.1", "has no labels"),
        ("data.train_transform.mixup=0.8", "has no labels"),
        ("evaluation.metric=top1", "choose psnr or loss"),
        ("evaluation.metric=ssim", "choose psnr or loss"),
        ("data.patch=32", "for restoration"),
        ("task.mask_ratio=1", "mask_ratio"),
    ],
)
def test_settings_that_do_not_fit_are_named(override, message):
    with pytest.raises(UserError, match=message):
        load_recipe("mae_quickstart", [override])


def test_other_tasks_hide_nothing():
    with pytest.raises(UserError, match="for masked autoencoding"):
        load_recipe("quickstart", ["task.mask_ratio=0.5"])
    assert load_recipe("mae_quickstart").evaluation.metric == "psnr"
