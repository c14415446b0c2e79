"""CLIP models from open_clip: built from a config, loaded from and saved to expert folders.

An expert folder holds `open_clip_config.json` and `open_clip_model.safetensors`, so that open_clip itself loads it
with `local-dir:PATH`, without this package.
"""

import copy
import json
import logging
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import open_clip
import safetensors.torch
import torch

from mode_ray.errors import DataError, UsageError
from mode_ray.packaged import resolve_folder
from mode_ray.storage import Location
from mode_ray.train.architecture import ARCHITECTURE_FIELD, CONFIG_FILE, clip_config_of
from mode_ray.train_config import ModelConfig

WEIGHTS_FILE = "open_clip_model.safetensors"
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
    """

    module: torch.nn.Module
    tokenizer: Callable[[list[str]], torch.Tensor]
    train_transform: Callable[[Any], torch.Tensor]
    eval_transform: Callable[[Any], torch.Tensor]
    config: Mapping[str, Any]


def build_clip(config: ModelConfig, seed: int, *, logit_bias: bool = False) -> ClipModel:
    """Build a model: freshly initialised by `seed`, or from `pretrained`.

    Args:
        config: Architecture and weights.
        seed: Of the initialisation.
        logit_bias: Give the model SigLIP's learned bias and first scale, where its config states none.

    Raises:
        UsageError: No such architecture, folder, tag or checkpoint file.
    """
    if config.pretrained == FOLDER_WEIGHTS:
        return load_clip(Location.parse(resolve_folder(config.architecture, ARCHITECTURE_FIELD)))
    clip_config = _prepared_as_pretrained(clip_config_of(config), config)
    if logit_bias:
        clip_config = {**clip_config, "model_cfg": _SIGLIP_LOGITS | clip_config["model_cfg"]}
    torch.manual_seed(seed)
    try:
        clip = _create(clip_config)
    except _CONFIG_ERRORS as error:
        raise UsageError(f"train.model.architecture: {config.architecture}: {error}") from None
    if config.pretrained is not None:
        try:
            _load_pretrained(clip.module, config.architecture, config.pretrained)
        except (RuntimeError, OSError, UnpicklingError, safetensors.SafetensorError) as error:
            raise UsageError(f"train.model.pretrained: {config.pretrained}: {str(error).splitlines()[0]}") from None
    return clip


def _prepared_as_pretrained(clip_config: Mapping[str, Any], config: ModelConfig) -> Mapping[str, Any]:
    """The config with the image preparation of a pretrained tag: its weights know no other."""
    tag = open_clip.get_pretrained_cfg(config.architecture, config.pretrained) if config.pretrained else {}
    return (
        {**clip_config, "preprocess_cfg": {key: tag[key] for key in _PREPROCESS_KEYS if key in tag}}
        if tag
        else clip_config
    )


def _load_pretrained(module: torch.nn.Module, architecture: str, pretrained: str) -> None:
    """Load a checkpoint file, which any architecture may have, or a tag of a named architecture."""
    if Path(pretrained).is_file():
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
        clip = _create(config)
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
    (folder / WEIGHTS_FILE).write_bytes(safetensors.torch.save(tensors))
    (folder / CONFIG_FILE).write_text(json.dumps(clip.config, indent=2))


def _create(config: Mapping[str, Any]) -> ClipModel:
    with _config_folder(config) as folder:
        name = f"local-dir:{folder}"
        with _root_logger_at(logging.ERROR):  # it warns that there are no weights in the folder: as intended
            module, train_transform, eval_transform = open_clip.create_model_and_transforms(
                name, load_weights=False, pretrained_text=False, output_dict=True
            )
        tokenizer = open_clip.get_tokenizer(name)
    preprocess = {key: module.visual.preprocess_cfg[key] for key in _PREPROCESS_KEYS}
    complete = {**copy.deepcopy(dict(config)), "preprocess_cfg": preprocess}
    return ClipModel(module, tokenizer, train_transform, eval_transform, complete)


@contextmanager
def _config_folder(config: Mapping[str, Any]) -> Iterator[Path]:
    """A temporary folder that open_clip's `local-dir:` scheme understands."""
    with tempfile.TemporaryDirectory(prefix="mode-ray-clip-") as name:
        folder = Path(name)
        (folder / CONFIG_FILE).write_text(json.dumps(config))
        yield folder


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
