"""Untrusted images to RGB pixels: known formats only, detected by content, of bounded size.

Training, evaluation, the index and the service decode with these functions, so that a model sees in use what it was
trained on. JPEG is decoded by libjpeg-turbo (simplejpeg), other formats by PIL: both give the same pixels of a JPEG,
and on small images PIL takes several times as long. The size is read from the header and checked before anything is
decoded.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import ExifTags, Image, UnidentifiedImageError

from mode_ray.config.images import ImagesConfig
from mode_ray.errors import DataError

Pixels = npt.NDArray[np.uint8]

WEB_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""The formats that a service takes from its clients."""
FORMATS = (*WEB_FORMATS, "AVIF", "TIFF", "JPEG2000", "PPM")
_STANDARD = ImagesConfig()
_JPEG_START = b"\xff\xd8\xff"
_JPEG_MARKER, _JPEG_APP1, _JPEG_SCAN = 0xFF, 0xE1, 0xDA
# PIL decodes JPEGs with four channels.
_COLOR_SPACES = frozenset({"YCbCr", "Gray", "RGB"})
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image upright, by the value of the EXIF tag Orientation."""
_16_BIT_MAX = 65_535
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


def decode_image(
    data: bytes,
    max_pixels: int,
    place: str,
    images: ImagesConfig = _STANDARD,
    formats: tuple[str, ...] = FORMATS,
) -> Image.Image:
    """Decode to a PIL image in RGB.

    Args:
        data: The encoded image.
        max_pixels: Larger images are refused before they are decoded.
        place: File and row, for the message.
        images: Orientation, transparency and grey of 16 bits.
        formats: PIL's names of the formats to decode.

    Raises:
        DataError: The image is of another format, damaged, or too large.
    """
    return Image.fromarray(decode_pixels(data, max_pixels, place, images, formats))


def decode_pixels(
    data: bytes,
    max_pixels: int,
    place: str,
    images: ImagesConfig = _STANDARD,
    formats: tuple[str, ...] = FORMATS,
) -> Pixels:
    """Decode to RGB pixels, uint8 [h, w, 3]; as `decode_image`.

    Raises:
        DataError: As `decode_image`.
    """
    if data.startswith(_JPEG_START):
        pixels = _decode_jpeg(data, max_pixels, place)
        if pixels is not None:
            turn = _jpeg_turn(data) if images.decoding == "standard" else None
            return pixels if turn is None else np.array(Image.fromarray(pixels).transpose(turn))
    return rgb_pixels(open_image(data, max_pixels, place, formats), images, place)


def open_image(data: bytes, max_pixels: int, place: str, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """Decode to a PIL image with the pixels as they are stored: in its own mode and not turned.

    Raises:
        DataError: As `decode_image`.
    """
    with decoder_errors(place, formats):
        image = Image.open(io.BytesIO(data), formats=formats)
        _require_size(image.width, image.height, max_pixels, place)
        image.load()
        return image


def rgb_pixels(image: Image.Image, images: ImagesConfig, place: str) -> Pixels:
    """The pixels of a PIL image, uint8 [h, w, 3], as a browser shows it: upright, and on the background's color.

    Raises:
        DataError: Its values have no fixed scale.
    """
    with decoder_errors(place):
        if images.decoding == "open_clip":
            return np.array(image.convert("RGB"))
        opaque, turn = _opaque(_in_8_bits(image, place), images.background), _turn(image)
        return np.array(opaque if turn is None else opaque.transpose(turn))


@contextmanager
def decoder_errors(place: str, formats: tuple[str, ...] = FORMATS) -> Iterator[None]:
    """Raise errors of PIL as `DataError`."""
    try:
        yield
    except Image.DecompressionBombError as error:
        raise DataError(f"{place}: image too large ({error})") from None
    except UnidentifiedImageError:
        raise DataError(f"{place}: not an image of a known format ({', '.join(formats)})") from None
    except _DECODER_ERRORS as error:
        raise DataError(f"{place}: damaged image ({error})") from None


def _require_size(width: int, height: int, max_pixels: int, place: str) -> None:
    if width * height > max_pixels:
        raise DataError(f"{place}: image of {width} x {height} pixels, more than {max_pixels} allowed")


def _decode_jpeg(data: bytes, max_pixels: int, place: str) -> Pixels | None:
    """RGB pixels [h, w, 3] as they are stored, or None for an image that PIL should decode or refuse."""
    try:
        height, width, color_space, _ = simplejpeg.decode_jpeg_header(data)
        if color_space not in _COLOR_SPACES:
            return None
        _require_size(width, height, max_pixels, place)
        pixels: Pixels = simplejpeg.decode_jpeg(data, "RGB")
    except ValueError:
        return None
    return pixels


def _jpeg_turn(data: bytes) -> Image.Transpose | None:
    """What makes a JPEG upright; None for most, without opening them."""
    if not _has_metadata(data):
        return None
    try:
        return _turn(Image.open(io.BytesIO(data), formats=("JPEG",)))
    except (*_DECODER_ERRORS, Image.DecompressionBombError):
        return None


def _has_metadata(data: bytes) -> bool:
    """Whether a JPEG has a segment APP1 before its pixels: EXIF and XMP are stored there."""
    at, end = len(_JPEG_START) - 1, len(data) - 3
    while at < end:
        marker = data[at + 1]
        if data[at] != _JPEG_MARKER or marker == _JPEG_APP1:
            return True  # or an unusual file, which PIL reads
        if marker == _JPEG_SCAN:
            return False
        at += 1 if marker == _JPEG_MARKER else 2 + (data[at + 2] << 8 | data[at + 3])
    return False


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What makes an image upright, by the EXIF tag Orientation; None for nothing, or for damaged metadata."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except _DECODER_ERRORS:
        return None
    return _TURNS.get(orientation) if isinstance(orientation, int) else None


def _opaque(image: Image.Image, background: str) -> Image.Image:
    """An image in RGB, its transparent pixels composed on a color."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    layer = image.convert("RGBA")
    canvas = Image.new("RGB", layer.size, background)
    canvas.paste(layer, mask=layer.getchannel("A"))
    return canvas


def _in_8_bits(image: Image.Image, place: str) -> Image.Image:
    """A grey image of 16 bits scaled to 8; other images as they are."""
    if image.mode == "F":
        raise DataError(f"{place}: grey values that are floats have no fixed scale; convert the image to 8 or 16 bits")
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image).astype(np.int64)
    if values.size and (values.min() < 0 or values.max() > _16_BIT_MAX):
        raise DataError(f"{place}: grey values of 32 bits have no fixed scale; convert the image to 8 or 16 bits")
    grey = Image.fromarray(((values * 255 + _16_BIT_MAX // 2) // _16_BIT_MAX).astype(np.uint8))
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey
