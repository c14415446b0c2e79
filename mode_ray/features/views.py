"""The views of an image that a trunk sees: random crops as in training, or the one of evaluation."""

import zlib
from typing import Any

import numpy as np
import torch

from mode_ray.config.run import RunConfig
from mode_ray.models.clip import ClipModel
from mode_ray.models.crops import TrainTransform
from mode_ray.models.preprocess import ImageGeometry, ImageInput
from mode_ray.pairs.images import Pixels, decode_pixels
from mode_ray.pairs.reader import Pair


class Views:
    """Makes the views of images; the same in every run with the same `features.seed`.

    Args:
        clip: The model, for the sizes of its images.
        config: The run's config.

    Attributes:
        count: Views of an image.
    """

    def __init__(self, clip: ClipModel, config: RunConfig) -> None:
        self._config = config
        self._transform = TrainTransform.of(clip.train_transform)
        geometry = ImageGeometry.of_model(clip.config)
        self._evaluation = ImageInput(geometry, config.limits.max_image_pixels, config.images)
        self.count = config.features.views if config.features.augmented else 1

    def prepare(self, pair: Pair, unit: str, row: int) -> Pixels:
        """The views of a pair's image, uint8 [views, 3, h, w].

        Args:
            pair: The pair.
            unit: Its work unit.
            row: Its row in the unit.

        Raises:
            DataError: The image is missing or cannot be decoded.
        """
        if not self._config.features.augmented:
            pixels_hw3 = self._evaluation.prepare(pair.encoded(), pair.place)
            return np.ascontiguousarray(pixels_hw3.transpose(2, 0, 1))[None]
        decoded = decode_pixels(pair.encoded(), self._config.limits.max_image_pixels, pair.place, self._config.images)
        pixels: Any = torch.from_numpy(decoded).permute(2, 0, 1)
        seed = zlib.crc32(f"{self._config.features.seed} {unit}".encode())
        positions = np.arange(row * self.count, (row + 1) * self.count)
        crops = [self._transform.crop(pixels, drawn) for drawn in self._transform.draw(seed, positions)]
        views: Pixels = torch.stack(crops).numpy()
        return views

    def nothing(self) -> Pixels:
        """Black views, for an image that has none."""
        return np.zeros((self.count, 3, *self._transform.size), np.uint8)
