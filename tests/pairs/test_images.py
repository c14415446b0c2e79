"""Images are untrusted: known formats by content, bounded size; every damage is a DataError that names the place."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from mode_ray.errors import DataError
from mode_ray.pairs.images import FORMATS, decode_image

PLACE = "/data/x.tar: sample 7"
PIXELS = np.random.default_rng(0).integers(0, 255, (12, 20, 3), dtype=np.uint8)


def encoded(form: str, mode: str = "RGB") -> bytes:
    """A noisy image of 20 x 12 pixels."""
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(buffer, form)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds nothing."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = b"IDAT" + zlib.compress(b"")
    parts = [struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in (chunk, body)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("form", FORMATS)
def test_every_known_format_becomes_rgb(form: str) -> None:
    image = decode_image(encoded(form), 1000, PLACE)
    assert (image.mode, image.size) == ("RGB", (20, 12))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "LA", "I;16"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    assert decode_image(encoded("PNG", mode), 1000, PLACE).mode == "RGB"


def test_lossless_pixels_come_back() -> None:
    assert np.array_equal(np.asarray(decode_image(encoded("PNG"), 1000, PLACE)), PIXELS)


@pytest.mark.parametrize(
    "data", [b"", b"<html>", b"%PDF-1.4", b"<svg xmlns='http://www.w3.org/2000/svg'/>", bytes(100)]
)
def test_what_is_no_image(data: bytes) -> None:
    with pytest.raises(DataError, match=r"x\.tar: sample 7: not an image of a known format"):
        decode_image(data, 1000, PLACE)


@pytest.mark.parametrize("form", ["ICO", "TGA", "SGI"])
def test_formats_that_are_not_asked_for_are_not_opened(form: str) -> None:
    with pytest.raises(DataError, match="not an image of a known format"):
        decode_image(encoded(form), 1000, PLACE)


class TestTooLarge:
    def test_the_limit_is_in_pixels(self) -> None:
        assert decode_image(encoded("PNG"), 240, PLACE).size == (20, 12)
        with pytest.raises(DataError, match="sample 7: image of 20 x 12 pixels, more than 239 allowed"):
            decode_image(encoded("PNG"), 239, PLACE)

    @pytest.mark.parametrize(("width", "height"), [(9000, 9000), (50_000, 50_000), (2_000_000_000, 2_000_000_000)])
    def test_bombs_are_refused_before_they_are_decoded(self, width: int, height: int) -> None:
        with pytest.raises(DataError, match=r"sample 7: image (of|too large)"):
            decode_image(png_header(width, height), 64_000_000, PLACE)


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_that_was_cut(form: str) -> None:
    data = encoded(form)
    with pytest.raises(DataError, match="sample 7: "):
        decode_image(data[: len(data) // 2], 1000, PLACE)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning", "ignore::UserWarning")
@pytest.mark.parametrize("form", FORMATS)
def test_flipped_bytes_give_an_image_or_a_data_error(form: str) -> None:
    data, generator = encoded(form), np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(data)
        for position in generator.integers(0, min(len(data), 120), size=3):
            damaged[position] = generator.integers(256)
        try:
            image = decode_image(bytes(damaged), 100_000, PLACE)
        except DataError as error:
            assert str(error).startswith(PLACE)  # noqa: PT017  (some of them decode)
        else:
            assert image.width * image.height <= 100_000
