"""Builds open_clip models from a config, and loads and saves expert folders.

An expert folder has `open_clip_config.json`, `open_clip_model.safetensors` and, for a tokenizer or text tower of the
Hugging Face hub, the tokenizer's files and the tower's config. open_clip can load it with `local-dir:PATH`, without
this package; for such a text tower it reads the tower's config from the hub.
"""

import copy
import functools
import json
import logging
import math
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import open_clip
import safetensors.torch
import torch
from open_clip.pretrained import download_pretrained_from_hf
from open_clip.tokenizer import SimpleTokenizer

from mode_ray.config.train import FOLDER_WEIGHTS, ModelConfig
from mode_ray.errors import DataError, UsageError, first_line
from mode_ray.models.architecture import (
    ARCHITECTURE_FIELD,
    CONFIG_FILE,
    ENCODER_CONFIG,
    PRETRAINED_FIELD,
    TEXT_FILES,
    TEXT_TOWER_FIELD,
    TOKENIZER_FILES,
    WEIGHTS_FILE,
    architecture_folder,
    clip_config_of,
    hub_name,
    is_hub,
    is_path,
)
from mode_ray.models.checkpoint import NUMPY_SUFFIXES, fit_state, read_checkpoint
from mode_ray.models.drawing import WithoutDrawing
from mode_ray.models.files import local_checkpoint, model_parts
from mode_ray.models.preprocess import read_model_config
from mode_ray.models.tower_weights import load_towers
from mode_ray.storage import Location
from mode_ray.util.packages import resolve_folder

# From the SigLIP paper (arXiv 2303.15343, section 3.2): most pairs are negatives, and the initial bias reflects that.
_SIGLIP_LOGITS = {"init_logit_scale": math.log(10), "init_logit_bias": -10}
_ENCODER, _TOKENIZER = "hf_model_name", "hf_tokenizer_name"  # of open_clip's text_cfg
_PREPROCESS_KEYS = ("mean", "std", "interpolation", "resize_mode")
# open_clip raises these for an invalid config: it validates little itself.
_CONFIG_ERRORS = (ValueError, TypeError, KeyError, RuntimeError, AssertionError)


Tokenizer = Callable[[list[str]], torch.Tensor]


@dataclass(frozen=True)
class ClipModel:
    """A CLIP model with its tokenizer, transforms and config.

    Attributes:
        module: The open_clip model; its forward returns a dict of features and logit scale.
        tokenizer: Texts to int64 [b, context].
        train_transform: PIL image to float32 [3, h, w], with random crops.
        eval_transform: The same without randomness.
        config: Content of `open_clip_config.json`.
        text_files: Contents by file name, for a tokenizer or a text tower of the hub; empty for open_clip's own.
    """

    module: torch.nn.Module
    tokenizer: Tokenizer
    train_transform: Callable[[Any], torch.Tensor]
    eval_transform: Callable[[Any], torch.Tensor]
    config: Mapping[str, Any]
    text_files: Mapping[str, bytes] = field(default_factory=dict)


def build_clip(config: ModelConfig, seed: int, *, logit_bias: bool = False, embed_factor: int = 1) -> ClipModel:
    """Build a model: randomly initialised, or with the weights of `pretrained`.

    Args:
        config: Architecture and weights.
        seed: Seed of the initialisation.
        logit_bias: Give the model SigLIP's learned bias and initial scale, unless its config has its own.
        embed_factor: Multiply the dimension of the embeddings by this.

    Raises:
        UsageError: The architecture, folder, hub model, tag or checkpoint file does not exist.
    """
    if config.pretrained == FOLDER_WEIGHTS:
        return load_clip(Location.parse(resolve_folder(config.architecture, ARCHITECTURE_FIELD)))
    clip_config = described_clip(config, logit_bias=logit_bias)
    if embed_factor != 1:
        shape = clip_config["model_cfg"]
        clip_config = {**clip_config, "model_cfg": {**shape, "embed_dim": embed_factor * shape["embed_dim"]}}
    torch.manual_seed(seed)
    with _config_errors_named(config):
        clip = _create(clip_config, _text_files(config))
    if config.pretrained is not None:
        _load_pretrained(clip.module, config.architecture, config.pretrained)
    load_towers(clip.module, config.towers)
    return clip


def described_clip(config: ModelConfig, *, logit_bias: bool) -> Mapping[str, Any]:
    """Content of `open_clip_config.json` of the model to build; the arguments are those of `build_clip`.

    Raises:
        UsageError: As `clip_config_of`; or the weights of the tag are not for this architecture.
    """
    clip_config = _prepared_as_pretrained(clip_config_of(config), config)
    if logit_bias:
        return {**clip_config, "model_cfg": _SIGLIP_LOGITS | clip_config["model_cfg"]}
    return clip_config


