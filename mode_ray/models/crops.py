"""Random crops like torchvision's RandomResizedCrop, with random numbers by position and resizing without PIL.

A crop depends only on the seed and on the sample's position in the run. It does not depend on the worker, rank, thread
or restart, and it does not change torch's global generator.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torchvision.transforms import Compose, InterpolationMode, RandomResizedCrop

from mode_ray.models.clip import ClipModel
from mode_ray.util.counter_random import uniform_numbers

_ATTEMPTS = 10

Box = tuple[int, int, int, int]
"""Top, left, height, width."""


@dataclass(frozen=True)
class TrainTransform:
    """The parameters of open_clip's training transform, without its normalisation (`mode_ray.models.pixels`).

    Attributes:
        size: Height and width of the result.
        scale: Smallest and largest area of a crop, as a share of the image's area.
        ratio: Smallest and largest aspect ratio of a crop, width / height.
        mode: Interpolation, `bicubic` or `bilinear`.
    """

    size: tuple[int, int]
    scale: tuple[float, float]
    ratio: tuple[float, float]
    mode: str

    @classmethod
    def of(cls, transform: Callable[[Any], torch.Tensor]) -> "TrainTransform":
        """The parameters of a transform that open_clip made.

        Raises:
            TypeError: The transform has other steps than open_clip's, or another interpolation.
        """
        steps = transform.transforms if isinstance(transform, Compose) else []
        names = [type(step).__name__ for step in steps]
        if names != ["RandomResizedCrop", "MaybeConvertMode", "MaybeToTensor", "Normalize"]:
            raise TypeError(f"not the training transform of open_clip: {names or transform!r}")
        crop: RandomResizedCrop = steps[0]
        if crop.interpolation not in (InterpolationMode.BICUBIC, InterpolationMode.BILINEAR):
            raise TypeError(f"not the training transform of open_clip: interpolation {crop.interpolation}")
        return cls(
            size=tuple(crop.size),
            scale=tuple(crop.scale),
            ratio=tuple(crop.ratio),
            mode=crop.interpolation.value,
        )

    def draw(self, seed: int, positions: npt.ArrayLike) -> list[list[float]]:
        """The random numbers that `crop` needs, one list per position of the run."""
        uniform_bc = uniform_numbers(f"crops {seed}", np.asarray(positions, np.int64), 2 * _ATTEMPTS + 2)
        areas = self.scale[0] + (self.scale[1] - self.scale[0]) * uniform_bc[:, :_ATTEMPTS]
        first, last = math.log(self.ratio[0]), math.log(self.ratio[1])
        aspects = np.exp(first + (last - first) * uniform_bc[:, _ATTEMPTS:-2])
        drawn: list[list[float]] = np.concatenate(
            [np.sqrt(areas * aspects), np.sqrt(areas / aspects), uniform_bc[:, -2:]], axis=1
        ).tolist()
        return drawn

    def crop(self, pixels: torch.Tensor, drawn: Sequence[float]) -> torch.Tensor:
        """Crop and resize uint8 [3, h, w] to uint8 [3, *size]; `drawn` is a list from `draw`."""
        top, left, height, width = crop_box(pixels.shape[1], pixels.shape[2], self.ratio, drawn)
        cropped = pixels[None, :, top : top + height, left : left + width]
        return torch.nn.functional.interpolate(cropped, self.size, mode=self.mode, antialias=True)[0]


def transform_of(clip: ClipModel) -> str:
    """All that decides the pixels of a model's input for a given image and box, as JSON."""
    visual: Any = clip.module.visual
    crop = asdict(TrainTransform.of(clip.train_transform))
    return json.dumps({"crop": crop, "preprocess": dict(visual.preprocess_cfg)}, sort_keys=True)


def crop_box(height: int, width: int, ratio: tuple[float, float], drawn: Sequence[float]) -> Box:
    """A random box in an image, with the distribution of torchvision's RandomResizedCrop.

    Args:
        height: Height of the image.
        width: Width of the image.
        ratio: Smallest and largest aspect ratio, used if no attempt fits.
        drawn: The widths of ten attempts, then their heights, both divided by the square root of the image's area;
            then two numbers in [0, 1) for the box's position.
    """
    side = math.sqrt(height * width)
    for attempt in range(_ATTEMPTS):
        wide, high = round(side * drawn[attempt]), round(side * drawn[_ATTEMPTS + attempt])
        if 0 < wide <= width and 0 < high <= height:
            return int(drawn[-2] * (height - high + 1)), int(drawn[-1] * (width - wide + 1)), high, wide
    # No attempt fits: take the whole image, or the center of one that is too elongated.
    wide, high = width, height
    if width / height < ratio[0]:
        high = round(width / ratio[0])
    elif width / height > ratio[1]:
        wide = round(height * ratio[1])
    return (height - high) // 2, (width - wide) // 2, high, wide
