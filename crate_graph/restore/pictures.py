"""Picture files: PNG, TIFF and JPEG to pixels in [0, 1] and back, with their bit depth and colour profile.

Pillow reads and writes what has 8 bits per value. It keeps only 8 of the 16 bits of a colour picture
(https://github.com/python-pillow/Pillow/issues/1888), so those go through imagecodecs (PNG) and tifffile (TIFF).
"""

from __future__ import annotations

import io
import logging
import math
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from PIL import Image

from crate_graph.data.decode import ORIENTATION, orientation
from crate_graph.errors import UserError
from crate_graph.export.staging import staged

FORMATS = {"PNG": ".png", "TIFF": ".tif", "JPEG": ".jpg"}
JPEG_QUALITY = 95
MOST_PAGES = 64  # of a TIFF: the picture, smaller copies of it, masks
MOST_VALUES = 2**31  # of one picture; a damaged header may claim any number
_COLOUR_SPACE = {1: b"GRAY", 3: b"RGB "}  # bytes 16..20 of an ICC profile
_MODES = {"1": "L", "L": "L", "P": "RGB", "RGB": "RGB"}
_TRANSPARENT = {"LA": "LA", "PA": "RGBA", "RGBA": "RGBA"}


@dataclass(frozen=True)
class Picture:
    """Pixels as they are stored, and what a file of the same kind must say about them.

    pixels: (H, W, C) float32 in [0, 1], C = 1 or 3, before `orientation` is applied
    bits: per value: 8, 16, or 32 for floating point
    format: PNG, TIFF or JPEG
    icc: the colour profile, or None
    orientation: EXIF's number, 1 to 8; `upright` applies it
    phase: of a camera's mosaic, for instance RGGB, where the file says it; then C = 1
    develop: from the restored mosaic (H, W, 3) to colours that can be shown; only where `phase` is given
    """

    pixels: np.ndarray
    bits: int
    format: str
    icc: bytes | None = None
    orientation: int = 1
    phase: str | None = None
    develop: Callable[[np.ndarray], np.ndarray] | None = None


def read_picture(path: Path) -> Picture:
    """Read a PNG, TIFF or JPEG file, grey or colour. A palette becomes colours, an opaque alpha channel is left out.

    Raises:
        UserError: no such file, damaged, another format, several pictures in one, transparent pixels, CMYK or another
            colour model, a bit depth other than 1 to 8 or 16, pixels that are NaN, infinite or (floating point)
            outside 0 to 1.
    """
    if path.is_dir():
        raise UserError(f"{path}: a folder; name the pictures in it, for instance {path}/*.png")
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: is no file but a pipe or a device; name a picture file")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name a picture file") from None
    read = _reader_of(data)
    if read is None:
        raise UserError(f"{path}: not a PNG, TIFF or JPEG file; convert it to one of these")
    try:
        picture = read(data)
        if picture.pixels.ndim != 3 or picture.pixels.shape[2] not in _COLOUR_SPACE or not picture.pixels.size:
            raise ValueError(f"pixels of shape {picture.pixels.shape}")
    except Unusable as error:
        raise UserError(f"{path}: {error}") from None
    except _DECODER_ERRORS as error:
        unknown = isinstance(error, Image.UnidentifiedImageError)  # its text holds an address in memory
        reason = "nothing after its first bytes" if unknown else " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: damaged ({reason}); use another copy of the picture") from None
    return picture


def write_picture(
    path: Path, pixels: np.ndarray, *, format: str, bits: int, icc: bytes | None = None, replace: bool = True
) -> None:
    """Write (H, W, C) pixels, clipped to [0, 1] and rounded; the file appears whole.

    In place of one of that name, unless told not to `replace`.

    JPEG keeps 8 bits, PNG 8 or 16, TIFF also floating point (`bits` 32). A profile of another colour model is left out.

    Raises:
        UserError: the folder cannot be written; a file of that name is there and is not to be replaced.
    """
    height, width, channels = pixels.shape
    icc = icc if icc and icc[16:20] == _COLOUR_SPACE[channels] else None
    values = quantize(pixels, bits if format == "TIFF" else min(bits, 16 if format == "PNG" else 8))
    encode = {"PNG": _encode_png, "TIFF": _encode_tiff, "JPEG": _encode_jpeg}[format]
    with staged(path, replace=replace) as hidden:
        hidden.write_bytes(encode(np.ascontiguousarray(values[..., 0] if channels == 1 else values), icc))


