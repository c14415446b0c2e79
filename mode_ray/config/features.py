"""The section `features`: features of locked trunks, computed once and read by training instead of images."""

from typing import Annotated

from pydantic import Field

from mode_ray.config.base import ActorPool, Placement, PositiveInt, Settings


class FeaturesPlacement(Placement):
    """Speed of the trunks."""

    batch_size: PositiveInt = 64
    device: str = "auto"


class FeaturesConfig(Settings):
    """The stage `features`, which runs with `train.data.mode: features`; docs/training.md is the guide."""

    views: Annotated[int, Field(ge=1, le=64)] = 1
    """Features of every image, each of another view. Training draws one of them for every sample."""
    augmented: bool = True
    """Views are random crops, as training sees them. False: one view, resized and cropped at the center, as evaluation
    sees the image."""
    pool: ActorPool = ActorPool()
    trunk: FeaturesPlacement = FeaturesPlacement()
