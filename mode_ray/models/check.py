"""Checks `train.model` before the first stage: architecture, names and shapes of its weights, and what is locked.

Weights are read in a process of its own, because torch and open_clip take memory that the driver would keep. The
model is built without memory for its weights, and a checkpoint stays in its file.
"""

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from urllib.request import Request, urlopen

from mode_ray.config.train import FOLDER_WEIGHTS, LockConfig, ModelConfig, TowersConfig, TrainConfig
from mode_ray.errors import UsageError
from mode_ray.models.architecture import (
    ARCHITECTURE_FIELD,
    ENCODER_CONFIG,
    HUB_WEIGHTS,
    IMAGE_TOWER_FIELD,
    PRETRAINED_FIELD,
    TEXT_TOWER_FIELD,
    TOKENIZER_FILES,
    architecture_folder,
    clip_config_of,
    is_hub,
    is_path,
    near_names,
    require_on_hub,
)
from mode_ray.models.files import checkpoint_location, find_problem, local_checkpoint
from mode_ray.storage import Location
from mode_ray.util.garbage import run_without_collections
from mode_ray.util.hub import hub_problem
from mode_ray.util.packages import resolve_file, resolve_folder

_TIMEOUT_SECONDS = 5.0


def check_architecture(config: ModelConfig) -> None:
    """Check architecture and hub id, and that a folder's weights are complete; torch is not imported.

    Raises:
        UsageError: As for `clip_config_of`; or the folder or the hub has no complete weights, or the text tower or
            tokenizer that the architecture names cannot be had.
    """
    _check_parts(config)
    if config.pretrained == FOLDER_WEIGHTS:
        folder = architecture_folder(config)
        if folder is None:
            raise UsageError(
                f"{PRETRAINED_FIELD}: {FOLDER_WEIGHTS} means the weights in the architecture's folder, but "
                f"{ARCHITECTURE_FIELD}: {config.architecture} is no folder; set it to the model's folder"
            )
        problem = find_problem(folder)
        if problem is not None:
            raise UsageError(f"{PRETRAINED_FIELD}: {FOLDER_WEIGHTS}: {problem}")
    elif config.pretrained is not None and is_hub(config.pretrained):
        require_on_hub(config.pretrained, HUB_WEIGHTS)


def _check_parts(config: ModelConfig) -> None:
    """Check that the model's config has its parts, and that those on the hub can be had."""
    hub = is_hub(config.pretrained)
    place = f"{PRETRAINED_FIELD}: {config.pretrained}" if hub else f"{ARCHITECTURE_FIELD}: {config.architecture}"
    model = clip_config_of(config)["model_cfg"]
    missing = [name for name in ("embed_dim", "vision_cfg", "text_cfg") if name not in model]
    if missing:
        raise UsageError(
            f"{place}: model_cfg has no {' and no '.join(missing)}, so it is no config of an open_clip model"
        )
    text = model["text_cfg"]
    folder = None if hub else architecture_folder(config)
    held = set() if folder is None else {file.name for file in folder.files()}
    if config.towers.text is not None:
        held |= {file.name for file in Location.parse(resolve_folder(config.towers.text, TEXT_TOWER_FIELD)).files()}
    if config.towers.image is not None:
        resolve_file(config.towers.image, IMAGE_TOWER_FIELD)
    tower = None if ENCODER_CONFIG in held else text.get("hf_model_name")
    tokenizer = None if held.intersection(TOKENIZER_FILES) else text.get("hf_tokenizer_name")
    for name, files in ((tower, ("config.json",)), (tokenizer, TOKENIZER_FILES)):
        problem = None if name is None or Path(name).is_dir() else hub_problem(name, files)
        if problem is not None:
            raise UsageError(f"{place}: it needs {name} of the Hugging Face hub: {problem}")


