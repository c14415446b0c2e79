"""What the tests of serving share."""

import contextlib
import io
from collections.abc import Callable

import numpy as np
from PIL import Image

from mode_ray.serve.ensemble_service import EnsembleService

TOPICS = ("a cat", "a dog", "a horse", "a bus", "a train", "a tram", "an apple", "a pear", "a plum")
EXPERTS = 3
MakeService = Callable[..., EnsembleService]
ServeUrl = Callable[..., "contextlib.AbstractContextManager[str]"]


def picture(seed: int, kind: str = "PNG", size: tuple[int, int] = (40, 30)) -> bytes:
    """An encoded image of noise, smooth enough for every format."""
    rows = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(rows).resize(size, Image.Resampling.BICUBIC).save(buffer, kind)
    return buffer.getvalue()
