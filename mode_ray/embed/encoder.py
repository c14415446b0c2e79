"""What every caption encoder is, and how one is made from the config."""

from typing import TYPE_CHECKING, Protocol

import numpy as np

from mode_ray.config.captions import EncoderConfig, EncoderPlacement
from mode_ray.errors import DataError

if TYPE_CHECKING:
    import torch


class CaptionEncoder(Protocol):
    """A frozen language model.

    Attributes:
        name: Identity of the embedding space; a clustering only serves embeddings of the same name.
        dimension: d.
    """

    name: str
    dimension: int

    def encode(self, captions: list[str]) -> np.ndarray:
        """Embed captions.

        Returns:
            float32 [len(captions), d]; rows of unit norm, except all-zero rows where the encoder knows no word of the
            caption.
        """
        ...


def load_encoder(config: EncoderConfig, placement: EncoderPlacement, threads: int = 1) -> CaptionEncoder:
    """Load the encoder of a config.

    Raises:
        UsageError: The model cannot be found or does not fit its kind or pooling.
    """
    # Each kind pulls in a library of its own, which only its users need to load.
    if config.kind == "static":
        from mode_ray.embed.static import StaticEncoder

        return StaticEncoder(config)
    from mode_ray.embed.huggingface import HuggingFaceEncoder

    return HuggingFaceEncoder(config, placement, threads)


def encoder_name(config: EncoderConfig) -> str:
    """Identity of the embedding space that a config describes."""
    return f"{config.kind}:{config.model}:{config.pooling}:{config.max_tokens}"


def encoder_config(name: str) -> EncoderConfig:
    """The config that `encoder_name` made a name of; fields that do not decide the embedding space have defaults.

    Raises:
        DataError: The name has another form.
    """
    try:
        kind, rest = name.split(":", 1)
        model, pooling, max_tokens = rest.rsplit(":", 2)
        return EncoderConfig.model_validate(
            {"kind": kind, "model": model, "pooling": pooling, "max_tokens": int(max_tokens)}
        )
    except ValueError:
        raise DataError(f"{name!r}: not the name of a caption encoder, as KIND:MODEL:POOLING:TOKENS") from None


def unit_rows(vectors_bd: np.ndarray) -> np.ndarray:
    """Scale rows to unit norm; zero rows stay zero."""
    norms_b1 = np.linalg.norm(vectors_bd, axis=1, keepdims=True)
    scaled: np.ndarray = (vectors_bd / np.where(norms_b1 > 0, norms_b1, 1)).astype(np.float32)
    return scaled


def pick_device(name: str) -> "torch.device":
    """`auto` is CUDA where there is one."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)
