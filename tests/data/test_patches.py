import numpy as np
import pytest
import torch
from PIL import Image

from crate_graph.config.schema import Degradation
from crate_graph.data import PlannedLoader
from crate_graph.data.degrade import bayer_mask, luma, unpack
from crate_graph.data.patches import PatchView, turned
from crate_graph.errors import UserError

MOSAIC = Degradation(kind="bayer", phase="GRBG")
NOISY = Degradation(kind="bayer", phase="any", sigma=(0, 50))


def places(width=7, height=6):
    """Each pixel names its place."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack((rows, columns, rows + columns), axis=-1).astype(np.uint8)


@pytest.fixture
def loader():
    """Makes loaders of 12 x 12 pictures and closes them."""
    made = []

    def make(dataset, view, **change):
        arguments = dict(slots=4, global_batch=8, block=3, seed=1) | change
        made.append(PlannedLoader("train", dataset=dataset, transform=view, **arguments))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_the_eight_symmetries_of_a_square():
    pixels = places(5, 5)
    found = [turned(pixels, turn) for turn in range(8)]
    assert len({one.tobytes() for one in found}) == 8
    transposed = {one.swapaxes(0, 1).tobytes() for one in found}
    assert transposed == {one.tobytes() for one in found}  # a group: no other symmetry is left


def test_every_square_comes_in_every_symmetry():
    image, view = Image.fromarray(places()), PatchView(5, MOSAIC)
    squares = [places()[top : top + 5, left : left + 5] for top in range(2) for left in range(3)]
    expected = {turned(square, turn).tobytes() for square in squares for turn in range(8)}
    found = [view.view(image, (0, 0, sample)).tobytes() for sample in range(2000)]
    counts = [found.count(square) for square in expected]
    assert set(found) == expected and len(counts) == 48 and min(counts) > 15


def test_a_patch_is_degraded_after_it_is_turned():
    view, image = PatchView(5, MOSAIC), Image.fromarray(places())
    keys = [(0, 0, sample) for sample in range(20)]
    pixels = np.stack([view.view(image, key) for key in keys])
    images, targets = view.batch(pixels, np.zeros(20, dtype=np.int64), keys, [])
    observed, mask, sigma = unpack(images)
    torch.testing.assert_close(targets, torch.from_numpy(pixels.transpose(0, 3, 1, 2) / np.float32(255)))
    assert torch.equal(observed, targets * mask) and not sigma.any()
    assert (mask == torch.from_numpy(bayer_mask(5, 5, "GRBG")).permute(2, 0, 1)).all()


def test_luma_has_one_channel():
    view = PatchView(5, Degradation(kind="decimate"), "y")
    pixels = places(5, 5)[None]
    images, targets = view.batch(pixels, np.zeros(1, dtype=np.int64), [(0, 0, 0)], [])
    assert images.shape == (1, 3, 5, 5) and targets.shape == (1, 1, 5, 5)
    expected = luma(pixels[0].astype(np.float32) / 255)[..., 0]
    torch.testing.assert_close(targets[0, 0], torch.from_numpy(expected))
    assert torch.equal(images[0, 0, ::2, ::2], targets[0, 0, ::2, ::2])


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_deals_patches_and_what_they_are_compared_with(make_dataset, loader, workers):
    dataset = make_dataset((7, 1, 9, 4))
    for batch in loader(dataset, PatchView(8, MOSAIC), workers=workers).epoch(0):
        assert batch.images.shape == (8, 7, 8, 8) and batch.images.dtype == torch.float32
        assert batch.targets.shape == (8, 3, 8, 8) and batch.targets.dtype == torch.float32
        assert torch.equal(batch.images[:, :3], batch.targets * batch.images[:, 3:6])
        assert [len(part.targets) for part in batch.split(4)] == [2] * 4


@pytest.mark.parametrize(("world", "workers"), [(1, 2), (2, 0), (2, 2), (4, 0)])
def test_patches_are_the_same_on_any_layout_and_after_a_restart(make_dataset, loader, world, workers):
    dataset = make_dataset((20, 30))
    view = PatchView(8, NOISY)
    whole = list(loader(dataset, view).epoch(1))
    ranks = [loader(dataset, view, rank=rank, world=world, workers=workers) for rank in range(world)]
    shares = list(zip(*(one.epoch(1, start=2) for one in ranks), strict=True))
    assert len(shares) == len(whole) - 2 == 4
    for reference, parts in zip(whole[2:], shares, strict=True):
        assert torch.equal(reference.images, torch.cat([part.images for part in parts]))
        assert torch.equal(reference.targets, torch.cat([part.targets for part in parts]))


def batch_of(batch):
    return batch.samples.tolist(), batch.images


def test_epochs_differ(make_dataset, loader):
    one = loader(make_dataset((8,)), PatchView(8, NOISY))
    first, second = (
        {number: image for batch in one.epoch(epoch) for number, image in zip(*batch_of(batch), strict=True)}
        for epoch in (0, 1)
    )
    assert first.keys() == second.keys() and not any(torch.equal(first[n], second[n]) for n in first)


def test_a_grey_data_set_gives_three_equal_channels(make_dataset, loader):
    dataset = make_dataset((8,), channels=1)
    (batch,) = loader(dataset, PatchView(8, MOSAIC)).epoch(0)
    assert torch.equal(batch.targets[:, 0], batch.targets[:, 1]) and batch.images.shape == (8, 7, 8, 8)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_picture_smaller_than_a_patch_is_named(make_dataset, loader, picture, workers):
    small = picture(0, (16, 9))
    dataset = make_dataset((8,), change=lambda n, m: {**m, "png": small} if n == 3 else m)
    with pytest.raises(UserError) as error:
        list(loader(dataset, PatchView(12, MOSAIC), workers=workers).epoch(0))
    text = str(error.value)
    assert "train-000000.tar: sample 's0003': a picture of 16 x 9 pixels is smaller than data.patch=12" in text
    assert "at most 9" in text and "\n" not in text
