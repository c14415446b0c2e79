"""The pairs of both domains: a picture that can be drawn, its captions and its labels."""

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE_PIXELS = 64
Choice = TypeVar("Choice")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One image with its captions, not drawn yet.

    Attributes:
        key: Name within the data set: no dots, no slashes.
        domain: `emoji` or `icon`.
        captions: Distinct texts, the main one first.
        labels: Further fields of the pair's json member.
        concept: What it shows, without skin tone, gender, vendor and size. Pairs of one concept, or with nearly the
            same pixels, are either all held out or all trained on.
        stratum: Kind of thing; the same share of each is held out.
        draw: Makes the image, RGB, `SIDE_PIXELS` square, on white; raises OSError, SyntaxError or ValueError if the
            file cannot be decoded.
    """

    key: str
    domain: str
    captions: tuple[str, ...]
    labels: Mapping[str, str]
    concept: str
    stratum: str
    draw: Callable[[], Image.Image]


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A pair with its image.

    Attributes:
        pair: What is shown.
        pixels_hwc: uint8, `SIDE_PIXELS` x `SIDE_PIXELS` x 3.
    """

    pair: Pair
    pixels_hwc: NDArray[np.uint8]

    def png(self) -> bytes:
        """The image as a PNG file, the same bytes every time."""
        sink = io.BytesIO()
        Image.fromarray(self.pixels_hwc).save(sink, format="PNG", compress_level=4)
        return sink.getvalue()


def stable_hash(*parts: object) -> int:
    """A 64-bit hash of the parts' texts that is the same on every machine and in every process."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def pick(options: Sequence[Choice], *parts: object) -> Choice:
    """Choose an option by the hash of the parts."""
    return options[stable_hash(*parts) % len(options)]


def on_white(image: Image.Image) -> Image.Image:
    """Fit an image of any size, mode and transparency into a white RGB square of `SIDE_PIXELS`."""
    picture = image.convert("RGBA")
    scale = SIDE_PIXELS / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    # Premultiplied alpha: without it the colour of invisible pixels bleeds into the edges.
    picture = picture.convert("RGBa").resize(size, Image.Resampling.LANCZOS).convert("RGBA")
    canvas = Image.new("RGBA", (SIDE_PIXELS, SIDE_PIXELS), "white")
    canvas.alpha_composite(picture, ((SIDE_PIXELS - size[0]) // 2, (SIDE_PIXELS - size[1]) // 2))
    return canvas.convert("RGB")


def ink_share(pixels_hwc: NDArray[np.uint8]) -> float:
    """Share of the pixels that differ visibly from white."""
    return float((pixels_hwc.min(axis=2) < 225).mean())
