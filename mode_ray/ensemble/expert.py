"""One expert of an ensemble, for those who want its embeddings alone."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from mode_ray.config.images import ImagesConfig
from mode_ray.ensemble.images import ImageInput, pil_batches
from mode_ray.errors import UsageError
from mode_ray.models.encode import Expert

IMAGES_AT_ONCE = 64
Embeddings = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class EnsembleExpert:
    """One expert, a CLIP model.

    Attributes:
        number: Its id.
        model: The loaded model; `model.folder` is its folder, `model.logit_scale` its scale.
        images: How images become pixels.
    """

    number: int
    model: Expert
    images: ImagesConfig

    def encode_image(self, images: ImageInput | Iterable[ImageInput]) -> Embeddings:
        """Unit embeddings of images, float32 [images, d].

        Raises:
            UsageError: An image is of a type that is not supported.
            DataError: An image cannot be read.
        """
        batches = prepared_batches(images, self.model, self.images)
        return stacked([self.model.encode_images(batch) for batch in batches], self.model)

    def encode_text(self, texts: str | Iterable[str]) -> Embeddings:
        """Unit embeddings of texts, float32 [texts, d].

        Raises:
            UsageError: An entry is not a text.
        """
        listed = text_list(texts, "encode_text")
        return stacked([self.model.encode_texts(listed)] if listed else [], self.model)


def prepared_batches(
    images: ImageInput | Iterable[ImageInput], model: Expert, config: ImagesConfig
) -> Iterable[torch.Tensor]:
    """Images resized and normalised for a model, float32 [b, 3, h, w]."""
    for batch in pil_batches(images, IMAGES_AT_ONCE, config):
        yield torch.stack([model.prepare(image) for image in batch])


def stacked(rows: list[Embeddings], model: Expert) -> Embeddings:
    """Batches of embeddings as one array, also where there are none."""
    return np.concatenate(rows) if rows else np.zeros((0, model.dimension), np.float32)


def text_list(texts: str | Iterable[str], name: str) -> list[str]:
    """One text or several as a list.

    Args:
        texts: The texts.
        name: Of the argument or method, for the message.

    Raises:
        UsageError: An entry is not a text.
    """
    listed = [texts] if isinstance(texts, str) else list(texts)
    for position, text in enumerate(listed):
        if not isinstance(text, str):
            raise UsageError(f"{name}: text {position} is of type {type(text).__name__}, not a text: {text!r:.80}")
    return listed
