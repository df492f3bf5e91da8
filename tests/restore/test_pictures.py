"""Picture files: what is read is what was stored, in every format, and what we cannot use is refused by name."""

from __future__ import annotations

import io
import os
import re
import struct
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from crate_graph.data.decode import Damaged, decode_photograph, upright
from crate_graph.errors import UserError
from crate_graph.restore.pictures import FORMATS, quantize, read_picture, write_picture

PROFILES = {space: ImageCms.ImageCmsProfile(ImageCms.createProfile(space)).tobytes() for space in ("sRGB", "LAB")}


def pixels(channels: int, height: int = 7, width: int = 9) -> np.ndarray:
    return np.random.default_rng(0).random((height, width, channels), dtype=np.float32)


def smooth(channels: int) -> np.ndarray:
    """What JPEG keeps well."""
    ramp = np.linspace(0.2, 0.7, 16, dtype=np.float32)
    return np.repeat((0.5 * ramp[:, None] + 0.5 * ramp[None])[..., None], channels, axis=2)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("format", "bits", "kept"),
    [
        ("PNG", 8, 8),
        ("PNG", 16, 16),
        ("PNG", 32, 16),
        ("TIFF", 8, 8),
        ("TIFF", 16, 16),
        ("TIFF", 32, 32),
        ("JPEG", 16, 8),
    ],
)
def test_a_picture_comes_back(format, bits, kept, channels, tmp_path):
    path = tmp_path / f"picture{FORMATS[format]}"
    written = smooth(channels) if format == "JPEG" else pixels(channels)
    write_picture(path, written, format=format, bits=bits)
    picture = read_picture(path)
    assert (picture.format, picture.bits, picture.orientation) == (format, kept, 1)
    assert picture.pixels.dtype == np.float32
    if format == "JPEG":
        assert np.abs(picture.pixels - written).max() < 0.02
    else:
        exact = quantize(written, kept).astype(np.float32) / np.float32(1 if kept == 32 else 2**kept - 1)
        assert np.array_equal(picture.pixels, exact)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_every_value_of_16_bits_survives(format, tmp_path):
    values = np.arange(2**16, dtype=np.float32).reshape(256, 256, 1) / 65535
    path = tmp_path / "picture"
    write_picture(path, np.repeat(values, 3, axis=2), format=format, bits=16)
    again = quantize(read_picture(path).pixels, 16)
    assert np.array_equal(again[..., 1].ravel(), np.arange(2**16))


def test_others_read_what_we_write(tmp_path):
    """16-bit PNG by Pillow (which keeps the upper 8 bits) and TIFF by Pillow's libtiff."""
    values = quantize(pixels(3), 16)
    write_picture(tmp_path / "a.png", pixels(3), format="PNG", bits=16, icc=PROFILES["sRGB"])
    with Image.open(tmp_path / "a.png") as image:
        assert np.array_equal(np.asarray(image.convert("RGB")), values >> 8)
        assert image.info["icc_profile"] == PROFILES["sRGB"]
    write_picture(tmp_path / "a.tif", pixels(3), format="TIFF", bits=8)
    with Image.open(tmp_path / "a.tif") as image:
        assert np.array_equal(np.asarray(image), quantize(pixels(3), 8))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("format", FORMATS)
def test_the_colour_profile_is_kept_where_it_fits(format, bits, tmp_path):
    path = tmp_path / "picture"
    for space, channels, expected in (("sRGB", 3, PROFILES["sRGB"]), ("sRGB", 1, None), ("LAB", 3, None)):
        write_picture(path, smooth(channels), format=format, bits=bits, icc=PROFILES[space])
        assert read_picture(path).icc == expected


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_honoured(orientation, tmp_path):
    stored = quantize(pixels(3), 8)
    image = Image.fromarray(stored)
    exif = image.getexif()
    exif[274] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    image.save(tmp_path / "a.jpg", exif=exif)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", extratags=[(274, "H", 1, orientation, True)])
    turned = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.png")))
    for name in ("a.png", "a.jpg", "a.tif"):
        picture = read_picture(tmp_path / name)
        assert picture.orientation == orientation and picture.pixels.shape == stored.shape, name
        if name != "a.jpg":
            assert np.array_equal(quantize(upright(picture.pixels, orientation), 8), turned), name
        evaluated = decode_photograph((tmp_path / name).read_bytes(), name)
        assert np.array_equal(quantize(evaluated, 8), quantize(upright(picture.pixels, orientation), 8)), name
    as_stored = decode_photograph((tmp_path / "a.png").read_bytes(), "it", as_stored=True)
    assert np.array_equal(quantize(as_stored, 8), stored)


