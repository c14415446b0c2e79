"""CLIP models from open_clip: built from a config, loaded from and saved to expert folders.

An expert folder holds `open_clip_config.json`, `open_clip_model.safetensors` and, where the tokenizer is one of the
Hugging Face hub, its files. So open_clip itself loads it with `local-dir:PATH`, without this package.
"""

import copy
import functools
import json
import logging
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import open_clip
import safetensors.torch
import torch
from open_clip.pretrained import download_pretrained_from_hf
from open_clip.tokenizer import SimpleTokenizer

from mode_ray.config.train import ModelConfig
from mode_ray.errors import DataError, UsageError
from mode_ray.models.architecture import (
    ARCHITECTURE_FIELD,
    CONFIG_FILE,
    PRETRAINED_FIELD,
    TOKENIZER_FILES,
    WEIGHTS_FILE,
    architecture_folder,
    clip_config_of,
    hub_name,
    is_hub,
)
from mode_ray.storage import Location
from mode_ray.util.packages import resolve_folder

FOLDER_WEIGHTS = "folder"
# Of the SigLIP paper (arXiv 2303.15343, section 3.2): most pairs are negatives, which the bias says from the start.
_SIGLIP_LOGITS = {"init_logit_scale": math.log(10), "init_logit_bias": -10}
_PREPROCESS_KEYS = ("mean", "std", "interpolation", "resize_mode")
# What open_clip raises for a config that is not one: it checks little of its own.
_CONFIG_ERRORS = (ValueError, TypeError, KeyError, RuntimeError, AssertionError)


@dataclass(frozen=True)
class ClipModel:
    """A CLIP model with what belongs to it.

    Attributes:
        module: The open_clip model; its forward returns a dict of features and logit scale.
        tokenizer: Texts to int64 [b, context].
        train_transform: PIL image to float32 [3, h, w], with random crops.
        eval_transform: The same without randomness.
        config: Content of `open_clip_config.json`.
        tokenizer_files: Contents by name, for a tokenizer of the hub; empty for open_clip's own.
    """

    module: torch.nn.Module
    tokenizer: Callable[[list[str]], torch.Tensor]
    train_transform: Callable[[Any], torch.Tensor]
    eval_transform: Callable[[Any], torch.Tensor]
    config: Mapping[str, Any]
    tokenizer_files: Mapping[str, bytes] = field(default_factory=dict)


def build_clip(config: ModelConfig, seed: int, *, logit_bias: bool = False) -> ClipModel:
    """Build a model: freshly initialised by `seed`, or from `pretrained`.

    Args:
        config: Architecture and weights.
        seed: Of the initialisation.
        logit_bias: Give the model SigLIP's learned bias and first scale, where its config states none.

    Raises:
        UsageError: No such architecture, folder, hub model, tag or checkpoint file.
    """
    if config.pretrained == FOLDER_WEIGHTS:
        return load_clip(Location.parse(resolve_folder(config.architecture, ARCHITECTURE_FIELD)))
    clip_config = _prepared_as_pretrained(clip_config_of(config), config)
    if logit_bias:
        clip_config = {**clip_config, "model_cfg": _SIGLIP_LOGITS | clip_config["model_cfg"]}
    folder = None if is_hub(config.pretrained) else architecture_folder(config)
    files = {} if folder is None else _read_tokenizer_files(Location.parse(str(folder)))
    torch.manual_seed(seed)
    try:
        clip = _create(clip_config, files)
    except (*_CONFIG_ERRORS, OSError) as error:
        hub = is_hub(config.pretrained)
        named = (PRETRAINED_FIELD, config.pretrained) if hub else (ARCHITECTURE_FIELD, config.architecture)
        raise UsageError(f"{named[0]}: {named[1]}: {_first_line(error)}") from None
    if config.pretrained is not None:
        try:
            _load_pretrained(clip.module, config.architecture, config.pretrained)
        except (RuntimeError, OSError, UnpicklingError, safetensors.SafetensorError) as error:
            raise UsageError(f"{PRETRAINED_FIELD}: {config.pretrained}: {_first_line(error)}") from None
    return clip


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _prepared_as_pretrained(clip_config: Mapping[str, Any], config: ModelConfig) -> Mapping[str, Any]:
    """The config with the image preparation of a pretrained tag: its weights know no other.

    Raises:
        UsageError: The tag's weights were trained with another activation than the architecture's.
    """
    tag = open_clip.get_pretrained_cfg(config.architecture, config.pretrained) if config.pretrained else {}
    if not tag:
        return clip_config
    if tag.get("quick_gelu", False) and not clip_config["model_cfg"].get("quick_gelu", False):
        raise UsageError(
            f"{PRETRAINED_FIELD}: {config.pretrained}: its weights were trained with QuickGELU: set "
            f"{ARCHITECTURE_FIELD} to {config.architecture}-quickgelu"
        )
    return {**clip_config, "preprocess_cfg": {key: tag[key] for key in _PREPROCESS_KEYS if key in tag}}


