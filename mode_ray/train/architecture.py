"""The model config that `train.model.architecture` names: open_clip's own, or one in a folder.

open_clip is not imported here, so that a wrong name is found by the driver, before any run starts.
"""

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mode_ray.errors import UsageError
from mode_ray.packaged import resolve_folder
from mode_ray.train_config import ModelConfig

CONFIG_FILE = "open_clip_config.json"
ARCHITECTURE_FIELD = "train.model.architecture"
_MAX_NAMES_SHOWN = 5


def clip_config_of(config: ModelConfig) -> Mapping[str, Any]:
    """Content of the `open_clip_config.json` that the architecture stands for.

    Raises:
        UsageError: Neither a folder with such a file nor the name of an open_clip architecture.
    """
    folder = Path(resolve_folder(config.architecture, ARCHITECTURE_FIELD))
    return _folder_config(folder) if folder.is_dir() else {"model_cfg": _named_config(config.architecture)}


def check_architecture(config: ModelConfig) -> None:
    """Find a wrong architecture or checkpoint path early.

    Raises:
        UsageError: As `clip_config_of`; or `pretrained` is a path without a file.
    """
    clip_config_of(config)
    if config.pretrained is not None and "/" in config.pretrained and not Path(config.pretrained).is_file():
        raise UsageError(f"train.model.pretrained: {config.pretrained}: no such file")


def _folder_config(folder: Path) -> Mapping[str, Any]:
    location = folder / CONFIG_FILE
    if not location.is_file():
        raise UsageError(f"{ARCHITECTURE_FIELD}: {location} does not exist; name a folder that holds one")
    try:
        config: Mapping[str, Any] = json.loads(location.read_text())
    except ValueError:
        raise UsageError(f"{ARCHITECTURE_FIELD}: {location} is not valid JSON") from None
    return config


def _named_config(name: str) -> Mapping[str, Any]:
    spec = importlib.util.find_spec("open_clip")
    if spec is None or spec.origin is None:
        raise UsageError("open_clip is not installed: pip install open_clip_torch")
    configs = {file.stem: file for file in (Path(spec.origin).parent / "model_configs").glob("*.json")}
    if name not in configs:
        near = sorted(known for known in configs if known.lower().startswith(name.lower()[:5]))[:_MAX_NAMES_SHOWN]
        hint = f"did you mean {', '.join(near)}?" if near else "such as ViT-B-16"
        raise UsageError(f"{ARCHITECTURE_FIELD}: {name}: neither a folder nor an open_clip architecture ({hint})")
    model_config: Mapping[str, Any] = json.loads(configs[name].read_text())
    return model_config
