"""Camera RAW, read by LibRaw itself from DNGs that the tests write: a scene of known colours, seen by a toy camera."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from PIL import Image

from crate_graph.errors import UserError
from crate_graph.models.observation import interpolate_known
from crate_graph.restore import raw as camera_raw
from crate_graph.restore.pictures import read_picture
from crate_graph.restore.raw import decode_srgb, encode_srgb, read_raw
from crate_graph.restore.request import Request
from crate_graph.restore.scene import observe_scene

XYZ_OF_SRGB = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
)
CAMERA_OF_XYZ = np.array([[0.9, -0.3, -0.1], [-0.4, 1.2, 0.2], [-0.05, 0.15, 0.7]])
CAMERA_OF_SRGB = CAMERA_OF_XYZ @ XYZ_OF_SRGB
WHITE = CAMERA_OF_SRGB.sum(axis=1)  # what the camera sees where all is white
BLACK_LEVEL, WHITE_LEVEL = 64, 4095
COLOURS = np.array([[0.6, 0.3, 0.2], [0.2, 0.5, 0.7], [0.1, 0.1, 0.1], [0.8, 0.8, 0.75], [1, 1, 1]])  # linear sRGB
PATCH = 24  # pixels: side of a patch of one colour


def seen(phase: str, height: int = PATCH) -> np.ndarray:
    """The sensor's values, patch beside patch: (height, patches x PATCH) uint16."""
    linear = np.repeat(COLOURS, PATCH, axis=0)  # (W, 3)
    camera = linear @ CAMERA_OF_SRGB.T / WHITE.max()
    rows, columns = np.mgrid[:height, : len(linear)]
    channel = np.array(["RGB".index(letter) for letter in phase])[2 * (rows % 2) + columns % 2]
    return np.rint(BLACK_LEVEL + camera[columns, channel] * (WHITE_LEVEL - BLACK_LEVEL)).astype(np.uint16)


def write_dng(
    path: Path,
    mosaic: np.ndarray,
    phase: str,
    *,
    pattern: tuple[int, int] = (2, 2),
    orientation: int = 1,
    matrix: np.ndarray | None = CAMERA_OF_XYZ,
) -> Path:
    """A minimal DNG 1.4 of one mosaic, or without a phase of three values per pixel."""
    cfa = [(33421, "H", 2, pattern, True), (33422, "B", len(phase), bytes("RGB".index(x) for x in phase), True)]
    colours = [(50721, "2i", 9, fractions(matrix), True), (50778, "H", 1, 21, True)] if matrix is not None else []
    tags = [
        (271, "s", 0, "Toy", True),
        (272, "s", 0, "Camera", True),
        (274, "H", 1, orientation, True),
        *(cfa if phase else []),
        (50706, "B", 4, bytes((1, 4, 0, 0)), True),
        (50708, "s", 0, "Toy Camera", True),
        (50714, "H", 1, BLACK_LEVEL, True),
        (50717, "H", 1, WHITE_LEVEL, True),
        *colours,
        (50728, "2I", 3, fractions(WHITE / WHITE.max()), True),
    ]
    tifffile.imwrite(path, mosaic, photometric=32803 if phase else 34892, extratags=tags, metadata=None)
    return path


def fractions(values: Sequence[float] | np.ndarray) -> tuple[int, ...]:
    return tuple(part for value in np.ravel(values) for part in (round(float(value) * 10000), 10000))