def _load_pretrained(module: torch.nn.Module, architecture: str, pretrained: str) -> None:
    """Load a checkpoint file, which any architecture may have, a hub model, or a tag of a named architecture.

    open_clip reads pickled checkpoints as weights only, and converts the formats that it knows.
    """
    if is_hub(pretrained):
        open_clip.load_checkpoint(module, download_pretrained_from_hf(hub_name(pretrained)))
    elif Path(pretrained).is_file():
        open_clip.load_checkpoint(module, pretrained)
    else:
        module.load_state_dict(open_clip.create_model(architecture, pretrained=pretrained).state_dict())


def load_clip(folder: Location) -> ClipModel:
    """Load an expert folder.

    Raises:
        DataError: The folder is missing, incomplete or damaged; names the file.
    """
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).exists():
            raise DataError(
                f"{folder / name}: missing; the model was not trained to its end, or the folder is no model"
            )
    try:
        config = json.loads((folder / CONFIG_FILE).read_text())
    except ValueError:
        raise DataError(f"{folder / CONFIG_FILE}: not valid JSON; train or copy this model again") from None
    try:
        clip = _create(config, _read_tokenizer_files(folder))
    except _CONFIG_ERRORS as error:
        raise DataError(
            f"{folder / CONFIG_FILE}: not a config of an open_clip model ({error}); train or copy this model again"
        ) from None
    try:
        clip.module.load_state_dict(safetensors.torch.load((folder / WEIGHTS_FILE).read_bytes()))
    except (safetensors.SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"{folder / WEIGHTS_FILE}: damaged, or of another model ({reason}); train or copy it again"
        ) from None
    return clip


def save_clip(folder: Location, clip: ClipModel, weights: Mapping[str, torch.Tensor] | None = None) -> None:
    """Write an expert folder; the config last, so that a folder with a config is whole.

    Args:
        folder: Where to.
        clip: The model.
        weights: Its weights where they are not those of `clip.module` (as when that is sharded).
    """
    state = clip.module.state_dict() if weights is None else weights
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    for name, data in clip.tokenizer_files.items():
        (folder / name).write_bytes(data)
    (folder / WEIGHTS_FILE).write_bytes(safetensors.torch.save(tensors))
    (folder / CONFIG_FILE).write_text(json.dumps(clip.config, indent=2))


def _create(config: Mapping[str, Any], tokenizer_files: Mapping[str, bytes]) -> ClipModel:
    with tempfile.TemporaryDirectory(prefix="mode-ray-clip-") as temporary:
        # A folder that open_clip's `local-dir:` scheme understands.
        folder = Location.parse(temporary)
        (folder / CONFIG_FILE).write_text(json.dumps(config))
        for file, data in tokenizer_files.items():
            (folder / file).write_bytes(data)
        name = f"local-dir:{temporary}"
        with _root_logger_at(logging.ERROR):  # it warns that there are no weights in the folder: as intended
            module, train_transform, eval_transform = open_clip.create_model_and_transforms(
                name, load_weights=False, pretrained_text=False, output_dict=True
            )
        text_config = config["model_cfg"]["text_cfg"]
        hub_tokenizer = text_config.get("hf_tokenizer_name")
        if hub_tokenizer and not tokenizer_files:
            _fetch_tokenizer(hub_tokenizer, temporary)
        tokenizer = open_clip.get_tokenizer(name) if hub_tokenizer else _own_tokenizer(text_config)
        files = _read_tokenizer_files(folder)
    preprocess = {key: module.visual.preprocess_cfg[key] for key in _PREPROCESS_KEYS}
    complete = {**copy.deepcopy(dict(config)), "preprocess_cfg": preprocess}
    return ClipModel(module, tokenizer, train_transform, eval_transform, complete, files)


def _own_tokenizer(text_config: Mapping[str, Any]) -> SimpleTokenizer:
    """open_clip's own tokenizer: its tables are shared by all models of a process, its memory of words is not."""
    tokenizer = copy.copy(_tokenizer_with_tables(json.dumps(text_config, sort_keys=True)))
    tokenizer.cache = dict(tokenizer.cache)
    return tokenizer


@functools.lru_cache(maxsize=4)
def _tokenizer_with_tables(text_config: str) -> SimpleTokenizer:
    """The tables take 25 MB, and to read them takes longer than to build a small model."""
    with tempfile.TemporaryDirectory(prefix="mode-ray-tokenizer-") as temporary:
        config = {"model_cfg": {"text_cfg": json.loads(text_config)}}
        (Path(temporary) / CONFIG_FILE).write_text(json.dumps(config))
        return open_clip.get_tokenizer(f"local-dir:{temporary}")


def _fetch_tokenizer(name: str, folder: str) -> None:
    """Put the files of a hub tokenizer into a folder: `local-dir:` reads them from there only."""
    from transformers import AutoTokenizer  # slow to import, and most models do without

    AutoTokenizer.from_pretrained(name).save_pretrained(folder)


def _read_tokenizer_files(folder: Location) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.files() if file.name in TOKENIZER_FILES}


@contextmanager
def _root_logger_at(level: int) -> Iterator[None]:
    """Let only messages of a level and above through to open_clip's logger, the root, for a while."""
    logger = logging.getLogger()
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