def empty_clip(config: ModelConfig, *, logit_bias: bool) -> torch.nn.Module:
    """The module of `build_clip` with the names and shapes of its weights, but without memory for them.

    Raises:
        UsageError: The architecture cannot be built.
    """
    with _config_errors_named(config), tempfile.TemporaryDirectory(prefix="mode-ray-clip-") as temporary:
        _write_folder(Location.parse(temporary), described_clip(config, logit_bias=logit_bias), _text_files(config))
        with torch.device("meta"), _root_logger_at(logging.ERROR):
            module: torch.nn.Module = open_clip.create_model(
                f"local-dir:{temporary}", load_weights=False, pretrained_text=False, device="meta"
            )
    return module


@contextmanager
def _config_errors_named(config: ModelConfig) -> Iterator[None]:
    """Report the errors that open_clip raises for a wrong config by the field that named it."""
    try:
        yield
    except (*_CONFIG_ERRORS, OSError) as error:
        hub = is_hub(config.pretrained)
        named = (PRETRAINED_FIELD, config.pretrained) if hub else (ARCHITECTURE_FIELD, config.architecture)
        raise UsageError(f"{named[0]}: {named[1]}: {first_line(error)}") from None


def _prepared_as_pretrained(clip_config: Mapping[str, Any], config: ModelConfig) -> Mapping[str, Any]:
    """The config with the image preprocessing that the weights of a pretrained tag were trained with.

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
    """Load the weights of a hub model, of a checkpoint file, or of a tag of a named architecture.

    open_clip downloads tags and hub models, and converts the weights of big_vision.
    """
    try:
        if is_hub(pretrained):
            open_clip.load_checkpoint(module, download_pretrained_from_hf(hub_name(pretrained)))
        elif not is_path(pretrained):
            module.load_state_dict(open_clip.create_model(architecture, pretrained=pretrained).state_dict())
        else:
            with local_checkpoint(pretrained) as file:
                if file.suffix in NUMPY_SUFFIXES:
                    open_clip.load_checkpoint(module, str(file))
                else:
                    module.load_state_dict(fit_state(module, read_checkpoint(file, pretrained), pretrained))
    except (*_CONFIG_ERRORS, OSError) as error:
        raise UsageError(f"{PRETRAINED_FIELD}: {pretrained}: {first_line(error)}") from None


def load_clip(folder: Location) -> ClipModel:
    """Load an expert folder, or a head beside its trunk.

    Raises:
        DataError: The folder is missing, incomplete or damaged; names the file.
    """
    parts = model_parts(folder)
    config_file = parts.folder / CONFIG_FILE
    for file in (config_file, *parts.weights):
        if not file.exists():
            raise DataError(f"{file}: missing; the model's training is not finished, or this is not a model")
    try:
        config = json.loads(config_file.read_text())
    except ValueError:
        raise DataError(f"{config_file}: not valid JSON; train or copy this model again") from None
    try:
        with WithoutDrawing():
            clip = _create(config, _read_text_files(parts.folder))
    except _CONFIG_ERRORS as error:
        raise DataError(
            f"{config_file}: not a config of an open_clip model ({error}); train or copy this model again"
        ) from None
    state: dict[str, torch.Tensor] = {}
    try:
        for file in parts.weights:
            state |= safetensors.torch.load(file.read_bytes())
        clip.module.load_state_dict(state)
    except (safetensors.SafetensorError, RuntimeError) as error:
        reason = first_line(error)
        raise DataError(f"{file}: damaged, or from another model ({reason}); train or copy it again") from None
    return clip


def load_tokenizer(folder: Location) -> Tokenizer:
    """The tokenizer of an expert folder, without the model.

    Raises:
        DataError: The config is missing, or is not one of an open_clip model.
    """
    config = read_model_config(folder)
    if not config["model_cfg"]["text_cfg"].get(_TOKENIZER):
        return cast(Tokenizer, _own_tokenizer(config["model_cfg"]["text_cfg"]))
    with tempfile.TemporaryDirectory(prefix="mode-ray-tokenizer-") as temporary:
        files = {CONFIG_FILE: json.dumps(config).encode(), **_read_text_files(folder)}
        for name, data in files.items():
            (Location.parse(temporary) / name).write_bytes(data)
        tokenizer: Tokenizer = open_clip.get_tokenizer(f"local-dir:{temporary}")
    return tokenizer


def save_clip(folder: Location, clip: ClipModel, weights: Mapping[str, torch.Tensor] | None = None) -> None:
    """Write an expert folder. The config is written last: a folder that has it is complete.

    `weights` replaces the weights of `clip.module`, which may be sharded.
    """
    state = clip.module.state_dict() if weights is None else weights
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    for name, data in clip.text_files.items():
        (folder / name).write_bytes(data)
    (folder / WEIGHTS_FILE).write_bytes(safetensors.torch.save(tensors))
    (folder / CONFIG_FILE).write_text(json.dumps(clip.config, indent=2))


def _create(config: Mapping[str, Any], text_files: Mapping[str, bytes]) -> ClipModel:
    with tempfile.TemporaryDirectory(prefix="mode-ray-clip-") as temporary:
        # A folder for open_clip's `local-dir:` scheme.
        folder = Location.parse(temporary)
        config = _write_folder(folder, config, text_files)
        name = f"local-dir:{temporary}"
        with _root_logger_at(logging.ERROR):  # open_clip warns that the folder has no weights, which is intended
            module, train_transform, eval_transform = open_clip.create_model_and_transforms(
                name, load_weights=False, pretrained_text=False, output_dict=True
            )
        text_config = config["model_cfg"]["text_cfg"]
        hub_tokenizer = text_config.get(_TOKENIZER)
        if hub_tokenizer and not any((folder / file).exists() for file in TOKENIZER_FILES):
            _fetch_tokenizer(hub_tokenizer, temporary)
        if text_config.get(_ENCODER) and not (folder / ENCODER_CONFIG).exists():
            (folder / ENCODER_CONFIG).write_text(module.text.config.to_json_string())
        tokenizer = open_clip.get_tokenizer(name) if hub_tokenizer else _own_tokenizer(text_config)
        files = _read_text_files(folder)
    preprocess = {key: module.visual.preprocess_cfg[key] for key in _PREPROCESS_KEYS}
    complete = {**copy.deepcopy(dict(config)), "preprocess_cfg": preprocess}
    return ClipModel(module, tokenizer, train_transform, eval_transform, complete, files)


def _write_folder(folder: Location, config: Mapping[str, Any], text_files: Mapping[str, bytes]) -> Mapping[str, Any]:
    """Write a folder that open_clip can build a model from, without weights. Returns the config to store."""
    for file, data in text_files.items():
        (folder / file).write_bytes(data)
    built, stored = _with_text_tower(config, folder)
    (folder / CONFIG_FILE).write_text(json.dumps(built))
    return stored


def _text_files(config: ModelConfig) -> dict[str, bytes]:
    """Tokenizer and config of the text tower, from the architecture's folder or the tower's."""
    folder = None if is_hub(config.pretrained) else architecture_folder(config)
    files = {} if folder is None else _read_text_files(folder)
    if config.towers.text is not None:
        files = _read_text_files(Location.parse(resolve_folder(config.towers.text, TEXT_TOWER_FIELD))) | files
    return files


def _with_text_tower(config: Mapping[str, Any], folder: Location) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The config to build a model with, and the config to store.

    open_clip takes the name of a Hugging Face text tower from the hub, or as a folder. A stored config must not name a
    folder of this machine. The tower is built from the config in `folder`, if there is one.
    """
    text = dict(config["model_cfg"]["text_cfg"])
    name = text.get(_ENCODER)
    if name is None:
        return config, config
    if Path(name).is_dir():
        for file, data in _read_text_files(Location.parse(name)).items():
            if not (folder / file).exists():
                (folder / file).write_bytes(data)
        text |= {key: _public_name(folder, name) for key in (_ENCODER, _TOKENIZER) if key in text}
    stored = _with_text(config, text)
    local = (folder / ENCODER_CONFIG).exists()
    return (_with_text(config, {**text, _ENCODER: folder.path}) if local else stored), stored


