"""Decodes and resizes images once for all experts, to uint8, with the resizing of open_clip's own evaluation.

open_clip resizes PIL images before it converts, scales and normalises them, so the resized image is uint8. Sent to the
experts it is a quarter of the size of float32. Every expert normalises it with its own mean and standard deviation
(`mode_ray.models.encode`).
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict

from mode_ray.config.images import ImagesConfig
from mode_ray.errors import DataError
from mode_ray.models.architecture import CONFIG_FILE
from mode_ray.pairs.images import FORMATS, Pixels, decode_image, decoder_errors, open_image
from mode_ray.storage import Location

MAX_RESIZED_PIXELS = 64_000_000
_DEFAULT_SIZE = 224  # open_clip's default


class ImageGeometry(BaseModel):
    """The resizing of images, the same for all experts of a run.

    Attributes:
        size: Height and width.
        interpolation: open_clip's name of the interpolation.
        resize_mode: `shortest`, `longest` or `squash`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: tuple[int, int]
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"

    @classmethod
    def of_model(cls, config: Mapping[str, Any]) -> Self:
        """From the content of an expert's `open_clip_config.json`."""
        size = config["model_cfg"]["vision_cfg"].get("image_size", _DEFAULT_SIZE)
        preprocess = config.get("preprocess_cfg", {})
        height, width = (size, size) if isinstance(size, int) else size
        interpolation = preprocess.get("interpolation", "bicubic")
        return cls(
            size=(height, width),
            # For `random` in training, open_clip evaluates with its default.
            interpolation="bicubic" if interpolation == "random" else interpolation,
            resize_mode=preprocess.get("resize_mode", "shortest"),
        )


def read_model_config(folder: Location) -> dict[str, Any]:
    """The content of an expert's `open_clip_config.json`.

    Raises:
        DataError: It is missing, or not a config of an open_clip model.
    """
    file = folder / CONFIG_FILE
    try:
        config: dict[str, Any] = json.loads(file.read_text())
        ImageGeometry.of_model(config)
    except FileNotFoundError:
        raise DataError(f"{file}: missing: copy or train this model again") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: not a config of an open_clip model ({error!r}): copy or train it again") from None
    return config


class ImageInput:
    """Decodes and resizes images.

    Args:
        geometry: How to resize.
        max_pixels: Images that are larger, before or after they are resized, are refused.
        images: Orientation, transparency and grey of 16 bits.
        formats: PIL's names of the formats to decode.
    """

    def __init__(
        self,
        geometry: ImageGeometry,
        max_pixels: int,
        images: ImagesConfig | None = None,
        formats: tuple[str, ...] = FORMATS,
    ) -> None:
        self.geometry = geometry
        self._max_pixels = max_pixels
        self._images = images or ImagesConfig()
        self._formats = formats
        self._resize = _resize_of(geometry)

    def prepare(self, data: bytes, place: str) -> Pixels:
        """One image, uint8 [h, w, 3].

        Raises:
            DataError: The image is of an unknown format, damaged, too large or too elongated.
        """
        if self._images.decoding == "open_clip":
            # open_clip resizes before it converts to RGB.
            image = open_image(data, self._max_pixels, place, self._formats)
        else:
            image = decode_image(data, self._max_pixels, place, self._images, self._formats)
        require_bounded(image, self.geometry, self._max_pixels, place)
        with decoder_errors(place):
            return np.asarray(self._resize(image), np.uint8)


def require_bounded(image: Image.Image, geometry: ImageGeometry, max_pixels: int, place: str) -> None:
    """Check the size of an image after resizing, before the crop: a line of pixels becomes very large.

    Raises:
        DataError: It would be above `max_pixels`, or have no pixels.
    """
    shortest, longest = sorted((image.width, image.height))
    least, side = min(geometry.size), max(geometry.size)
    large = geometry.resize_mode == "shortest" and side * side * longest > max_pixels * shortest
    empty = geometry.resize_mode == "longest" and 2 * least * shortest <= longest
    if large or empty:
        problem = f"more than the {max_pixels} pixels allowed" if large else "no pixels"
        raise DataError(
            f"{place}: image of {image.width} x {image.height} pixels is too elongated: resized to {side} pixels on "
            f"its {'shorter' if large else 'longer'} side it would have {problem}"
        )


def _resize_of(geometry: ImageGeometry) -> Callable[[Image.Image], Image.Image]:
    """The steps of open_clip's transform before the conversion to a tensor."""
    from open_clip.transform import PreprocessCfg, image_transform_v2  # imports torch
    from torchvision.transforms import Compose

    whole = image_transform_v2(
        PreprocessCfg(
            size=geometry.size, interpolation=geometry.interpolation, resize_mode=geometry.resize_mode, mode="RGB"
        ),
        is_train=False,
    )
    names = [type(step).__name__ for step in whole.transforms]
    steps = whole.transforms[: names.index("MaybeToTensor")]
    resize: Callable[[Image.Image], Image.Image] = Compose(steps)
    return resize
