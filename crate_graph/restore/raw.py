"""Camera RAW: the mosaic that the sensor saw, by rawpy (LibRaw), and its way to sRGB after restoration.

Black level, white level and white balance are applied to the mosaic. Networks are trained on photographs in sRGB, so
they see the mosaic through sRGB's curve; the matrix from the camera's colours to sRGB is applied to linear values
afterwards. The curve acts on each value alone and commutes with the mosaic.
"""

from __future__ import annotations

import struct
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import ImageCms

from crate_graph.data.degrade import PHASES
from crate_graph.errors import UserError
from crate_graph.restore.pictures import Picture

SUFFIXES = (
    *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".iiq", ".kdc", ".mef", ".mos", ".mrw", ".nef"),
    *(".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f"),
)
# XYZ of linear sRGB, IEC 61966-2-1, reference white D65
_XYZ_OF_SRGB = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_ORIENTATION = {0: 1, 3: 3, 5: 8, 6: 6}  # LibRaw's number -> EXIF's


def read_raw(path: Path) -> Picture:
    """The visible part of a camera's mosaic: one channel in [0, 1], with its phase and `develop`.

    Raises:
        UserError: rawpy is not installed; no such file; damaged or of an unknown camera; not a Bayer mosaic (X-Trans,
            three values per pixel); no white balance or colour matrix in it.
    """
    rawpy = _rawpy(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; name a picture file")
    try:
        with rawpy.imread(str(path)) as raw:
            phase = _phase(raw, path)
            mosaic, to_srgb = _mosaic(raw, path), _to_srgb(raw, path)
            orientation = _ORIENTATION.get(raw.sizes.flip, 1)
    except rawpy.LibRawError as error:
        reason = error.args[0].decode() if error.args and isinstance(error.args[0], bytes) else error
        raise UserError(f"{path}: LibRaw cannot read it ({reason}); convert it to DNG") from None
    return Picture(mosaic, 16, "TIFF", _srgb_profile(), orientation, phase, partial(_develop, to_srgb=to_srgb))


def _rawpy(path: Path) -> ModuleType:
    try:
        import rawpy
    except ImportError as error:
        raise UserError(
            f"{path}: camera RAW needs the package rawpy ({error}); pip install 'crate-graph[raw]'"
        ) from None
    return rawpy


def _phase(raw: Any, path: Path) -> str:
    pattern = raw.raw_pattern
    if pattern is None or pattern.shape != (2, 2):
        kind = "an X-Trans mosaic" if pattern is not None and pattern.shape == (6, 6) else "no mosaic"
        raise UserError(f"{path}: {kind}; only Bayer mosaics are restored, develop it with another program")
    phase = "".join(_letters(raw)[number] for number in raw.raw_colors_visible[:2, :2].flat)
    if phase not in PHASES:
        raise UserError(f"{path}: a mosaic of {phase}; only red, green and blue in a Bayer pattern are restored")
    return phase


def _letters(raw: Any) -> str:
    """Colour of each of LibRaw's numbers, for instance RGBG."""
    return raw.color_desc.decode()


def _mosaic(raw: Any, path: Path) -> np.ndarray:
    """(H, W, 1) float32, 1 where the weakest colour is saturated, seen through sRGB's curve."""
    values = raw.raw_image_visible.astype(np.float32)  # (H, W)
    numbers = raw.raw_colors_visible  # (H, W) of 0 to 3
    black = np.asarray(raw.black_level_per_channel, dtype=np.float32)[numbers]
    linear = (values - black) / (raw.white_level - black) * _gains(raw, path)[numbers]
    return encode_srgb(linear)[..., None]


def _gains(raw: Any, path: Path) -> np.ndarray:
    """White balance for each of LibRaw's numbers, (4,), the least of them 1; that of daylight where none was kept."""
    for balance in (raw.camera_whitebalance, raw.daylight_whitebalance):
        gains = np.array(balance, dtype=np.float32)
        gains[3] = gains[3] or gains[1]  # one number for both greens
        if np.isfinite(gains).all() and gains.min() > 0:
            return gains / gains.min()
    raise UserError(f"{path}: holds no white balance; convert it to DNG")


def _to_srgb(raw: Any, path: Path) -> np.ndarray:
    """(3, 3), from balanced camera colours to linear sRGB; white stays white.

    Of a camera in LibRaw's table the inverse of its XYZ matrix; for other DNGs LibRaw leaves that zero and gives what
    we want as color_matrix (https://github.com/LibRaw/LibRaw/issues/751).
    """
    camera_of_xyz = np.asarray(raw.rgb_xyz_matrix, dtype=np.float64)[:3]
    if camera_of_xyz.any():
        camera_of_srgb = camera_of_xyz @ _XYZ_OF_SRGB
        return np.linalg.inv(camera_of_srgb / camera_of_srgb.sum(axis=1, keepdims=True))
    given = np.asarray(raw.color_matrix, dtype=np.float64)[:, :3]
    if not given.any():
        raise UserError(f"{path}: holds no colour matrix of its camera; convert it to DNG")
    return given


def _develop(pixels: np.ndarray, to_srgb: np.ndarray) -> np.ndarray:
    """Restored camera colours (H, W, 3) to sRGB."""
    return encode_srgb(decode_srgb(pixels) @ to_srgb.T)


def _srgb_profile() -> bytes:
    """An ICC profile without the time of its making (bytes 24 to 35), so that equal pictures give equal files."""
    made = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return made[:24] + struct.pack(">6H", 2000, 1, 1, 0, 0, 0) + made[36:]


def encode_srgb(linear: np.ndarray) -> np.ndarray:
    """sRGB's curve (IEC 61966-2-1) on linear values, which are clipped to [0, 1]; float32."""
    linear = np.clip(linear, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055).astype(np.float32)


def decode_srgb(encoded: np.ndarray) -> np.ndarray:
    """The inverse of `encode_srgb`."""
    encoded = np.clip(encoded, 0, 1)
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4).astype(np.float32)
