"""Load the caption encoder that a config names."""

from typing import assert_never

from mode_ray.config.captions import EncoderConfig, EncoderPlacement
from mode_ray.embed.encoder import CaptionEncoder


def load_encoder(config: EncoderConfig, placement: EncoderPlacement, threads: int = 1) -> CaptionEncoder:
    """Load the encoder of a config.

    Raises:
        UsageError: The model cannot be found, or it does not support the configured kind or pooling.
    """
    # Each kind needs a different library; only the one in use is imported.
    match config.kind:
        case "static":
            from mode_ray.embed.static import StaticEncoder

            return StaticEncoder(config)
        case "huggingface":
            from mode_ray.embed.huggingface import HuggingFaceEncoder

            return HuggingFaceEncoder(config, placement, threads)
        case _:
            assert_never(config.kind)
