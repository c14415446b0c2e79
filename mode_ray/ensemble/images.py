"""The images that the Python API takes: PIL images, arrays, encoded bytes and files."""

from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from mode_ray.errors import DataError, UsageError
from mode_ray.pairs.images import decode_image
from mode_ray.storage import Location

ImageInput: TypeAlias = Image.Image | npt.NDArray[np.uint8] | bytes | str | Path
"""A PIL image, uint8 [h, w, 3] or [h, w], an encoded image, or the path or URI of one."""

MAX_IMAGE_PIXELS = 64_000_000
_MAX_FILE_BYTES = 256 << 20


def as_pil(image: ImageInput, place: str) -> Image.Image:
    """Convert an image to PIL, RGB.

    Args:
        image: The image.
        place: Which one it is, for the message.

    Raises:
        UsageError: The type, dtype or shape is not one of `ImageInput`.
        DataError: A file is missing, or is not an image of a known format and bounded size.
    """
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if isinstance(image, bytes):
        return decode_image(image, MAX_IMAGE_PIXELS, place)
    if isinstance(image, str | Path):
        return _read(Location.parse(str(image)))
    if not isinstance(image, np.ndarray):
        raise UsageError(
            f"{place}: expected a PIL image, a uint8 array, encoded bytes or a path, got {type(image).__name__}"
        )
    gray, rgb = image.ndim == 2, image.ndim == 3 and image.shape[2] == 3
    if image.dtype != np.uint8 or not (gray or rgb) or not image.size:
        raise UsageError(f"{place}: expected a uint8 array [h, w, 3] or [h, w], got {image.dtype}{list(image.shape)}")
    return Image.fromarray(image).convert("RGB")


def _read(file: Location) -> Image.Image:
    try:
        size_bytes = file.size_bytes()
        if size_bytes > _MAX_FILE_BYTES:
            raise DataError(f"{file}: {size_bytes:,} bytes; at most {_MAX_FILE_BYTES:,} are read as one image")
        data = file.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{file}: no such image file") from None
    return decode_image(data, MAX_IMAGE_PIXELS, str(file))