def quantize(pixels: np.ndarray, bits: int) -> np.ndarray:
    """Values in [0, 1] to the nearest of 2^bits levels, as uint8 or uint16; 32 bits stay float32. Clips."""
    clipped = np.clip(pixels, 0, 1)
    if bits == 32:
        return clipped.astype(np.float32)
    return np.rint(clipped * (2**bits - 1)).astype(np.uint8 if bits == 8 else np.uint16)


class Unusable(Exception):
    """A file that is sound and not for us. The text says what it is and the remedy."""


# what Pillow, tifffile and imagecodecs raise on bytes that are not what they seem
_DECODER_ERRORS = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    RuntimeError,
    LookupError,
    ArithmeticError,
    TypeError,
    struct.error,
    zlib.error,
    tifffile.TiffFileError,  # a ValueError only in newer versions
    Image.DecompressionBombError,
)


def _reader_of(data: bytes) -> Callable[[bytes], Picture] | None:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _read_png
    if data.startswith(b"\xff\xd8\xff"):
        return _read_jpeg
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _read_tiff
    return None


def _read_png(data: bytes) -> Picture:
    _open(data).verify()  # loading alone ignores checksums, and a damaged stream may still fill the picture
    image = _open(data)
    if getattr(image, "n_frames", 1) > 1:
        raise Unusable(f"an animation of {image.n_frames} pictures; save one of them")
    facts = {"format": "PNG", "icc": image.info.get("icc_profile"), "orientation": orientation(image)}
    if data[24] < 16:  # bit depth, in the header
        return Picture(_pixels(image), 8, **facts)
    if "transparency" in image.info:
        raise Unusable("has a transparent colour; flatten it onto a background first")
    values = imagecodecs.png_decode(data)  # (H, W), (H, W, 2), (H, W, 3) or (H, W, 4) uint16
    values = values[..., None] if values.ndim == 2 else values
    return Picture(_without_alpha(values, colours=1 if values.shape[2] < 3 else 3), 16, **facts)


def _read_jpeg(data: bytes) -> Picture:
    image = _open(data)
    return Picture(_pixels(image), 8, "JPEG", image.info.get("icc_profile"), orientation(image))


def _open(data: bytes) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on large pictures, which are welcome, and damaged EXIF
        with _any_size():
            image = Image.open(io.BytesIO(data))
        if math.prod(image.size) > MOST_VALUES:
            raise Unusable(f"says that it is {image.width} x {image.height}, which is more than fits into memory")
        return image