def _public_name(folder: Location, name: str) -> str:
    """The hub's name of an encoder that was given as a folder, from its config; else the folder's own name."""
    origin = json.loads((folder / ENCODER_CONFIG).read_text()).get("_name_or_path", "")
    return origin if re.fullmatch(r"[\w.-]+/[\w.-]+", origin) else Path(name).name


def _with_text(config: Mapping[str, Any], text: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**config, "model_cfg": {**config["model_cfg"], "text_cfg": text}}


def _own_tokenizer(text_config: Mapping[str, Any]) -> SimpleTokenizer:
    """open_clip's own tokenizer. All models of a process share its tables, but not its cache of words."""
    tokenizer = copy.copy(_tokenizer_with_tables(json.dumps(text_config, sort_keys=True)))
    tokenizer.cache = dict(tokenizer.cache)
    return tokenizer


@functools.lru_cache(maxsize=4)
def _tokenizer_with_tables(text_config: str) -> SimpleTokenizer:
    """Cached because the tables take 25 MB, and reading them takes longer than building a small model."""
    with tempfile.TemporaryDirectory(prefix="mode-ray-tokenizer-") as temporary:
        config = {"model_cfg": {"text_cfg": json.loads(text_config)}}
        (Path(temporary) / CONFIG_FILE).write_text(json.dumps(config))
        return open_clip.get_tokenizer(f"local-dir:{temporary}")


def _fetch_tokenizer(name: str, folder: str) -> None:
    """Write the files of a hub tokenizer to a folder, the only place where `local-dir:` looks for them."""
    from transformers import AutoTokenizer  # slow to import, and most models do not need it

    AutoTokenizer.from_pretrained(name).save_pretrained(folder)


def _read_text_files(folder: Location) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.files() if file.name in TEXT_FILES}


@contextmanager
def _root_logger_at(level: int) -> Iterator[None]:
    """Temporarily set the level of the root logger, which open_clip logs to."""
    logger = logging.getLogger()
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
