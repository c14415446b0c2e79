"""Which output of a Hugging Face encoder is a caption's embedding."""

import json
from pathlib import Path
from typing import Literal

from mode_ray.config.captions import EncoderConfig
from mode_ray.errors import UsageError

Pooling = Literal["pooler", "mean", "cls"]


def pooling_of(config: EncoderConfig, path: str) -> Pooling:
    """The configured pooling; `auto` is that of a sentence-transformers folder, else the pooler.

    Args:
        config: The encoder.
        path: Its resolved folder or hub id.

    Raises:
        UsageError: The folder asks for another pooling.
    """
    if config.pooling != "auto":
        return config.pooling
    asked = Path(path) / "1_Pooling" / "config.json"
    if not asked.is_file():
        return "pooler"
    modes = json.loads(asked.read_text())
    if modes.get("pooling_mode_mean_tokens"):
        return "mean"
    if modes.get("pooling_mode_cls_token"):
        return "cls"
    raise UsageError(f"{asked}: only mean and first-token pooling are supported; set encoder.pooling")
