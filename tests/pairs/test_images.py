"""Images are untrusted: known formats by content, bounded size; every damage is a DataError that names the place.

Pixels are those that a browser shows: upright, on the background's color, grey of 16 bits scaled.
"""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps, PngImagePlugin

from mode_ray.config.images import ImagesConfig
from mode_ray.errors import DataError
from mode_ray.pairs.images import FORMATS, WEB_FORMATS, decode_image, decode_pixels, rgb_pixels

PLACE = "/data/x.tar: sample 7"
PIXELS = np.random.default_rng(0).integers(0, 255, (12, 20, 3), dtype=np.uint8)
SMOOTH = Image.fromarray(PIXELS[:3, :5]).resize((40, 24), Image.Resampling.BICUBIC)
OPEN_CLIP = ImagesConfig(decoding="open_clip")
ORIENTATION = 0x0112
WHITE = (255, 255, 255)


def saved(image: Image.Image, form: str, **options: Any) -> bytes:  # noqa: ANN401  (PIL's)
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def encoded(form: str, mode: str = "RGB", **options: Any) -> bytes:  # noqa: ANN401  (PIL's)
    """A noisy image of 20 x 12 pixels."""
    return saved(Image.fromarray(PIXELS).convert(mode), form, **options)


def pixels_of(data: bytes, images: ImagesConfig | None = None) -> np.ndarray:
    decoded = decode_pixels(data, 10**6, PLACE, images or ImagesConfig())
    assert (decoded.dtype, decoded.shape[2]) == (np.dtype(np.uint8), 3)
    return decoded


def pil_pixels(data: bytes) -> np.ndarray:
    """As open_clip's own code decodes an image."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and contains no pixels."""
    return png(width, height, 8, 2, b"")


def png(width: int, height: int, depth: int, kind: int, rows: bytes, *, clear: bytes = b"") -> bytes:
    """A PNG from its rows, with a chunk tRNS if `clear` is given."""
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)]
    chunks += [b"tRNS" + clear] if clear else []
    chunks += [b"IDAT" + zlib.compress(rows), b"IEND"]
    parts = [struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


class TestFormats:
    @pytest.mark.parametrize("form", FORMATS)
    def test_every_known_format_becomes_rgb(self, form: str) -> None:
        image = decode_image(encoded(form), 1000, PLACE)
        assert (image.mode, image.size) == ("RGB", (20, 12))

    @pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "PPM", "JPEG2000"])
    def test_lossless_pixels_come_back(self, form: str) -> None:
        assert np.array_equal(pixels_of(encoded(form)), PIXELS)

    @pytest.mark.parametrize(
        "data", [b"", b"<html>", b"%PDF-1.4", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"\xff\xd8\xff", bytes(99)]
    )
    def test_what_is_no_image(self, data: bytes) -> None:
        with pytest.raises(DataError, match=r"x\.tar: sample 7: not an image of a known format"):
            decode_image(data, 1000, PLACE)

    @pytest.mark.parametrize("form", ["TIFF", "AVIF", "JPEG2000", "PPM"])
    def test_formats_that_are_not_asked_for_are_not_opened(self, form: str) -> None:
        with pytest.raises(DataError, match=r"not an image of a known format \(JPEG, PNG, WEBP, GIF, BMP\)$"):
            decode_pixels(encoded(form), 1000, PLACE, formats=WEB_FORMATS)

    @pytest.mark.parametrize("form", ["ICO", "TGA", "PCX"])
    def test_unknown_formats_are_not_opened(self, form: str) -> None:
        with pytest.raises(DataError, match="not an image of a known format"):
            decode_image(encoded(form), 1000, PLACE)

    @pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "MPO"])
    def test_the_first_of_several_frames(self, form: str) -> None:
        data = saved(SMOOTH, form, save_all=True, append_images=[Image.new("RGB", SMOOTH.size)])
        assert np.abs(pixels_of(data).astype(int) - np.asarray(SMOOTH)).mean() < 12


class TestJpeg:
    @pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "YCbCr"])
    @pytest.mark.parametrize("progressive", [False, True])
    def test_pixels_are_those_of_pil(self, mode: str, progressive: bool) -> None:
        data = encoded("JPEG", mode, progressive=progressive, quality=90)
        assert np.array_equal(pixels_of(data), pil_pixels(data))

    @pytest.mark.parametrize("subsampling", [0, 1, 2])
    def test_every_subsampling(self, subsampling: int) -> None:
        data = encoded("JPEG", subsampling=subsampling)
        assert np.abs(pixels_of(data).astype(int) - pil_pixels(data)).max() <= 1

    def test_photos_are_not_decoded_by_pil(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("PIL"))
        pixels_of(encoded("JPEG"))

    def test_a_file_that_claims_a_size_and_contains_no_pixels(self) -> None:
        data = encoded("JPEG")
        at = data.index(b"\xff\xc0") + 5
        bomb = data[:at] + struct.pack(">HH", 65_000, 65_000) + data[at + 4 :]
        with pytest.raises(DataError, match="image of 65000 x 65000 pixels"):
            decode_pixels(bomb, 64_000_000, PLACE)


