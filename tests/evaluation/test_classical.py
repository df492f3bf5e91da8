"""The classical methods against the packages that they stand for, and against the pixels that they must keep."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from crate_graph.config.schema import Degradation
from crate_graph.data.degrade import observe
from crate_graph.errors import UserError
from crate_graph.evaluation.classical import Classical

PHASES = ("RGGB", "GRBG", "GBRG", "BGGR")


@pytest.fixture(scope="module")
def clean(photographs):
    """(54, 61, 3) float32 in [0, 1]: both an even and an odd side."""
    pixels = np.asarray(Image.open(photographs / "pictures" / "test" / "00.png"))
    return pixels.astype(np.float32) / 255


def known(clean, **degradation):
    """Observed and mask, (1, C, H, W)."""
    observed, mask, _ = observe(clean, Degradation(**degradation), (0, 0, 0))
    return (torch.from_numpy(x.copy()).movedim(-1, 0)[None] for x in (observed, mask))


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("name, function", [("bilinear", "bilinear"), ("malvar2004", "Malvar2004")])
def test_demosaicking_is_the_packages_own(clean, name, function, phase):
    colour_demosaicing = pytest.importorskip("colour_demosaicing")
    observed, mask = known(clean, kind="bayer", phase=phase)
    mosaic = observed[0].sum(dim=0).double().numpy()
    expected = getattr(colour_demosaicing, f"demosaicing_CFA_Bayer_{function}")(mosaic, phase)
    estimate = Classical(name)(observed, mask)
    assert estimate.dtype == torch.float32
    np.testing.assert_allclose(estimate[0].movedim(0, -1).numpy(), expected, rtol=0, atol=1e-6)


def test_each_demosaicking_method_is_better_than_the_one_before(clean):
    pytest.importorskip("colour_demosaicing")
    observed, mask = known(clean, kind="bayer")
    target = torch.from_numpy(clean).movedim(-1, 0)
    errors = [
        (Classical(name)(observed, mask)[0] - target).square().mean().item()
        for name in ("bilinear", "malvar2004", "menon2007")
    ]
    assert errors[0] > 1.2 * errors[1] and errors[0] > 1.2 * errors[2]


def test_aligned_bicubic_keeps_known_pixels_and_straight_lines(clean):
    observed, mask = known(clean, kind="decimate")
    estimate = Classical("bicubic")(observed, mask)
    assert estimate[mask > 0].equal(observed[mask > 0])
    rows, columns = np.mgrid[:40, :51].astype(np.float32) / 100
    ramp = (0.1 + rows + 0.5 * columns)[..., None]
    restored = Classical("bicubic")(*known(ramp, kind="decimate"))[0, 0].numpy()
    np.testing.assert_allclose(restored[3:-3, 3:-3], ramp[3:-3, 3:-3, 0], atol=1e-6)


def test_aligned_bicubic_is_pytorchs_kernel_at_the_right_places(clean):
    """With corners aligned, a resize of n pixels to 2n - 1 puts the odd ones half-way between the even ones."""
    x = torch.from_numpy(clean[::2, ::2]).movedim(-1, 0)[None].double()
    ours = Classical("bicubic")(*(t.double() for t in known(clean, kind="decimate")))
    corners = F.interpolate(x, [2 * side - 1 for side in x.shape[-2:]], mode="bicubic", align_corners=True)
    height, width = corners.shape[-2:]
    torch.testing.assert_close(ours[..., :height, :width], corners, rtol=0, atol=1e-9)
    bottom = ours[..., -1, 0]  # the last row of 54 lies beyond the last known one, which is repeated
    torch.testing.assert_close(bottom, -0.09375 * x[..., -2, 0] + 1.09375 * x[..., -1, 0], rtol=0, atol=1e-9)


def test_misaligned_bicubic_is_off_by_half_a_pixel():
    rows, columns = np.mgrid[:40, :50].astype(np.float32) / 100
    ramp = (0.1 + rows + columns)[..., None]
    estimate = Classical("bicubic_misaligned")(*known(ramp, kind="decimate"))[0, 0].numpy()
    offset = (estimate - ramp[..., 0])[6:-6, 6:-6]
    assert offset.mean() == pytest.approx(-0.01, abs=1e-5)  # half a step of 0.01 along rows, and along columns


def test_what_a_method_is_not_for_is_refused(clean):
    with pytest.raises(UserError, match="kind=bayer"):
        Classical("malvar2004")(*known(clean, kind="random", keep=0.3))
    with pytest.raises(UserError, match="kind=decimate"):
        Classical("bicubic")(*known(clean, kind="bayer"))


def test_a_missing_package_is_named():
    code = (
        "import sys; sys.modules['colour_demosaicing'] = None\n"
        "from crate_graph.cli import main\n"
        "sys.exit(main(['evaluate', 'menon2007', '--data', 'fashion_mnist']))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2 and "pip install 'crate-graph[restoration]'" in ended.stderr
    assert "Traceback" not in ended.stderr and len(ended.stderr.strip().splitlines()) == 1
