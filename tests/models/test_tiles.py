"""Tiles give what the whole picture gives, for a network that sees less far than the overlap reaches."""

import itertools

import pytest
import torch

from crate_graph import create_model
from crate_graph.errors import UserError
from crate_graph.models.tiles import Tiled, _spans, restore_tiled


def mosaic(height, width):
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(1, 3, height, width)
    for channel, row, column in ((0, 0, 0), (1, 0, 1), (1, 1, 0), (2, 1, 1)):
        mask[:, channel, row::2, column::2] = 1
    return torch.rand(1, 3, height, width, generator=generator) * mask, mask


@pytest.fixture(scope="module")
def model():
    """It sees 9 pixels to each side: three convolutions at half the resolution, odd starts included."""
    torch.manual_seed(0)
    model = create_model("conv_restorer", dim=8, depth=1).eval()
    torch.nn.init.normal_(model.exit.weight, std=0.1)  # at first a network adds nothing to the interpolation
    return model


@pytest.mark.parametrize("height, width", [(97, 143), (100, 40), (31, 64), (64, 65), (66, 63)])
def test_tiles_equal_the_whole_picture(model, height, width):
    observed, mask = mosaic(height, width)
    with torch.no_grad():
        whole = model(observed, mask)
    tiled = restore_tiled(model, observed, mask, tile=48, overlap=24)
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-6)
    torch.testing.assert_close(Tiled(model, 48, 24)(observed, mask), whole, rtol=0, atol=1e-6)


def test_too_little_overlap_shows(model):
    """The comparison above can fail."""
    observed, mask = mosaic(97, 143)
    with torch.no_grad():
        whole = model(observed, mask)
    assert (restore_tiled(model, observed, mask, tile=48, overlap=4) - whole).abs().max() > 1e-4


def test_each_tile_sees_the_mosaic_in_its_phase_and_the_noise():
    seen = []

    def model(observed, mask, sigma):
        seen.append((mask[0, 0, 0, 0].item(), sigma, max(mask.shape[-2:])))
        return observed

    observed, mask = mosaic(77, 93)
    sigma = torch.tensor([0.1])
    assert restore_tiled(model, observed, mask, sigma, tile=32, overlap=6).equal(observed)
    assert len(seen) > 4 and all(first == 1 and noise is sigma and side <= 32 for first, noise, side in seen)


def test_the_kept_parts_cover_the_picture_once():
    for length, tile, overlap in itertools.product(range(1, 130), (16, 22), (0, 2, 8)):
        spans = _spans(length, tile, overlap)
        assert spans[0][2] == 0 and spans[-1][3] == length
        for before, after in itertools.pairwise(spans):
            assert before[3] == after[2] and before[1] - after[0] >= overlap
        for start, end, first, last in spans:
            assert start % 2 == 0 and 0 <= start <= first < last <= end <= length and end - start <= tile


@pytest.mark.parametrize("tile, overlap", [(47, 8), (48, 7), (48, 26), (16, 64)])
def test_tiles_that_cannot_be_are_refused(model, tile, overlap):
    with pytest.raises(UserError, match=f"choose an even number of {max(2 * overlap, 16)} pixels or more"):
        restore_tiled(model, *mosaic(64, 64), tile=tile, overlap=overlap)
