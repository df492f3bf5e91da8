"""From the bytes of one sample to a picture and a label."""

from __future__ import annotations

import io
import struct
import warnings

import numpy as np
from PIL import Image

from crate_graph.errors import UserError

ORIENTATION = 274  # the EXIF and TIFF tag
SAMPLES_PER_PIXEL = 277  # the TIFF tag
MODES = {1: "L", 3: "RGB"}
ALPHA = ("RGBA", "LA", "PA", "RGBa")
READABLE = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", *ALPHA)  # what Pillow turns into 8-bit RGB or grey


class Damaged(Exception):
    """The bytes of a sample cannot be read as a picture or a label. The text says why."""


def decode_image(data: bytes, channels: int) -> Image.Image:
    """Decode a picture whole, as grey (1 channel) or RGB (3 channels).

    Raises:
        Damaged: the format is unknown, the picture is cut off, too large to be meant, or of pixels without a range.
    """
    image = _open(data)
    mode = MODES[channels]
    if image.mode == mode:
        return image
    if _is_grey16(image):  # a plain convert() would clip 16-bit grey at 255 instead of scaling it
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image if image.mode == mode else image.convert(mode)


def decode_mask(data: bytes) -> Image.Image:
    """Decode a mask as grey: 255 where a pixel as it is stored is not 0, be it grey of 8 or 16 bits, the number of a
    colour of a palette, or a colour of which one channel is not; 0 elsewhere and where alpha is 0.

    Raises:
        Damaged: see `decode_image`.
    """
    image = _open(data)
    if not (_is_grey16(image) or image.mode in ("1", "L", "P", "RGB", *ALPHA)):
        image = image.convert("RGB")
    stored = np.asarray(image)  # (H, W) or (H, W, C)
    if image.mode in ALPHA:
        stored = stored[..., :-1] * (stored[..., -1:] > 0)
    inside = stored.any(axis=2) if stored.ndim == 3 else stored != 0
    return Image.fromarray(np.where(inside, 255, 0).astype(np.uint8))


def decode_photograph(data: bytes, where: str, *, as_stored: bool = False) -> np.ndarray:
    """Decode a picture as (H, W, 3) float32 in [0, 1]; grey in three equal channels, 16-bit grey in full.

    Palettes and an alpha channel that hides nothing are turned into RGB; of 16-bit colour Pillow keeps 8 bits.

    Args:
        where: names the picture in an error.
        as_stored: do not turn it as its EXIF says.

    Raises:
        Damaged: see `decode_image`.
        UserError: several pictures in one file, CMYK, pixels that are transparent, channels that are neither colour nor
            alpha; `restore` refuses the same.
    """
    image = _open(data)
    check_photograph(image, where)
    number = 1 if as_stored else _orientation(image)
    if _is_grey16(image):
        values = np.repeat((np.asarray(image, dtype=np.float32) / 65535)[..., None], 3, axis=2)
    else:
        values = np.asarray(image if image.mode == "RGB" else image.convert("RGB"), dtype=np.float32) / 255
    return upright(values, number)


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn stored pixels (H, W, C) as the EXIF number says, so that the first row is the top of the scene."""
    if orientation >= 5:  # rows are columns
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def orientation(image: Image.Image) -> int:
    """EXIF's number, 1 to 8; 1 where the file says none, or Pillow has turned the picture already (a TIFF)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on damaged EXIF
        number = image.getexif().get(ORIENTATION, 1)
    return number if number in range(1, 9) else 1


def check_photograph(image: Image.Image, where: str) -> None:
    """Raise UserError for a picture that is no single opaque one in grey or RGB; `where` names it."""
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # what a telephone calls JPEG: the picture, then its preview
        raise UserError(f"{where}: holds {frames} pictures; save one of them")
    if image.mode == "CMYK":
        raise UserError(f"{where}: its colours are CMYK; convert it to grey or RGB first")
    if _has_unknown_channel(image):
        raise UserError(f"{where}: has a channel that is neither colour nor alpha; save it in grey or RGB")
    has_alpha = image.mode in ALPHA or "transparency" in image.info
    if has_alpha and image.convert("RGBA").getextrema()[3][0] < 255:
        raise UserError(f"{where}: some pixels are transparent; flatten the picture onto a background")


def decode_label(data: bytes) -> int:
    """The class number of a `.cls` member. Raises Damaged where the bytes are no whole number."""
    try:
        return int(data)
    except ValueError:
        raise Damaged(f"label {data[:20]!r} is no whole number") from None


def _open(data: bytes) -> Image.Image:
    """The picture, loaded. Raises Damaged."""
    try:
        image = Image.open(io.BytesIO(data))
        if image.format == "PNG":
            # Loading alone ignores its checksums, and a damaged stream may still fill the picture.
            image.verify()
            image = Image.open(io.BytesIO(data))
        image.load()
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise Damaged(_reason(error, data)) from None
    if image.mode not in READABLE and not _is_grey16(image):
        raise Damaged(f"pixels of type {image.mode}, which have no known range")
    return image


def _orientation(image: Image.Image) -> int:
    try:
        return orientation(image)
    except (OSError, SyntaxError, ValueError, LookupError, TypeError, struct.error) as error:
        raise Damaged(f"its EXIF cannot be read: {error}") from None


def _has_unknown_channel(image: Image.Image) -> bool:
    """Of a TIFF, whose further channels Pillow leaves out or calls X."""
    if image.format != "TIFF":
        return False
    return image.mode == "RGBX" or image.tag_v2.get(SAMPLES_PER_PIXEL, 1) > len(image.getbands())


def _reason(error: Exception, data: bytes) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels; cut it into parts"
    if not isinstance(error, Image.UnidentifiedImageError):
        return str(error)
    if data[:4] in (b"II*\0", b"MM\0*"):
        return "a TIFF of pixels that are not read here, such as floating-point colour; save it with 8 or 16 bits"
    return "unknown image format"


def _is_grey16(image: Image.Image) -> bool:
    """Whether it is grey of 16 bits, for which older versions of Pillow use 32 bits."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