def exif(orientation: Any) -> bytes:  # noqa: ANN401  (also wrong ones)
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    return tags.tobytes()


class TestOrientation:
    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
    def test_every_orientation_is_applied(self, form: str, orientation: int) -> None:
        data = saved(SMOOTH, form, exif=exif(orientation))
        upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        assert np.array_equal(pixels_of(data), np.asarray(upright.convert("RGB")))

    @pytest.mark.parametrize("orientation", [0, 9, 99, 65_535])
    def test_unknown_values_are_ignored(self, orientation: int) -> None:
        data = saved(SMOOTH, "JPEG", exif=exif(orientation))
        assert np.array_equal(pixels_of(data), pil_pixels(data))

    def test_after_other_segments(self) -> None:
        data = saved(SMOOTH, "JPEG", exif=exif(6), icc_profile=bytes(100_000))
        assert pixels_of(data).shape == (40, 24, 3)

    def test_in_xmp_alone(self) -> None:
        data = saved(SMOOTH, "JPEG", xmp=b'<x:xmpmeta><r tiff:Orientation="6"/></x:xmpmeta>')
        assert pixels_of(data).shape == (40, 24, 3)

    @pytest.mark.filterwarnings("ignore::UserWarning")
    def test_damaged_metadata_do_not_matter(self) -> None:
        good, generator = saved(SMOOTH, "JPEG", exif=exif(6)), np.random.default_rng(0)
        at = good.index(b"Exif")
        end = at - 2 + int.from_bytes(good[at - 2 : at])
        shapes = set()
        for _ in range(300):
            damaged = bytearray(good)
            for position in generator.integers(at + 6, end, size=3):
                damaged[position] = generator.integers(256)
            shapes.add(pixels_of(bytes(damaged)).shape)
        assert shapes == {(40, 24, 3), (24, 40, 3)}

    def test_a_pil_image_of_the_user(self) -> None:
        image = Image.open(io.BytesIO(saved(SMOOTH, "PNG", exif=exif(6))))
        assert rgb_pixels(image, ImagesConfig(), "x").shape == (40, 24, 3)


def disc(hidden: tuple[int, int, int]) -> Image.Image:
    """A red field on nothing; the transparent pixels have a color that nobody should see."""
    image = Image.new("RGBA", (20, 12), (*hidden, 0))
    image.paste((220, 30, 30, 255), (5, 3, 15, 9))
    image.putpixel((0, 0), (0, 0, 0, 51))  # a fifth black
    return image


class TestTransparency:
    @pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF", "JPEG2000"])
    @pytest.mark.parametrize("hidden", [(0, 0, 0), (10, 200, 90)])
    def test_hidden_pixels_are_not_seen(self, form: str, hidden: tuple[int, int, int]) -> None:
        options = {"lossless": True, "exact": True} if form == "WEBP" else {}
        pixels = pixels_of(saved(disc(hidden), form, **options))
        assert [pixels[6, 10].tolist(), pixels[0, 0].tolist()] == [[220, 30, 30], [204, 204, 204]]
        assert np.all(pixels[1:3] == 255)

    def test_the_background_is_a_setting(self) -> None:
        pixels = pixels_of(saved(disc((0, 0, 0)), "PNG"), ImagesConfig(background="#0a141e"))
        assert pixels[1, 1].tolist() == [10, 20, 30]

    @pytest.mark.parametrize("form", ["PNG", "GIF", "WEBP"])
    def test_a_transparent_palette_color(self, form: str) -> None:
        image = disc((0, 0, 0)).quantize(8)
        if form == "GIF":
            image = disc((0, 0, 0))  # PIL makes the palette
        pixels = pixels_of(saved(image, form, **({"lossless": True} if form == "WEBP" else {})))
        assert np.all(pixels[1:3] == 255)
        assert pixels[6, 10, 0] > 200

    @pytest.mark.parametrize(
        "data",
        [
            png(2, 1, 8, 0, b"\0\x07\x50", clear=b"\0\x07"),
            png(2, 1, 16, 0, b"\0\x07\x07\x50\x50", clear=b"\x07\x07"),
            png(2, 1, 8, 2, b"\0\x07\x08\x09\x50\x50\x50", clear=b"\0\x07\0\x08\0\x09"),
            png(2, 1, 8, 4, b"\0\x07\0\x50\xff"),
            png(2, 1, 16, 4, b"\0\x07\x07\0\0\x50\x50\xff\xff"),
            png(2, 1, 16, 6, b"\0" + b"\x07" * 6 + b"\0\0" + b"\x50" * 6 + b"\xff\xff"),
        ],
        ids=["L and tRNS", "L of 16 bits and tRNS", "RGB and tRNS", "LA", "LA of 16 bits", "RGBA of 16 bits"],
    )
    def test_every_kind_of_png(self, data: bytes) -> None:
        assert pixels_of(data)[0].tolist() == [[255] * 3, [0x50] * 3]

    def test_opaque_pixels_stay_as_they_are(self) -> None:
        assert np.array_equal(pixels_of(encoded("PNG", "RGBA")), PIXELS)

    @pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "La", "RGBa"])
    def test_pil_images_of_the_user(self, mode: str) -> None:
        clear = Image.new("RGBA", (4, 4), (9, 9, 9, 0))
        for step in {"PA": ("P", "PA"), "La": ("LA", "La"), "RGBa": ("RGBa",)}.get(mode, (mode,)):
            clear = clear.convert(step) if mode != "PA" else Image.new("PA", (4, 4))
        assert np.all(rgb_pixels(clear, ImagesConfig(), "x") == 255)


