"""The images that the Python API takes: PIL images, arrays, encoded bytes and files."""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from mode_ray.config.images import ImagesConfig
from mode_ray.errors import DataError, UsageError
from mode_ray.pairs.images import decode_image, open_image, rgb_pixels
from mode_ray.storage import Location

ImageInput: TypeAlias = Image.Image | npt.NDArray[np.uint8] | bytes | str | Path
"""A PIL image, a uint8 array [h, w], [h, w, 3] or [h, w, 4], an encoded image, or the path or URI of one."""

MAX_IMAGE_PIXELS = 64_000_000
_MAX_FILE_BYTES = 256 << 20
_CHANNELS = (3, 4)


def pil_batches(
    images: ImageInput | Iterable[ImageInput], size: int, config: ImagesConfig
) -> Iterator[list[Image.Image]]:
    """Convert images to PIL, a batch at a time, so that a generator of any length fits in memory.

    Args:
        images: One image, several, a generator, or a uint8 array [images, h, w, 3].
        size: Images in a batch.
        config: How images become pixels. With `open_clip` the images keep their mode; otherwise they are RGB.

    Raises:
        UsageError: The type, dtype or shape of an image is not one of `ImageInput`.
        DataError: A file is missing, or is not an image of a known format and bounded size.
    """
    remaining = enumerate(_each(images))
    while batch := [_as_pil(image, f"image {number}", config) for number, image in islice(remaining, size)]:
        yield batch


def _each(images: ImageInput | Iterable[ImageInput]) -> Iterable[ImageInput]:
    if isinstance(images, np.ndarray):
        return list(images) if images.ndim == 4 else [images]
    if isinstance(images, Image.Image | str | Path | bytes):
        return [images]
    if _is_tensor(images) or not isinstance(images, Iterable):
        raise UsageError(f"expected an image or several images, got {_described(images)}")
    return images


def _as_pil(image: ImageInput, place: str, config: ImagesConfig) -> Image.Image:
    if isinstance(image, Image.Image):
        return _converted(image, place, config)
    if isinstance(image, bytes):
        return _decoded(image, place, config)
    if isinstance(image, str | Path):
        file = Location.parse(str(image))
        return _decoded(_read(file), str(file), config)
    if not isinstance(image, np.ndarray):
        raise UsageError(
            f"{place}: expected a PIL image, a uint8 array, encoded bytes or a path, got {_described(image)}"
        )
    gray, color = image.ndim == 2, image.ndim == 3 and image.shape[2] in _CHANNELS
    if image.dtype != np.uint8 or not (gray or color) or not image.size:
        raise UsageError(
            f"{place}: expected a uint8 array [h, w, 3], [h, w, 4] or [h, w], got {image.dtype}{list(image.shape)}"
        )
    return _converted(Image.fromarray(image), place, config)


def _converted(image: Image.Image, place: str, config: ImagesConfig) -> Image.Image:
    # open_clip resizes before it converts to RGB.
    return image if config.decoding == "open_clip" else Image.fromarray(rgb_pixels(image, config, place))


def _decoded(data: bytes, place: str, config: ImagesConfig) -> Image.Image:
    if config.decoding == "open_clip":
        return open_image(data, MAX_IMAGE_PIXELS, place)
    return decode_image(data, MAX_IMAGE_PIXELS, place, config)


def _is_tensor(value: object) -> bool:
    return type(value).__module__.split(".")[0] == "torch"


def _described(value: object) -> str:
    hint = ": call tensor.permute(1, 2, 0).numpy(), with uint8 values" if _is_tensor(value) else ""
    return f"{type(value).__name__}{hint}"


def _read(file: Location) -> bytes:
    try:
        size_bytes = file.size_bytes()
        if size_bytes > _MAX_FILE_BYTES:
            raise DataError(f"{file}: {size_bytes:,} bytes; at most {_MAX_FILE_BYTES:,} are read as one image")
        return file.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{file}: no such image file") from None
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({' '.join(str(error).split())})") from None
