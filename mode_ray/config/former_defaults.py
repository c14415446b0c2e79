"""Defaults that have changed. A run that was begun with a former default keeps it."""

import yaml

from mode_ray.config.base import Settings
from mode_ray.config.load import with_values
from mode_ray.config.run import RunConfig
from mode_ray.errors import UsageError
from mode_ray.storage import Location

# Up to version 0.1.0, by dotted name.
FORMER_DEFAULTS: dict[str, object] = {
    "encoder.dtype": "float32",
    "train.model.architecture": "ViT-B-16",
    "train.model.precision": "bfloat16",
    "train.optimizer.warmup_samples": 2000 * 32768,
    "train.batch_size": 32768,
    "train.data.mode": "index",
    "train.data.read_block_pairs": None,  # there was no such field
}


def keep_former_defaults(config: RunConfig, own: Location) -> RunConfig:
    """The config, with the former defaults that its run was begun with in fields that it does not set.

    Args:
        config: As the user wrote it.
        own: The config in the run directory, which has the value of every field; it need not exist.

    Raises:
        UsageError: The config in the run directory is not YAML.
    """
    unset = [name for name in FORMER_DEFAULTS if not _is_set(config, name)]
    if not unset or not own.exists():
        return config
    try:
        begun = yaml.safe_load(own.read_text())
    except yaml.YAMLError:
        raise UsageError(f"{own}: not valid YAML; restore it, or choose another run directory") from None
    kept = {name: FORMER_DEFAULTS[name] for name in unset if _value(begun, name) == FORMER_DEFAULTS[name]}
    return with_values(config, kept) if kept else config


def _is_set(config: RunConfig, name: str) -> bool:
    *sections, field = name.split(".")
    section: Settings = config
    for part in sections:
        section = getattr(section, part)
    return field in section.model_fields_set


def _value(values: object, name: str) -> object:
    for part in name.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values
