"""PSNR and SSIM against scikit-image, and the values that follow from the definition."""

import math

import numpy as np
import pytest
import torch

from crate_graph.errors import UserError
from crate_graph.tasks.metrics import mean_squared_error, psnr_of, ssim, to_8_bit

skimage = pytest.importorskip("skimage.metrics")


def pictures(channels, height=37, width=52, batch=3):
    """A smooth picture and a noisy one that leaves [0, 1]: (B, C, H, W) float32 twice."""
    generator = torch.Generator().manual_seed(3)
    rows, columns = torch.linspace(0, 7, height)[:, None], torch.linspace(0, 5, width)
    clean = 0.5 + 0.5 * torch.sin(rows * columns + torch.arange(batch * channels).view(batch, channels, 1, 1))
    return clean, clean + 0.1 * torch.randn(clean.shape, generator=generator)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("eight_bits", [False, True])
def test_both_equal_scikit_image(channels, eight_bits):
    clean, noisy = pictures(channels)
    estimate = to_8_bit(noisy) if eight_bits else noisy
    similarities, ratios = ssim(estimate, clean), psnr_of(mean_squared_error(estimate, clean))
    for place in range(len(clean)):
        x, y = (np.moveaxis(a[place].double().numpy(), 0, -1) for a in (estimate, clean))
        expected = skimage.structural_similarity(x, y, channel_axis=-1, data_range=1)
        assert similarities[place].item() == pytest.approx(expected, abs=1e-12)
        expected = skimage.peak_signal_noise_ratio(y, x, data_range=1)
        assert ratios[place].item() == pytest.approx(expected, abs=1e-10)


def test_8_bits_are_what_a_file_keeps():
    values = torch.tensor([-0.2, 0.0, 0.5 / 255, 1.5 / 255, 0.4999, 1.0, 1.7])
    stored = np.round(np.clip(values.double().numpy(), 0, 1) * 255).astype(np.uint8)
    assert (to_8_bit(values.double()) * 255).tolist() == pytest.approx(stored.tolist(), abs=1e-9)


def test_known_values():
    clean = torch.full((2, 3, 16, 16), 0.5)
    off = clean + 0.1 * torch.tensor([1.0, 0.0]).view(2, 1, 1, 1)
    assert psnr_of(mean_squared_error(off, clean)).tolist() == pytest.approx([20.0, 100.0], abs=1e-5)
    assert ssim(off, clean)[1].item() == 1.0
    luminance = (2 * 0.6 * 0.5 + 1e-4) / (0.6**2 + 0.5**2 + 1e-4)  # flat pictures differ in luminance only
    assert ssim(off, clean)[0].item() == pytest.approx(luminance, abs=1e-6)
    assert math.isfinite(psnr_of(torch.zeros(1)).item())


def test_a_picture_below_the_window_is_named():
    with pytest.raises(UserError, match="9 x 6 pixels is smaller"):
        ssim(torch.zeros(1, 3, 6, 9), torch.zeros(1, 3, 6, 9))
