"""What a network is shown of a picture, and what is made of its estimate."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from crate_graph import create_model
from crate_graph.config.schema import Degradation
from crate_graph.data.degrade import PHASES, bayer_mask
from crate_graph.errors import UserError
from crate_graph.restore.color import chroma, from_luma, to_channels
from crate_graph.restore.request import Request, make_request
from crate_graph.restore.scene import as_pixels, as_tensor, bring_to_phase, observe_scene


@pytest.fixture(scope="module")
def network():
    """Random weights that treat the four phases differently."""
    torch.manual_seed(0)
    model = create_model("conv_restorer", dim=8, depth=1).eval()
    for weights in model.parameters():
        torch.nn.init.normal_(weights, std=0.1)
    return model


@pytest.fixture
def pixels(scene):
    return scene.astype(np.float32) / 255


@pytest.mark.parametrize("wanted", PHASES)
@pytest.mark.parametrize("phase", PHASES)
def test_a_border_brings_a_mosaic_to_another_phase(phase, wanted, pixels):
    mask = as_tensor(bayer_mask(*pixels.shape[:2], phase))
    observed = as_tensor(pixels) * mask
    padded, padded_mask, (rows, columns) = bring_to_phase(observed, mask, phase, wanted)
    assert max(rows, columns) <= 1 and ((rows, columns) == (0, 0)) == (phase == wanted)
    assert torch.equal(padded[..., rows:, columns:], observed)  # cropping is exact, odd sides included
    assert torch.equal(padded_mask[..., rows:, columns:], mask)
    assert torch.equal(padded_mask, as_tensor(bayer_mask(*padded.shape[-2:], wanted)))
    assert not (padded * (1 - padded_mask)).any()


@pytest.mark.parametrize("phase", ["GRBG", "GBRG", "BGGR"])
def test_a_part_of_a_mosaic_is_restored_as_in_the_whole(phase, network, pixels):
    """Cut an RGGB mosaic so that another phase comes first: away from the cut the same values must come out."""
    row, column = PHASES[phase]
    mask = as_tensor(bayer_mask(*pixels.shape[:2], "RGGB"))
    observed = as_tensor(pixels) * mask
    part = (..., slice(row, None), slice(column, None))
    shown, shown_mask, (rows, columns) = bring_to_phase(observed[part], mask[part], phase, "RGGB")
    far = 16  # pixels that the network looks at, and more
    with torch.no_grad():
        whole = network(observed, mask)[part][..., far:, far:]
        restored = network(shown, shown_mask)[..., rows:, columns:]
        as_it_is = network(observed[part], mask[part])
    assert restored.shape == observed[part].shape
    assert torch.allclose(restored[..., far:, far:], whole, atol=1e-6)
    assert (as_it_is[..., far:, far:] - whole).abs().max() > 0.01  # without the border it would not be


def test_colours_survive_luma_and_chroma(pixels):
    assert np.allclose(from_luma(to_channels(pixels, "y"), chroma(pixels)), pixels, atol=1e-5)
    grey = pixels[..., :1]
    assert np.allclose(from_luma(to_channels(grey, "y"), None), grey, atol=1e-6)
    assert np.array_equal(to_channels(grey, "rgb"), np.repeat(grey, 3, axis=2))
    white = np.ones((1, 1, 3), np.float32)
    assert np.allclose(to_channels(white, "y") * 255, 235) and np.allclose(chroma(white) * 255, 128)
    blue = np.array([[[0, 0, 1]]], np.float32)
    assert np.allclose(chroma(blue)[0, 0] * 255, [240, 109.786], atol=1e-3)  # BT.601


@pytest.mark.parametrize("phase", PHASES)
def test_a_mosaic_of_one_channel(phase, pixels):
    mosaic = (pixels * bayer_mask(*pixels.shape[:2], phase)).sum(axis=2, keepdims=True)
    scene = observe_scene(mosaic, Request(mosaic=phase), "rgb")
    expected = observe_scene(pixels, make_request(f"bayer:{phase}"), "rgb")
    assert torch.equal(scene.observed, expected.observed) and torch.equal(scene.mask, expected.mask)
    assert scene.clean is None and scene.original is None and expected.original is pixels


def test_an_enlarged_picture_keeps_its_pixels(pixels):
    height, width, _ = pixels.shape
    scene = observe_scene(pixels, Request(scale=2), "y")
    assert scene.observed.shape == scene.mask.shape == (1, 1, 2 * height, 2 * width)
    assert scene.mask.sum() == scene.mask[..., ::2, ::2].sum() == height * width
    assert np.allclose(as_pixels(scene.observed)[::2, ::2], to_channels(pixels, "y"))
    enlarged = scene.picture_of(scene.observed)
    assert enlarged.shape == (2 * height, 2 * width, 3)
    assert np.allclose(enlarged[::2, ::2], pixels, atol=1e-5)  # chroma lies where the picture's pixels lie
    flat = observe_scene(np.full((9, 8, 3), [0.2, 0.5, 0.7], np.float32), Request(scale=2), "y")
    perfect = flat.picture_of(torch.full((1, 1, 18, 16), flat.observed.max().item()))
    assert np.allclose(perfect, [0.2, 0.5, 0.7], atol=1e-5)
    assert observe_scene(pixels[..., :1], Request(scale=2), "y").picture_of(scene.observed).shape[2] == 1


@pytest.mark.parametrize("how", ["decimate", "random:0.4"])
def test_a_network_for_luma_sees_no_colour_that_is_lost(how, pixels):
    """What is restored may depend on known pixels only: the others are changed, and nothing may change."""
    request = make_request(how)
    scene = observe_scene(pixels, request, "y")
    unknown = as_pixels(scene.mask)[..., 0] == 0
    changed = pixels.copy()
    changed[unknown] = 0.9
    other = observe_scene(changed, request, "y")
    assert torch.equal(scene.observed, other.observed) and unknown.any()
    assert np.array_equal(scene.picture_of(scene.clean), other.picture_of(scene.clean))
    assert np.allclose(scene.picture_of(scene.clean)[~unknown], pixels[~unknown], atol=1e-5)


def test_noise_repeats_and_is_of_the_level(pixels):
    flat = np.full((200, 200, 3), 0.5, np.float32)
    one, two = (observe_scene(flat, make_request("none", 20.0), "rgb").observed for _ in range(2))
    assert torch.equal(one, two)
    assert abs((one - 0.5).std().item() * 255 - 20) < 0.2
    assert make_request("none", 20.0).told_sigma() == pytest.approx(20 / 255)
    assert make_request("none", 20.0, sigma=5.0).told_sigma() == pytest.approx(5 / 255)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"degrade": "beyer"}, "degradation 'beyer': unknown; write bayer:RGGB"),
        ({"degrade": "bayer:any"}, "a picture has one phase; write one of RGGB"),
        ({"degrade": "none"}, "leaves nothing to restore; add --noise"),
        ({"degrade": "decimate", "noise": 300.0}, "--noise 300: noise is from 0 to 255"),
        ({"noise": 5.0}, "--noise 5: is added when a picture is degraded"),
        ({"degrade": "decimate", "scale": 2}, "--degrade and --scale exclude each other"),
        ({"mosaic": "RGGB", "scale": 2}, "--mosaic and --scale exclude each other"),
        ({"mosaic": "RGB"}, "--mosaic RGB: unknown phase; write one of RGGB"),
        ({"scale": 3}, "--scale 3: pictures are enlarged by 2"),
        ({"sigma": -1.0}, "--sigma -1: noise is from 0 to 255"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused(arguments, says):
    with pytest.raises(UserError, match=says):
        make_request(**arguments)


def test_what_kind_of_problem_a_request_is():
    kinds = [Request(), Request(mosaic="RGGB"), Request(scale=2), Request(degrade=Degradation(kind="random"))]
    assert [request.kind for request in kinds] == ["none", "bayer", "decimate", "random"]
    assert [request.phase for request in kinds] == [None, "RGGB", None, None]
    assert make_request("bayer:gbrg").phase == make_request(mosaic="gbrg").phase == "GBRG"
