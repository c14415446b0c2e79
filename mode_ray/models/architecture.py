"""Finds the model config that `train.model` names: open_clip's own, in a folder, or on the Hugging Face hub.

This module does not import open_clip, so that the driver can check the name before any run starts.
"""

import importlib.util
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mode_ray.config.train import ModelConfig
from mode_ray.errors import UsageError
from mode_ray.storage import Location
from mode_ray.util.packages import resolve_folder

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
# The files that transformers writes for tokenizers of any kind. open_clip's `local-dir:` reads them beside the config.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
)
ARCHITECTURE_FIELD = "train.model.architecture"
PRETRAINED_FIELD = "train.model.pretrained"
HUB_PREFIX = "hf-hub:"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_MAX_NAMES_SHOWN = 5


def clip_config_of(config: ModelConfig) -> Mapping[str, Any]:
    """Content of `open_clip_config.json` for the model section.

    Raises:
        UsageError: The architecture is neither a folder with such a file nor the name of an open_clip architecture, or
            the hub has no such model.
    """
    if is_hub(config.pretrained):
        return _json_object(hub_file(str(config.pretrained), CONFIG_FILE), f"{PRETRAINED_FIELD}: {config.pretrained}")
    folder = architecture_folder(config)
    return {"model_cfg": _named_config(config.architecture)} if folder is None else _folder_config(folder)


def architecture_folder(config: ModelConfig) -> Path | None:
    """The architecture's folder, or None if it is not a folder."""
    folder = Path(resolve_folder(config.architecture, ARCHITECTURE_FIELD))
    return folder if folder.is_dir() else None


def is_hub(pretrained: str | None) -> bool:
    """Whether the weights are on the Hugging Face hub."""
    return pretrained is not None and pretrained.startswith(HUB_PREFIX)


def check_architecture(config: ModelConfig) -> None:
    """Check architecture, hub id and checkpoint path before training.

    Raises:
        UsageError: As for `clip_config_of`; or `pretrained` is a path without a file.
    """
    clip_config_of(config)
    pretrained = config.pretrained
    if pretrained is not None and not is_hub(pretrained) and "/" in pretrained and not Path(pretrained).is_file():
        raise UsageError(f"{PRETRAINED_FIELD}: {pretrained}: no such file")


def hub_name(pretrained: str) -> str:
    """ORG/NAME of `hf-hub:ORG/NAME`.

    Raises:
        UsageError: The value has another form.
    """
    name = pretrained.removeprefix(HUB_PREFIX)
    if not _HUB_NAME.fullmatch(name):
        raise UsageError(f"{PRETRAINED_FIELD}: {pretrained}: write {HUB_PREFIX}ORG/NAME")
    return name


def hub_file(pretrained: str, file: str) -> Path:
    """A file of a hub model, from the local cache or downloaded into it.

    Raises:
        UsageError: The model or file does not exist, or it is not cached and the hub cannot be reached.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError

    try:
        return Path(hf_hub_download(hub_name(pretrained), file))
    except (OSError, EntryNotFoundError, HFValidationError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{PRETRAINED_FIELD}: {pretrained}: {file} is not available: {reason}") from None


def model_files(folder: Location) -> list[Location]:
    """The files of a model's folder that open_clip needs. The config is last: a copy that has it is complete."""
    order = (*TOKENIZER_FILES, WEIGHTS_FILE, CONFIG_FILE)
    return sorted((file for file in folder.files() if file.name in order), key=lambda file: order.index(file.name))


def _folder_config(folder: Path) -> Mapping[str, Any]:
    location = folder / CONFIG_FILE
    if not location.is_file():
        raise UsageError(f"{ARCHITECTURE_FIELD}: {location} does not exist; name a folder that holds one")
    return _json_object(location, ARCHITECTURE_FIELD)


def _json_object(file: Path, field: str) -> Mapping[str, Any]:
    try:
        config = json.loads(file.read_text())
    except ValueError:
        raise UsageError(f"{field}: {file} is not valid JSON") from None
    if not isinstance(config, dict) or not isinstance(config.get("model_cfg"), dict):
        raise UsageError(f"{field}: {file} is not a config of an open_clip model: it has no model_cfg")
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