class TestGreyOf16Bits:
    def test_levels_are_scaled_to_8_bits(self) -> None:
        levels = np.arange(256, dtype=np.uint16).reshape(8, 32) * 257
        pixels = pixels_of(saved(Image.fromarray(levels), "PNG"))
        assert np.array_equal(pixels[..., 0], levels // 257)

    @pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM", "JPEG2000"])
    def test_in_every_format(self, form: str) -> None:
        ramp = np.tile(np.arange(64, dtype=np.uint16) * 1040, (8, 1))
        pixels = pixels_of(saved(Image.fromarray(ramp), form))
        assert np.abs(pixels[..., 1] - ramp / 257).max() <= 0.5

    @pytest.mark.parametrize(
        "image", [Image.new("F", (4, 4), 0.5), Image.fromarray(np.full((4, 4), 70_000, np.int32))], ids=["F", "I"]
    )
    def test_values_without_a_scale_are_refused(self, image: Image.Image) -> None:
        with pytest.raises(DataError, match=r"sample 7: grey values .* have no fixed scale; convert the image"):
            decode_pixels(saved(image, "TIFF"), 1000, PLACE)


class TestLikeOpenClip:
    @pytest.mark.parametrize(
        "data",
        [
            saved(SMOOTH, "JPEG", exif=exif(6)),
            saved(SMOOTH, "PNG", exif=exif(6)),
            saved(disc((1, 2, 3)), "PNG"),
            saved(disc((1, 2, 3)), "GIF"),
            saved(Image.fromarray(np.full((4, 4), 700, np.uint16)), "PNG"),
        ],
        ids=["turned", "turned PNG", "transparent", "palette", "16 bits"],
    )
    def test_pixels_are_those_of_pils_conversion(self, data: bytes) -> None:
        assert np.array_equal(pixels_of(data, OPEN_CLIP), pil_pixels(data))
        assert not np.array_equal(pixels_of(data), pil_pixels(data))


class TestTooLarge:
    @pytest.mark.parametrize("form", FORMATS)
    def test_the_limit_is_in_pixels(self, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
        assert decode_image(encoded(form), 240, PLACE).size == (20, 12)
        monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *_: pytest.fail("decoded"))
        with pytest.raises(DataError, match="sample 7: image of 20 x 12 pixels, more than 239 allowed"):
            decode_image(encoded(form), 239, PLACE)

    @pytest.mark.parametrize(("width", "height"), [(9000, 9000), (50_000, 50_000), (2_000_000_000, 2_000_000_000)])
    def test_bombs_are_refused_before_they_are_decoded(self, width: int, height: int) -> None:
        with pytest.raises(DataError, match=r"sample 7: image (of|too large)"):
            decode_image(png_header(width, height), 64_000_000, PLACE)

    def test_a_text_that_unpacks_to_many_bytes(self) -> None:
        text = PngImagePlugin.PngInfo()
        text.add_text("comment", "x" * 20_000_000, zip=True)
        with pytest.raises(DataError, match="sample 7: damaged image"):
            decode_image(encoded("PNG", pnginfo=text), 1000, PLACE)


class TestDamaged:
    @pytest.mark.parametrize("form", FORMATS)
    def test_a_file_that_was_cut(self, form: str) -> None:
        data = encoded(form)
        with pytest.raises(DataError, match="sample 7: "):
            decode_image(data[: len(data) // 2], 1000, PLACE)

    @pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning", "ignore::UserWarning")
    @pytest.mark.parametrize("form", FORMATS)
    @pytest.mark.parametrize("within", [120, None])
    def test_flipped_bytes_give_an_image_or_a_data_error(self, form: str, within: int | None) -> None:
        data, generator = encoded(form), np.random.default_rng(0)
        for _ in range(150):
            damaged = bytearray(data)
            for position in generator.integers(0, min(len(data), within or len(data)), size=3):
                damaged[position] = generator.integers(256)
            try:
                image = decode_image(bytes(damaged), 100_000, PLACE)
            except DataError as error:
                assert str(error).startswith(PLACE)  # noqa: PT017  (some of them decode)
            else:
                assert image.width * image.height <= 100_000
