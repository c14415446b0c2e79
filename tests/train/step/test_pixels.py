"""Pixels for training are PIL's pixels, whoever decodes them; untrusted data is bounded before it is decoded."""

import io
import struct

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image

from mode_ray.errors import DataError
from mode_ray.pairs.images import FORMATS, decode_image
from mode_ray.train.step.pixels import decode_pixels

PLACE = "/data/x.tar: sample 7"
PIXELS = np.random.default_rng(0).integers(0, 255, (12, 20, 3), dtype=np.uint8)


def encoded(form: str, mode: str = "RGB", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(buffer, form, **options)
    return buffer.getvalue()


def pil_pixels(data: bytes) -> np.ndarray:
    return np.asarray(decode_image(data, 10**6, PLACE))


def pixels(data: bytes) -> np.ndarray:
    decoded = decode_pixels(data, 10**6, PLACE)
    assert (decoded.dtype, decoded.shape[0]) == (torch.uint8, 3)
    return decoded.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_gives_pils_pixels(form: str) -> None:
    assert np.array_equal(pixels(encoded(form)), pil_pixels(encoded(form)))


@pytest.mark.parametrize("mode", ["L", "CMYK", "YCbCr"])
@pytest.mark.parametrize("progressive", [False, True])
def test_every_kind_of_jpeg(mode: str, progressive: bool) -> None:
    data = encoded("JPEG", mode, progressive=progressive, quality=90)
    assert np.array_equal(pixels(data), pil_pixels(data))


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_every_subsampling(subsampling: int) -> None:
    data = encoded("JPEG", subsampling=subsampling)
    assert np.abs(pixels(data).astype(int) - pil_pixels(data)).max() <= 1


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "LA", "I;16"])
def test_every_kind_of_png(mode: str) -> None:
    assert np.array_equal(pixels(encoded("PNG", mode)), pil_pixels(encoded("PNG", mode)))


def test_photos_do_not_go_through_pil(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mode_ray.train.step.pixels.decode_image", lambda *_: pytest.fail("PIL"))
    pixels(encoded("JPEG"))


class TestRefused:
    @pytest.mark.parametrize("form", FORMATS)
    def test_too_large_ones_before_they_are_decoded(self, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *_: pytest.fail("decoded"))
        with pytest.raises(DataError, match="sample 7: image of 20 x 12 pixels, more than 239 allowed"):
            decode_pixels(encoded(form), 239, PLACE)

    def test_a_jpeg_that_claims_a_size_and_holds_nothing(self) -> None:
        data = encoded("JPEG")
        at = data.index(b"\xff\xc0") + 5
        bomb = data[:at] + struct.pack(">HH", 65_000, 65_000) + data[at + 4 :]
        with pytest.raises(DataError, match="image of 65000 x 65000 pixels"):
            decode_pixels(bomb, 64_000_000, PLACE)

    @pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff", b"<html>", bytes(100)])
    def test_what_is_no_image(self, data: bytes) -> None:
        with pytest.raises(DataError, match="sample 7: not an image of a known format"):
            decode_pixels(data, 1000, PLACE)

    @pytest.mark.parametrize("form", FORMATS)
    def test_a_file_that_was_cut(self, form: str) -> None:
        data = encoded(form)
        with pytest.raises(DataError, match="sample 7: "):
            decode_pixels(data[: len(data) // 2], 1000, PLACE)

    @pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
    def test_flipped_bytes_give_what_pil_gives_or_a_data_error(self) -> None:
        data, generator = encoded("JPEG"), np.random.default_rng(0)
        verdicts = set()
        for _ in range(300):
            damaged = bytearray(data)
            for position in generator.integers(0, len(data), size=3):
                damaged[position] = generator.integers(256)
            try:
                image = decode_pixels(bytes(damaged), 100_000, PLACE)
            except DataError as error:
                assert str(error).startswith(PLACE)  # noqa: PT017  (some of them decode)
                verdicts.add("refused")
            else:
                assert image.shape[1] * image.shape[2] <= 100_000
                verdicts.add("decoded")
        assert verdicts == {"refused", "decoded"}
