"""The section `features`: features of locked trunks, computed once and read by training instead of images."""

from typing import Annotated

from pydantic import Field

from mode_ray.config.base import ActorPool, Placement, PositiveInt, Seed, Settings


class FeaturesPlacement(Placement):
    """Speed of the trunks."""

    batch_size: PositiveInt | None = None
    """Views of images, and captions, that go through a trunk at once; by default 32 on a CPU, whose caches they fit,
    and 256 on a GPU."""
    device: str = "auto"


class FeaturesConfig(Settings):
    """Features of locked towers. The stage `features` computes them with `train.data.mode: features` only."""

    views: Annotated[int, Field(ge=1, le=64)] = 1
    """Random crops of every image. Training takes one of them for every sample."""
    augmented: bool = True
    """False: one view of every image instead, resized and cropped as for evaluation."""
    seed: Seed = 0
    """Seed of the crops. Runs with different `train.seed` can share their features."""
    pool: ActorPool = ActorPool()
    trunk: FeaturesPlacement = FeaturesPlacement()
