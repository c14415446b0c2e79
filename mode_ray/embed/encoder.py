"""The interface of caption encoders, the names of their embedding spaces, and helpers that encoders share."""

from typing import Protocol

import numpy as np

from mode_ray.config.captions import EncoderConfig
from mode_ray.errors import DataError

_INT8 = "int8"


class CaptionEncoder(Protocol):
    """A frozen language model.

    Attributes:
        name: Identity of the embedding space. A clustering accepts only embeddings of the same name.
        dimension: d.
    """

    name: str
    dimension: int

    def encode(self, captions: list[str]) -> np.ndarray:
        """Embed captions.

        Returns:
            float32 [len(captions), d]. Rows have unit norm; a caption without a known word gives an all-zero row.
        """
        ...


def encoder_name(config: EncoderConfig) -> str:
    """Identity of the embedding space that a config describes.

    float32, bfloat16 and float16 share a space: the lowest cosine between bfloat16 and float32 was 0.99996 in
    benchmarks/embed.py. int8 has its own: its lowest was 0.996.
    """
    rounded = f":{_INT8}" if config.dtype == _INT8 else ""
    return f"{config.kind}:{config.model}:{config.pooling}:{config.max_tokens}{rounded}"


def encoder_config(name: str) -> EncoderConfig:
    """The inverse of `encoder_name`; fields that do not affect the embedding space have their defaults.

    Raises:
        DataError: The name has another form.
    """
    try:
        kind, rest = name.removesuffix(f":{_INT8}").split(":", 1)
        model, pooling, max_tokens = rest.rsplit(":", 2)
        dtype = {"dtype": _INT8} if name.endswith(f":{_INT8}") else {}
        return EncoderConfig.model_validate(
            {"kind": kind, "model": model, "pooling": pooling, "max_tokens": int(max_tokens), **dtype}
        )
    except ValueError:
        raise DataError(f"{name!r}: not the name of a caption encoder (KIND:MODEL:POOLING:TOKENS[:int8])") from None


def unit_rows(vectors_bd: np.ndarray) -> np.ndarray:
    """Scale rows to unit norm; zero rows stay zero."""
    norms_b1 = np.linalg.norm(vectors_bd, axis=1, keepdims=True)
    scaled: np.ndarray = (vectors_bd / np.where(norms_b1 > 0, norms_b1, 1)).astype(np.float32)
    return scaled