@pytest.mark.parametrize("compression", [None, "lzw", "deflate", "packbits", "lzma"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_compressed_tiffs_are_read(compression, dtype, tmp_path):
    values = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (40, 30, 3), dtype=dtype)
    options = {"photometric": "rgb", "compression": compression, "predictor": compression in ("lzw", "deflate")}
    tifffile.imwrite(tmp_path / "a.tif", values, **options)
    tifffile.imwrite(tmp_path / "tiles.tif", values, tile=(16, 16), byteorder=">", **options)
    tifffile.imwrite(tmp_path / "planes.tif", values.transpose(2, 0, 1), planarconfig="separate", photometric="rgb")
    for name in ("a.tif", "tiles.tif", "planes.tif"):
        picture = read_picture(tmp_path / name)
        assert np.array_equal(quantize(picture.pixels, picture.bits), values), name


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_span_the_whole_range(bits, tmp_path):
    values = np.arange(64).reshape(8, 8) % 2**bits
    (tmp_path / "a.tif").write_bytes(packed_tiff(values, bits))
    assert np.allclose(read_picture(tmp_path / "a.tif").pixels[..., 0], values / (2**bits - 1))
    Image.fromarray(255 * (values > 0).astype(np.uint8)).convert("1").save(tmp_path / "a.png")
    assert set(np.unique(read_picture(tmp_path / "a.png").pixels)) == {0, 1}


def packed_tiff(values: np.ndarray, bits: int) -> bytes:
    """Eight rows of eight grey values, several in a byte, by hand: not every imagecodecs can write them."""
    planes = (values[..., None] >> np.arange(bits)[::-1]) & 1  # (8, 8, bits), the highest bit first
    data = np.packbits(planes.reshape(8, -1).astype(np.uint8), axis=1).tobytes()
    tags = {256: 8, 257: 8, 258: bits, 259: 1, 262: 1, 273: 8, 277: 1, 278: 8, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory


def test_other_ways_to_store_the_same(tmp_path):
    colours = Image.fromarray(quantize(np.kron(pixels(3), np.ones((4, 4, 1), np.float32)), 8))
    palette = colours.convert("P", palette=Image.Palette.ADAPTIVE, colors=64)
    palette.save(tmp_path / "palette.png")
    palette.save(tmp_path / "palette.tif")
    for name in ("palette.png", "palette.tif"):
        assert np.array_equal(quantize(read_picture(tmp_path / name).pixels, 8), np.asarray(palette.convert("RGB")))
    grey = quantize(pixels(1)[..., 0], 8)
    tifffile.imwrite(tmp_path / "white.tif", grey, photometric="miniswhite")
    assert np.allclose(read_picture(tmp_path / "white.tif").pixels[..., 0], 1 - grey / 255)
    colours.convert("RGBA").save(tmp_path / "opaque.png")
    tifffile.imwrite(tmp_path / "opaque.tif", np.asarray(colours.convert("RGBA")), photometric="rgb")
    opaque16 = np.concatenate((quantize(pixels(3), 16), np.full((7, 9, 1), 65535, np.uint16)), axis=2)
    (tmp_path / "opaque16.png").write_bytes(imagecodecs.png_encode(opaque16))
    for name in ("opaque.png", "opaque.tif"):
        assert np.array_equal(quantize(read_picture(tmp_path / name).pixels, 8), np.asarray(colours)), name
    assert np.array_equal(quantize(read_picture(tmp_path / "opaque16.png").pixels, 16), opaque16[..., :3])
    tifffile.imwrite(tmp_path / "half.tif", pixels(3).astype(np.float16), photometric="rgb")
    assert read_picture(tmp_path / "half.tif").bits == 32


def unusable() -> dict[str, tuple[bytes, str]]:
    """Name -> contents of a file, and what the refusal says."""
    colours = Image.fromarray(quantize(pixels(3), 8))
    alpha = np.asarray(colours.convert("RGBA")).copy()
    alpha[2, 3, 3] = 100
    opaque = np.asarray(colours.convert("RGBA"))
    alpha16 = alpha.astype(np.uint16) * 257
    nan, far = pixels(3).copy(), 3 * pixels(3)
    nan[2, 4, 1] = np.nan
    inf = np.where(np.arange(9)[None, :, None] == 5, np.inf, pixels(3)).astype(np.float32)
    whole = saved(colours, "PNG")
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    return {
        "nan.tif": (tiff(nan), "1 values are NaN or infinite, the first at row 2, column 4"),
        "inf.tif": (tiff(inf), "21 values are NaN or infinite, the first at row 0, column 5"),
        "far.tif": (tiff(far), "its floating-point values go from .* to 2.9.*; scale them to 0 .. 1"),
        "alpha.png": (saved(Image.fromarray(alpha), "PNG"), "transparent pixels .*; flatten it"),
        "alpha.tif": (tiff(alpha), "transparent pixels .*; flatten it"),
        "alpha16.png": (imagecodecs.png_encode(alpha16), "transparent pixels .*; flatten it"),
        "key.png": (saved(colours, "PNG", transparency=tuple(colours.getpixel((0, 0)))), "transparent pixels"),
        "extra.tif": (tiff(opaque, extrasamples=["unspecified"]), "neither colour nor alpha; save it in grey or RGB"),
        "extras.tif": (tiff(np.dstack([opaque, opaque[..., :1]])), "alpha"),
        "extra_grey.tif": (
            tiff(opaque[..., :2], "minisblack", extrasamples=["unspecified"], planarconfig="contig"),
            "neither colour nor alpha; save it",
        ),
        "cmyk.jpg": (saved(colours.convert("CMYK"), "JPEG"), "its colours are CMYK; convert it to grey or RGB"),
        "cmyk.tif": (saved(colours.convert("CMYK"), "TIFF"), "its colours are SEPARATED; convert it"),
        "lab.tif": (saved(colours.convert("LAB"), "TIFF"), "its colours are CIELAB; convert it"),
        "signed.tif": (tiff(np.ones((8, 8, 3), np.int16)), "16 bits per value of type int16; convert it to 8 or 16"),
        "wide.tif": (tiff(np.ones((8, 8, 3), np.uint32)), "32 bits per value of type uint32; convert it"),
        "pages.tif": (saved(colours, "TIFF", save_all=True, append_images=[colours]), "holds 2 pictures; save one"),
        "moving.png": (
            saved(colours, "PNG", save_all=True, append_images=[ImageOps.invert(colours)]),
            "an animation of 2 pictures; save one",
        ),
        "cfa.tif": (tiff(np.ones((8, 8), np.uint16), photometric=32803), "a camera's mosaic in a TIFF; .*NAME.dng"),
        "web.png": (saved(colours, "WEBP"), "not a PNG, TIFF or JPEG file; convert it"),
        "empty.png": (b"", "not a PNG, TIFF or JPEG file"),
        "cut.png": (whole[:80], "damaged .*; use another copy"),
        "flipped.png": (bytes(flipped), "damaged .*; use another copy"),
        "cut.jpg": (saved(colours, "JPEG")[:400], "damaged .*; use another copy"),
        "cut.tif": (tiff(nan)[:60], "damaged .*; use another copy"),
    }


def saved(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def tiff(values: np.ndarray, photometric: str | int = "rgb", **options) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, photometric=photometric, metadata=None, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("name", unusable())
def test_what_we_cannot_use_is_refused_by_name(name, tmp_path):
    content, says = unusable()[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"^{re.escape(str(tmp_path / name))}: .*{says}"):
        read_picture(tmp_path / name)
    if name != "web.png":  # what `evaluate` reads as well
        with pytest.raises((UserError, Damaged)):
            decode_photograph(content, name)


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match="none.png: cannot be read .*; name a picture file"):
        read_picture(tmp_path / "none.png")
    with pytest.raises(UserError, match=r"a folder; name the pictures in it, for instance .*/\*.png"):
        read_picture(tmp_path)


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> tuple[Path, list[bytes]]:
    colours = Image.fromarray(quantize(pixels(3), 8))
    files = [saved(colours, "PNG"), saved(colours.convert("P"), "PNG"), saved(colours, "JPEG"), tiff(pixels(3))]
    files += [saved(colours.convert("P"), "TIFF"), saved(colours, "TIFF", compression="jpeg")]
    files += [imagecodecs.png_encode(quantize(pixels(3), 16)), tiff(quantize(pixels(3), 16))]
    return tmp_path_factory.mktemp("sound") / "picture", files


@given(data=st.data())
def test_no_damage_ends_in_a_traceback(data, sound):
    path, files = sound
    damaged = bytearray(data.draw(st.sampled_from(files)))
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged[: data.draw(st.integers(0, len(damaged)))] if data.draw(st.booleans()) else damaged)
    try:
        assert read_picture(path).pixels.ndim == 3
    except UserError as error:
        assert len(str(error).splitlines()) == 1


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"precious")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        write_picture(path, pixels(3), format="PNG", bits=8)
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"] and path.read_bytes() == b"precious"


def test_a_list_of_pictures_that_goes_in_a_circle_is_refused(tmp_path):
    """The directory of the last picture names itself as the next one."""
    path = tmp_path / "circle.tif"
    tifffile.imwrite(path, np.zeros((9, 9), np.uint8), metadata=None)
    data = bytearray(path.read_bytes())
    (first,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, first)
    struct.pack_into("<I", data, first + 2 + 12 * entries, first)
    path.write_bytes(data)
    with pytest.raises(UserError, match="goes in a circle"):
        read_picture(path)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UserError, match="no file but a pipe"):
        read_picture(tmp_path / "pipe.png")


def test_pictures_larger_than_pillow_likes_are_read(tmp_path, monkeypatch):
    path = tmp_path / "large.png"
    Image.new("L", (40, 50), 7).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert read_picture(path).pixels.shape == (50, 40, 1)
    assert Image.MAX_IMAGE_PIXELS == 100
