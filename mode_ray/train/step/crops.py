"""Random crops: torchvision's RandomResizedCrop, its numbers drawn by position, its pixels computed without PIL.

A crop depends on the seed and the sample's position in the run alone: not on worker, rank, thread or restart, and it
leaves torch's global generator alone.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torchvision.transforms import Compose, InterpolationMode, Normalize, RandomResizedCrop

from mode_ray.util.counter_random import uniform_numbers

_ATTEMPTS = 10

Box = tuple[int, int, int, int]
"""Top, left, height, width."""


@dataclass(frozen=True)
class TrainTransform:
    """What open_clip's training transform does to an image.

    Attributes:
        size: Height and width of the result.
        scale: Smallest and largest share of the image's area that is cropped.
        ratio: Smallest and largest width of a crop, by its height.
        mean: Of each channel, for pixels from 0 to 1.
        std: Of each channel.
        mode: Of the interpolation, `bicubic` or `bilinear`.
    """

    size: tuple[int, int]
    scale: tuple[float, float]
    ratio: tuple[float, float]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mode: str

    @classmethod
    def of(cls, transform: Callable[[Any], torch.Tensor]) -> "TrainTransform":
        """Read a transform that open_clip made.

        Raises:
            TypeError: It crops otherwise, or does more than crop and normalise.
        """
        steps = transform.transforms if isinstance(transform, Compose) else []
        names = [type(step).__name__ for step in steps]
        if names != ["RandomResizedCrop", "MaybeConvertMode", "MaybeToTensor", "Normalize"]:
            raise TypeError(f"not the training transform of open_clip: {names or transform!r}")
        crop: RandomResizedCrop = steps[0]
        normalize: Normalize = steps[-1]
        if crop.interpolation not in (InterpolationMode.BICUBIC, InterpolationMode.BILINEAR):
            raise TypeError(f"not the training transform of open_clip: interpolation {crop.interpolation}")
        return cls(
            size=tuple(crop.size),
            scale=tuple(crop.scale),
            ratio=tuple(crop.ratio),
            mean=tuple(normalize.mean),
            std=tuple(normalize.std),
            mode=crop.interpolation.value,
        )

    def draw(self, seed: int, positions: npt.ArrayLike) -> list[list[float]]:
        """What `crop` needs for the samples at these positions of a run, drawn for all of them at once."""
        uniform_bc = uniform_numbers(f"crops {seed}", np.asarray(positions, np.int64), 2 * _ATTEMPTS + 2)
        areas = self.scale[0] + (self.scale[1] - self.scale[0]) * uniform_bc[:, :_ATTEMPTS]
        first, last = math.log(self.ratio[0]), math.log(self.ratio[1])
        aspects = np.exp(first + (last - first) * uniform_bc[:, _ATTEMPTS:-2])
        drawn: list[list[float]] = np.concatenate(
            [np.sqrt(areas * aspects), np.sqrt(areas / aspects), uniform_bc[:, -2:]], axis=1
        ).tolist()
        return drawn

    def crop(self, pixels: torch.Tensor, drawn: Sequence[float]) -> torch.Tensor:
        """Crop and resize, uint8 [3, h, w] to uint8 [3, *size]; `drawn` by `draw`."""
        top, left, height, width = crop_box(pixels.shape[1], pixels.shape[2], self.ratio, drawn)
        cropped = pixels[None, :, top : top + height, left : left + width]
        return torch.nn.functional.interpolate(cropped, self.size, mode=self.mode, antialias=True)[0]

    def normalised_(self, images: torch.Tensor) -> torch.Tensor:
        """Normalise pixels from 0 to 255, float32 [b, 3, h, w], in place."""
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return torch.addcmul(-mean / std, images, 1 / (255 * std), out=images)


def crop_box(height: int, width: int, ratio: tuple[float, float], drawn: Sequence[float]) -> Box:
    """A random part of an image, distributed as torchvision's RandomResizedCrop draws it.

    Args:
        height: Of the image.
        width: Of the image.
        ratio: Width by height, from, to, where no attempt fits.
        drawn: Of ten attempts the widths, then the heights, by the square root of the image's area; then two numbers
            in [0, 1) for the place.
    """
    side = math.sqrt(height * width)
    for attempt in range(_ATTEMPTS):
        wide, high = round(side * drawn[attempt]), round(side * drawn[_ATTEMPTS + attempt])
        if 0 < wide <= width and 0 < high <= height:
            return int(drawn[-2] * (height - high + 1)), int(drawn[-1] * (width - wide + 1)), high, wide
    # None fits: the whole image, or the middle of one that is too long.
    wide, high = width, height
    if width / height < ratio[0]:
        high = round(width / ratio[0])
    elif width / height > ratio[1]:
        wide = round(height * ratio[1])
    return (height - high) // 2, (width - wide) // 2, high, wide
