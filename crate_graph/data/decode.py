"""From the bytes of one sample to a picture and a label."""

from __future__ import annotations

import io

from PIL import Image

MODES = {1: "L", 3: "RGB"}


class Damaged(Exception):
    """The bytes of a sample cannot be read as a picture or a label. The text says why."""


def decode_image(data: bytes, channels: int) -> Image.Image:
    """Decode a picture whole, as grey (1 channel) or RGB (3 channels).

    Raises:
        Damaged: the format is unknown, the picture is cut off, or it is too large to be meant.
    """
    try:
        image = Image.open(io.BytesIO(data))
        if (
            image.format == "PNG"
        ):  # loading alone ignores its checksums, and a damaged stream may still fill the picture
            image.verify()
            image = Image.open(io.BytesIO(data))
        image.load()
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        reason = "unknown image format" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise Damaged(reason) from None
    mode = MODES[channels]
    if image.mode == mode:
        return image
    if image.mode == "I;16":  # a plain convert() would clip 16-bit grey at 255 instead of scaling it
        image = image.point(lambda value: value / 256).convert("L")
    return image.convert(mode)


def decode_label(data: bytes) -> int:
    """The class number of a `.cls` member. Raises Damaged where the bytes are no whole number."""
    try:
        return int(data)
    except ValueError:
        raise Damaged(f"label {data[:20]!r} is no whole number") from None
