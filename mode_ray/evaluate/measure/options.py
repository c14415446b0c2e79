"""How the images of evaluation tasks are decoded and encoded."""

from dataclasses import dataclass, field
from typing import Literal

from mode_ray.config.captions import LimitsConfig
from mode_ray.config.evaluate import EvaluatePlacement
from mode_ray.config.images import ImagesConfig
from mode_ray.config.run import RunConfig
from mode_ray.models.preprocess import ImageGeometry, ImageInput


@dataclass(frozen=True)
class MeasureOptions:
    """How the images of evaluation tasks are decoded and encoded.

    Attributes:
        placement: Batch size, workers and threads.
        images: How images become pixels.
        limits: The limit on the size of images, if `placement` has none of its own.
        precision: Arithmetic of the models.
    """

    placement: EvaluatePlacement
    images: ImagesConfig = field(default_factory=ImagesConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    precision: Literal["float32", "bfloat16", "float16"] = "float32"

    @classmethod
    def of(cls, config: RunConfig) -> "MeasureOptions":
        """The options of a run."""
        return cls(config.evaluate.placement, config.images, config.limits, config.evaluate.precision)

    def image_input(self, geometry: ImageGeometry) -> ImageInput:
        """The input of images for models of a geometry."""
        max_pixels = self.placement.max_image_pixels or self.limits.max_image_pixels
        return ImageInput(geometry, max_pixels, self.images)
