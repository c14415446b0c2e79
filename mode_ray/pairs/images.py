"""Decodes untrusted images: known formats only, detected by content, of bounded size."""

import io
import struct
import zlib

from PIL import Image, UnidentifiedImageError

from mode_ray.errors import DataError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
# PIL passes on any exception of its decoders.
_DECODER_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    RuntimeError,
    struct.error,
    zlib.error,
)


def decode_image(data: bytes, max_pixels: int, place: str) -> Image.Image:
    """Decode to RGB.

    Args:
        data: The encoded image.
        max_pixels: Larger images are refused before they are decoded.
        place: File and row, for the message.

    Raises:
        DataError: The image is of an unknown format, damaged, or too large.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > max_pixels:
            raise DataError(too_large(image.width, image.height, max_pixels, place))
        return image.convert("RGB")
    except Image.DecompressionBombError as error:
        raise DataError(f"{place}: image too large ({error})") from None
    except UnidentifiedImageError:
        raise DataError(f"{place}: not an image of a known format ({', '.join(FORMATS)})") from None
    except _DECODER_ERRORS as error:
        raise DataError(f"{place}: damaged image ({error})") from None


def too_large(width: int, height: int, max_pixels: int, place: str) -> str:
    """The error message for an image with too many pixels."""
    return f"{place}: image of {width} x {height} pixels, more than {max_pixels} allowed"