@contextmanager
def _any_size() -> Iterator[None]:
    """Pillow takes a picture of more than 179 megapixels for an attack; we have a bound of our own."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _pixels(image: Image.Image) -> np.ndarray:
    """(H, W, C) float32 of a picture with 8 bits per value or fewer."""
    if image.mode in _TRANSPARENT or "transparency" in image.info:
        mode = _TRANSPARENT.get(image.mode, "RGBA" if image.mode in ("P", "RGB") else "LA")
        values = np.asarray(image.convert(mode))
        return _without_alpha(values, colours=values.shape[2] - 1)
    if image.mode not in _MODES:
        raise Unusable(f"its colours are {image.mode}; convert it to grey or RGB first")
    values = np.asarray(image.convert(_MODES[image.mode]))
    return _scaled(values.reshape(*values.shape[:2], -1))


def _read_tiff(data: bytes) -> Picture:
    with _quiet(), tifffile.TiffFile(io.BytesIO(data)) as file:
        pages = [page.aspage() for page in islice(file.pages, MOST_PAGES + 1)]
        if len(pages) > MOST_PAGES:
            raise Unusable(f"holds more than {MOST_PAGES} pictures, or its list of them goes in a circle; save one")
        pages = [page for page in pages if not (page.is_reduced or page.is_mask)]
        if len(pages) != 1:
            raise Unusable(f"holds {len(pages)} pictures; save one of them")
        (page,) = pages
        _check_tiff(page)
        values = page.asarray()
        if page.axes == "SYX":  # a plane per colour
            values = values.transpose(1, 2, 0)
    values = values[..., None] if values.ndim == 2 else values  # (H, W, S)
    palette = page.photometric == tifffile.PHOTOMETRIC.PALETTE
    if page.bitspersample < 8 and not palette:  # one value per byte, not spread over its range
        values = values * np.uint8(255 // (2**page.bitspersample - 1))
    turned, icc = page.tags.valueof(ORIENTATION, 1), page.iccprofile
    facts = {"format": "TIFF", "icc": icc, "orientation": turned if turned in range(1, 9) else 1}
    bits = 32 if values.dtype.kind == "f" else 8 if page.bitspersample < 16 else 16
    if palette:
        colours = (page.colormap.T >> 8).astype(np.uint8)  # (entries, 3), 16 bits each
        return Picture(_scaled(colours[values[..., 0]]), 8, **facts)
    pixels = _without_alpha(values, colours=1 if page.photometric in (0, 1) else 3)
    return Picture(1 - pixels if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE else pixels, bits, **facts)


@contextmanager
def _quiet() -> Iterator[None]:
    """tifffile logs what it finds odd; what matters it raises."""
    logger = logging.getLogger("tifffile")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _check_tiff(page: tifffile.TiffPage) -> None:
    if page.photometric == tifffile.PHOTOMETRIC.CFA:
        raise Unusable("a camera's mosaic in a TIFF; give it the name of a camera RAW file, NAME.dng")
    known = {"MINISWHITE", "MINISBLACK", "RGB", "PALETTE"}
    if page.compression in (tifffile.COMPRESSION.JPEG, tifffile.COMPRESSION.OJPEG):
        known |= {"YCBCR"}  # tifffile decodes it to RGB
    name = getattr(page.photometric, "name", str(page.photometric))
    if name not in known:
        raise Unusable(f"its colours are {name}; convert it to grey or RGB first")
    if page.axes not in ("YX", "YXS", "SYX"):
        raise Unusable(f"is not one flat picture (its axes are {page.axes}); save one plane of it")
    if name == "PALETTE" and page.colormap is None:
        raise ValueError("a palette without colours")
    if tifffile.EXTRASAMPLE.UNSPECIFIED in page.extrasamples:
        raise Unusable("has a channel that is neither colour nor alpha; save it in grey or RGB")
    if math.prod(page.shape) > MOST_VALUES:
        raise Unusable(f"says that it is {page.imagewidth} x {page.imagelength}, which is more than fits into memory")
    kind = "none" if page.dtype is None else page.dtype.kind
    if kind != "f" and not (kind in "ub" and page.bitspersample in (1, 2, 4, 8, 16)):
        raise Unusable(f"{page.bitspersample} bits per value of type {page.dtype}; convert it to 8 or 16 bits")


def _without_alpha(values: np.ndarray, colours: int) -> np.ndarray:
    """(H, W, S) of any type -> (H, W, colours) float32; a further channel must be opaque."""
    extra = values[..., colours:]
    largest = 1 if values.dtype.kind == "f" else np.iinfo(values.dtype).max
    if extra.size and (extra.shape[2] > 1 or not (extra == largest).all()):
        raise Unusable("has transparent pixels (alpha) or further channels; flatten it onto a background first")
    return _scaled(values[..., :colours])


def _scaled(values: np.ndarray) -> np.ndarray:
    """Values of any type to float32 in [0, 1]."""
    if values.dtype.kind == "u":
        return values.astype(np.float32) / np.float32(np.iinfo(values.dtype).max)
    wrong = ~np.isfinite(values)
    if wrong.any():
        row, column = np.argwhere(wrong.any(axis=2))[0]
        raise Unusable(f"{wrong.sum()} values are NaN or infinite, the first at row {row}, column {column}; repair it")
    low, high = values.min(), values.max()
    if low < 0 or high > 1:
        raise Unusable(f"its floating-point values go from {low:.3g} to {high:.3g}; scale them to 0 .. 1")
    return values.astype(np.float32)


def _encode_png(values: np.ndarray, icc: bytes | None) -> bytes:
    if values.dtype == np.uint8:
        return _encode_with_pillow(values, "PNG", icc)
    encoded = imagecodecs.png_encode(values)
    if not icc:
        return encoded
    header = 33  # signature and first chunk; the profile must follow before the pixels
    body = b"iCCP" + b"ICC profile\0\0" + zlib.compress(icc)
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return encoded[:header] + chunk + encoded[header:]


def _encode_jpeg(values: np.ndarray, icc: bytes | None) -> bytes:
    return _encode_with_pillow(values, "JPEG", icc, quality=JPEG_QUALITY, subsampling="4:4:4")


def _encode_with_pillow(values: np.ndarray, format: str, icc: bytes | None, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format, icc_profile=icc, **options)
    return buffer.getvalue()


def _encode_tiff(values: np.ndarray, icc: bytes | None) -> bytes:
    """Deflated, with the horizontal predictor on whole numbers: read by every program that reads TIFF."""
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer,
        values,
        photometric="minisblack" if values.ndim == 2 else "rgb",
        planarconfig=None if values.ndim == 2 else "contig",
        compression="deflate",
        predictor=values.dtype.kind == "u",
        iccprofile=icc,
        metadata=None,
    )
    return buffer.getvalue()