@pytest.mark.parametrize("phase", ["RGGB", "GRBG", "GBRG", "BGGR"])
def test_the_colours_of_the_scene_come_out(phase, tmp_path):
    """Black level, white balance, phase, matrix and curve: each wrong one would change the patches."""
    picture = read_raw(write_dng(tmp_path / "a.dng", seen(phase), phase))
    assert (picture.phase, picture.bits, picture.format, picture.orientation) == (phase, 16, "TIFF", 1)
    assert picture.pixels.dtype == np.float32 and picture.pixels.shape == (PATCH, len(COLOURS) * PATCH, 1)
    scene = observe_scene(picture.pixels, Request(mosaic=picture.phase), "rgb")
    developed = picture.develop(scene.picture_of(interpolate_known(scene.observed, scene.mask)))
    centres = developed[PATCH // 2, PATCH // 2 :: PATCH]
    assert np.abs(centres - encode_srgb(COLOURS)).max() < 1.5 / 255


def test_the_mosaic_of_a_white_scene_is_white(tmp_path):
    """Balanced before demosaicking: where the scene is grey, all pixels are alike."""
    pixels = read_raw(write_dng(tmp_path / "a.dng", seen("RGGB"), "RGGB")).pixels[..., 0]
    grey = pixels[:, 2 * PATCH : 3 * PATCH]
    assert np.abs(grey - encode_srgb(np.array(0.1))).max() < 0.01
    assert pixels[:, 4 * PATCH :].min() > 0.999 and pixels.max() <= 1


def test_a_camera_in_libraws_table_has_its_matrix_there(tmp_path):
    """For most cameras LibRaw knows the XYZ matrix, and its other one may be zero or another: the same must follow."""
    raw = SimpleNamespace(rgb_xyz_matrix=np.vstack((CAMERA_OF_XYZ, np.zeros(3))), color_matrix=np.full((3, 4), 9.0))
    table = camera_raw._to_srgb(raw, Path("a.nef"))
    raw.rgb_xyz_matrix, raw.color_matrix = np.zeros((4, 3)), np.zeros((3, 4))
    with pytest.raises(UserError, match="a.nef: holds no colour matrix of its camera; convert it to DNG"):
        camera_raw._to_srgb(raw, Path("a.nef"))
    assert np.allclose(table @ (CAMERA_OF_SRGB / WHITE[:, None]), np.eye(3))


def test_white_balance_of_daylight_where_the_camera_kept_none():
    raw = SimpleNamespace(camera_whitebalance=[0.0] * 4, daylight_whitebalance=[2.0, 1.0, 1.5, 0.0])
    assert camera_raw._gains(raw, Path("a.nef")).tolist() == [2, 1, 1.5, 1]
    raw.daylight_whitebalance = [0.0] * 4
    with pytest.raises(UserError, match="a.nef: holds no white balance"):
        camera_raw._gains(raw, Path("a.nef"))


def test_the_curve_and_its_inverse():
    values = np.linspace(0, 1, 1001)
    assert np.abs(decode_srgb(encode_srgb(values)) - values).max() < 1e-6
    assert encode_srgb(np.array(0.5)) == pytest.approx(0.735357, abs=1e-5)  # IEC 61966-2-1


def test_raw_is_restored_by_the_command(restore, restorers, tmp_path):
    """Turned as the camera was held, 16 bits, sRGB; the phase is the file's and not the one of training."""
    write_dng(tmp_path / "a.dng", seen("GBRG", 23), "GBRG", orientation=6)
    words = (restorers["bayer"], tmp_path / "a.dng", "--output", tmp_path / "out", "--compare", "--json")
    code, text, err = restore(*words)
    assert code == 0, err
    (result,) = json.loads(text)
    assert (result["width"], result["height"]) == (23, len(COLOURS) * PATCH) and "psnr" not in result
    written = read_picture(tmp_path / "out/a.tif")
    assert (written.bits, written.orientation) == (16, 1) and "sRGB".encode("utf-16-be") in written.icc
    assert Image.open(tmp_path / "out/a.compare.png").width > 480
    assert restore(*words[:2], "--output", tmp_path / "out", "--format", "jpeg")[0] == 0
    assert (tmp_path / "out/a.jpg").exists()


def test_what_is_not_for_raw_is_refused(refused, restorers, tmp_path):
    dng = write_dng(tmp_path / "a.dng", seen("RGGB"), "RGGB")
    for words in (["--degrade", "bayer:RGGB"], ["--mosaic", "RGGB"], ["--scale", "2"]):
        assert "a camera's mosaic, which says its phase; leave" in refused(restorers["bayer"], dng, *words)
    assert "trained for decimate, not for bayer" in refused(restorers["decimate"], dng)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("x_trans.dng", "an X-Trans mosaic; only Bayer mosaics are restored, develop it with another program"),
        ("linear.dng", "no mosaic; only Bayer mosaics are restored"),
        ("garbage.nef", "LibRaw cannot read it .*Unsupported file format.*; convert it to DNG"),
        ("cut.dng", "LibRaw cannot read it .*; convert it to DNG"),
        ("absent.cr3", "no such file; name a picture file"),
    ],
)
def test_other_sensors_and_damaged_files_are_refused(name, says, tmp_path):
    mosaic = seen("RGGB")
    x_trans = "GGRGGBGGBGGRBRGRBGGGBGGRGGRGGBRBGBRG"
    write_dng(tmp_path / "x_trans.dng", mosaic, x_trans, pattern=(6, 6))
    write_dng(tmp_path / "linear.dng", np.repeat(mosaic[..., None], 3, axis=2), "")
    (tmp_path / "garbage.nef").write_bytes(b"II*\0" + bytes(200))
    whole = write_dng(tmp_path / "whole.dng", mosaic, "RGGB").read_bytes()
    (tmp_path / "cut.dng").write_bytes(whole[:3000])
    with pytest.raises(UserError, match=f"^{re.escape(str(tmp_path / name))}: {says}"):
        read_raw(tmp_path / name)


def test_without_rawpy_the_extra_is_named(refused, restorers, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "rawpy", None)
    says = refused(restorers["bayer"], tmp_path / "a.dng")
    assert "camera RAW needs the package rawpy" in says and "pip install 'crate-graph[raw]'" in says