def check_model(config: TrainConfig) -> None:
    """Check everything that the config says of the model to start from.

    Raises:
        UsageError: As `check_architecture`; or the tag or the checkpoint does not exist, is damaged, or is of another
            model, as are the weights of a tower. The message names the first key or shape that differs. Or a tower
            cannot be locked as the config says, or has no trunk whose features could be stored.
    """
    check_architecture(config.model)
    if not (_names_checkpoint(config.model) or _has_parts(config.model) or config.data.mode == "features"):
        return
    for name, field in _checkpoint_files(config.model):
        checkpoint_location(name, field)  # before the process below, which takes seconds to import open_clip
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    asked = {
        "model": config.model.model_dump(),
        "logit_bias": config.loss.kind == "siglip",
        "features": config.data.mode == "features",
    }
    command = [sys.executable, "-m", __name__]
    done = subprocess.run(
        command, input=json.dumps(asked), env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode == UsageError.exit_code and done.stdout:
        raise UsageError(done.stdout)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UsageError(f"train.model: the check of the model's weights ended early ({last})")


def _names_checkpoint(config: ModelConfig) -> bool:
    """Whether `pretrained` is a tag or a file, and not a folder that `check_architecture` has checked."""
    return config.pretrained not in (None, FOLDER_WEIGHTS) and not is_hub(config.pretrained)


def _checkpoint_files(config: ModelConfig) -> Iterator[tuple[str, str]]:
    """The files with weights that a config names, and their fields."""
    if _names_checkpoint(config) and is_path(str(config.pretrained)):
        yield str(config.pretrained), PRETRAINED_FIELD
    if config.towers.image is not None:
        yield resolve_file(config.towers.image, IMAGE_TOWER_FIELD), IMAGE_TOWER_FIELD


def _has_parts(config: ModelConfig) -> bool:
    """Whether towers have weights of their own, or locks."""
    return config.towers != TowersConfig() or config.lock != LockConfig()


def _check_parts_of_model(config: ModelConfig, *, logit_bias: bool, features: bool = False) -> None:
    """Check the weights of single towers, the locks and, for features, the trunks; imports torch."""
    from mode_ray.models.clip import empty_clip
    from mode_ray.models.locking import lock_towers
    from mode_ray.models.tower_weights import load_towers
    from mode_ray.models.trunks import divide_towers

    module = empty_clip(config, logit_bias=logit_bias)
    with warnings.catch_warnings():
        # Only names and shapes are checked: torch warns that the module has no memory to copy the weights to.
        warnings.filterwarnings("ignore", message=".*which is a no-op")
        load_towers(module, config.towers)
    lock_towers(module, config.lock)
    if features:
        divide_towers(module)


def _check_checkpoint(config: ModelConfig, *, logit_bias: bool) -> None:
    """Check a tag or a checkpoint file; imports torch."""
    from mode_ray.models.checkpoint import (
        NUMPY_SUFFIXES,
        fit_state,
        read_checkpoint,
        require_arrays,
    )
    from mode_ray.models.clip import described_clip, empty_clip

    pretrained = str(config.pretrained)
    if not is_path(pretrained):
        _check_tag(config.architecture, pretrained)
        described_clip(config, logit_bias=logit_bias)  # refuses a tag of another activation
        return
    with local_checkpoint(pretrained) as file:
        if file.suffix in NUMPY_SUFFIXES:
            require_arrays(file, pretrained)
        else:
            state = read_checkpoint(file, pretrained)
            fit_state(empty_clip(config, logit_bias=logit_bias), state, pretrained)


def _check_tag(architecture: str, tag: str) -> None:
    import open_clip

    place = f"{PRETRAINED_FIELD}: {tag}"
    found = open_clip.get_pretrained_cfg(architecture, tag)
    if not found:
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        hint = near_names(tag, tags) or (f"its tags: {', '.join(tags)}" if tags else "it has no tags")
        raise UsageError(f"{place}: neither a file nor a tag of the architecture {architecture} ({hint})")
    if found.get("hf_hub"):
        repository, _, file = found["hf_hub"].rpartition("/")
        require_on_hub(repository, (file, file.rsplit(".", 1)[0] + ".safetensors") if file else HUB_WEIGHTS, place)
    elif not (Path.home() / ".cache/clip" / PurePosixPath(found["url"]).name).is_file():
        try:
            urlopen(Request(found["url"], method="HEAD"), timeout=_TIMEOUT_SECONDS).close()  # noqa: S310  (open_clip names the URL)
        except OSError as error:
            raise UsageError(f"{place}: not downloaded yet, and {found['url']} cannot be reached ({error})") from None


if __name__ == "__main__":
    run_without_collections()
    asked = json.load(sys.stdin)
    model = ModelConfig.model_validate(asked["model"])
    try:
        if _names_checkpoint(model):
            _check_checkpoint(model, logit_bias=asked["logit_bias"])
        if _has_parts(model) or asked["features"]:
            _check_parts_of_model(model, logit_bias=asked["logit_bias"], features=asked["features"])
    except UsageError as problem:
        sys.stdout.write(str(problem))
        sys.exit(problem.exit_code)
