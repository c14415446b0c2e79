"""Decodes and resizes images once for all experts, to uint8, like open_clip's own evaluation.

open_clip resizes PIL images before it converts, scales and normalises them, so the resized image is uint8. Sent to the
experts it is a quarter of the size of float32. Every expert normalises it with its own mean and standard deviation
(`mode_ray.models.encode`).
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import BaseModel, ConfigDict

from mode_ray.errors import DataError
from mode_ray.models.architecture import CONFIG_FILE
from mode_ray.pairs.images import decode_image
from mode_ray.storage import Location

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
    """Decodes and resizes images."""

    def __init__(self, geometry: ImageGeometry, max_pixels: int) -> None:
        self.geometry = geometry
        self._max_pixels = max_pixels
        self._resize = _resize_of(geometry)

    def prepare(self, data: bytes, place: str) -> npt.NDArray[np.uint8]:
        """One image, uint8 [h, w, 3].

        Raises:
            DataError: The image is of an unknown format, damaged, too large or too elongated.
        """
        image = decode_image(data, self._max_pixels, place)
        self._require_bounded(image, place)
        return np.asarray(self._resize(image), np.uint8)

    def _require_bounded(self, image: Image.Image, place: str) -> None:
        """Refuse images that become too large when their shortest side is resized, such as a line of pixels."""
        if self.geometry.resize_mode != "shortest":
            return
        shortest, longest = sorted((image.width, image.height))
        side = max(self.geometry.size)
        if side * side * longest > self._max_pixels * shortest:
            raise DataError(
                f"{place}: image of {image.width} x {image.height} pixels is too elongated: resized to {side} pixels "
                f"on its shorter side it would have more than the {self._max_pixels} pixels allowed"
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
