"""The interface of an expert to the service, whether its model runs in this process or in a Ray Serve application."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict


class ExpertDescription(BaseModel):
    """Facts about an expert.

    Attributes:
        logit_scale: exp of its learned temperature.
        dimension: Length of its embeddings.
        image_size: Height and width of the images that it takes, in pixels.
        source: Where its weights come from; different weights have different sources.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    logit_scale: float
    dimension: int
    image_size: tuple[int, int]
    source: str


class ExpertUnavailable(Exception):  # noqa: N818  (a state of an expert)
    """The expert is down, or does not answer."""


class ExpertBusy(Exception):  # noqa: N818  (a state of an expert)
    """The expert's queue is full."""


class ExpertClient(Protocol):
    """Asks one expert. The caller applies deadlines: cancelling a call frees its place in the queue.

    All methods raise ExpertUnavailable if the expert is down; those that encode raise ExpertBusy if its queue is full.

    Attributes:
        id: The expert's number in the run's coarse map.
    """

    id: int

    async def describe(self) -> ExpertDescription:
        """Facts about the expert."""
        ...

    async def encode_images(self, images_bhw3: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Unit-norm embeddings of resized images, float32 [b, d]."""
        ...

    async def encode_texts(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Unit-norm embeddings of texts, float32 [l, d]."""
        ...
