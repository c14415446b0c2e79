"""Finds the model config that `train.model` names: open_clip's own, in a folder, or on the Hugging Face hub.

This module does not import open_clip, so that the driver can check the name before any run starts.
"""

import importlib.util
import json
import re
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from mode_ray.config.train import FOLDER_WEIGHTS, ModelConfig
from mode_ray.errors import UsageError
from mode_ray.storage import Location
from mode_ray.util.hub import hub_problem
from mode_ray.util.packages import resolve_folder

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
# Together the weights of one model, in exports of several models with one trunk.
TRUNK_FILE, HEAD_FILE = "open_clip_trunk.safetensors", "open_clip_head.safetensors"
# open_clip's names of a hub model's weights, the ones it prefers first.
HUB_WEIGHTS = (WEIGHTS_FILE, "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
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
ENCODER_CONFIG = "config.json"
"""transformers' config of a Hugging Face text tower, so that no hub is needed to build the tower."""
TEXT_FILES = (*TOKENIZER_FILES, ENCODER_CONFIG)
ARCHITECTURE_FIELD = "train.model.architecture"
PRETRAINED_FIELD = "train.model.pretrained"
IMAGE_TOWER_FIELD, TEXT_TOWER_FIELD = "train.model.towers.image", "train.model.towers.text"
HUB_PREFIX = "hf-hub:"
CHECKPOINT_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".npz", ".npy")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_MAX_NAMES_SHOWN = 4


def clip_config_of(config: ModelConfig) -> Mapping[str, Any]:
    """Content of `open_clip_config.json` for the model section.

    Raises:
        UsageError: The architecture is neither a folder with such a file nor the name of an open_clip architecture, or
            the hub has no such model.
    """
    if is_hub(config.pretrained):
        return _json_object(
            Location(str(hub_file(str(config.pretrained), CONFIG_FILE))), f"{PRETRAINED_FIELD}: {config.pretrained}"
        )
    folder = architecture_folder(config)
    return {"model_cfg": _named_config(config.architecture)} if folder is None else _folder_config(folder)


def architecture_folder(config: ModelConfig) -> Location | None:
    """The architecture's folder, or None if it is the name of an open_clip architecture.

    Raises:
        UsageError: It is a path or a URI, and there is no such folder.
    """
    folder = Location.parse(resolve_folder(config.architecture, ARCHITECTURE_FIELD))
    named = "/" in config.architecture
    if folder.is_directory():
        return folder
    if named:
        hint = near_names(config.architecture, _open_clip_configs()) or f"name one that holds an {CONFIG_FILE}"
        raise UsageError(f"{ARCHITECTURE_FIELD}: {folder}: no such folder; {hint}")
    return None


def is_hub(pretrained: str | None) -> bool:
    """Whether the weights are on the Hugging Face hub."""
    return pretrained is not None and pretrained.startswith(HUB_PREFIX)


def is_path(pretrained: str) -> bool:
    """Whether the weights are a file, rather than a tag, on the hub or in the architecture's folder."""
    if is_hub(pretrained) or pretrained == FOLDER_WEIGHTS:
        return False
    return "/" in pretrained or pretrained.endswith(CHECKPOINT_SUFFIXES)


def hub_name(pretrained: str) -> str:
    """ORG/NAME of `hf-hub:ORG/NAME`.

    Raises:
        UsageError: The value has another form.
    """
    name = pretrained.removeprefix(HUB_PREFIX)
    if not _HUB_NAME.fullmatch(name):
        raise UsageError(f"{PRETRAINED_FIELD}: {pretrained}: write {HUB_PREFIX}ORG/NAME")
    return name


def require_on_hub(pretrained: str, files: Collection[str], place: str | None = None) -> None:
    """Check that one of some files of a hub model is cached, or on the hub.

    Args:
        pretrained: `hf-hub:ORG/NAME` or ORG/NAME.
        files: Names of the files.
        place: The field and its value, for the message.

    Raises:
        UsageError: None is; the message says why and what to do.
    """
    problem = hub_problem(hub_name(pretrained), files)
    if problem is not None:
        raise UsageError(f"{place or f'{PRETRAINED_FIELD}: {pretrained}'}: {problem}")


def hub_file(pretrained: str, file: str) -> Path:
    """A file of a hub model, from the local cache or downloaded into it.

    Raises:
        UsageError: The model or file does not exist, or it is not cached and the hub cannot be reached.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError

    require_on_hub(pretrained, (file,))
    try:
        return Path(hf_hub_download(hub_name(pretrained), file))
    except (OSError, EntryNotFoundError, HFValidationError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{PRETRAINED_FIELD}: {pretrained}: {file} is not available: {reason}") from None


def model_files(folder: Location) -> list[Location]:
    """The files of a model's folder that open_clip needs. The config is last: a copy that has it is complete."""
    order = (*TEXT_FILES, WEIGHTS_FILE, CONFIG_FILE)
    return sorted((file for file in folder.files() if file.name in order), key=lambda file: order.index(file.name))


def _folder_config(folder: Location) -> Mapping[str, Any]:
    location = folder / CONFIG_FILE
    if not location.exists():
        raise UsageError(f"{ARCHITECTURE_FIELD}: {location} does not exist; name a folder that holds one")
    return _json_object(location, ARCHITECTURE_FIELD)


def _json_object(file: Location, field: str) -> Mapping[str, Any]:
    try:
        config = json.loads(file.read_text())
    except ValueError:
        raise UsageError(f"{field}: {file} is not valid JSON") from None
    except OSError as error:
        raise UsageError(f"{field}: {file} cannot be read ({' '.join(str(error).split())})") from None
    if not isinstance(config, dict) or not isinstance(config.get("model_cfg"), dict):
        raise UsageError(f"{field}: {file} is not a config of an open_clip model: it has no model_cfg")
    return config


def _named_config(name: str) -> Mapping[str, Any]:
    configs = _open_clip_configs()
    if name not in configs:
        hint = near_names(name, configs) or "such as ViT-B-16"
        raise UsageError(f"{ARCHITECTURE_FIELD}: {name}: neither a folder nor an open_clip architecture ({hint})")
    model_config: Mapping[str, Any] = json.loads(configs[name].read_text())
    return model_config


def _open_clip_configs() -> Mapping[str, Path]:
    """The config files of open_clip's architectures, by name."""
    spec = importlib.util.find_spec("open_clip")
    if spec is None or spec.origin is None:
        raise UsageError("open_clip is not installed: pip install open_clip_torch")
    return {file.stem: file for file in (Path(spec.origin).parent / "model_configs").glob("*.json")}


def near_names(name: str, known: Iterable[str]) -> str | None:
    """A question with the known names that are most like a wrong one; None if there is none like it."""
    plain = {known_name: _plain(known_name) for known_name in sorted(known)}
    # Equal but for case and punctuation first: `vitb32`, `ViT-B/32` and `ViT-B32` all mean ViT-B-32.
    equal = [known_name for known_name, letters in plain.items() if letters == _plain(name)]
    alike = get_close_matches(_plain(name), plain.values(), _MAX_NAMES_SHOWN, 0.75)
    near = equal or [known_name for letters in alike for known_name in plain if plain[known_name] == letters]
    return f"did you mean {', '.join(near[:_MAX_NAMES_SHOWN])}?" if near else None


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
