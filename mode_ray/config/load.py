"""Reads configs from YAML files or presets with `key=value` overrides, and writes them. Errors name file and field."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any, TypeVar, get_args

import yaml
from pydantic import ValidationError

from mode_ray.config.base import RENAMED, Settings
from mode_ray.config.run import RunConfig
from mode_ray.config.train import ReusableModels
from mode_ray.errors import UsageError
from mode_ray.storage import Location

_RUN_CONFIG = "config.yaml"  # mode_ray.run_directory.RUN_CONFIG; that module belongs to a later package
_logger = logging.getLogger(__name__)
SettingsT = TypeVar("SettingsT", bound=Settings)


def load_config(path: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run's config.

    Args:
        path: A YAML file, local or remote, or the name of a preset (`demo`, `small`, `paper`).
        overrides: `dotted.key=value` texts; values are read as YAML.

    Raises:
        UsageError: No such file, not YAML, an unknown key, a wrong type or value; it names file and field.
    """
    preset = preset_text(path)
    if preset is not None:
        return parse_config(preset, f"preset {path}", overrides)
    return read_settings(RunConfig, path, overrides, hint=" (and no preset of that name)")


def preset_text(name: str) -> str | None:
    """The YAML of a preset, which lacks `run` and `captions`; None if there is none of that name."""
    file = resources.files("mode_ray") / "presets" / f"{name}.yaml"
    return file.read_text() if name.isidentifier() and file.is_file() else None


def parse_config(text: str, name: str, overrides: Sequence[str] = ()) -> RunConfig:
    """A run's config from YAML; `name` is for messages.

    Raises:
        UsageError: As `load_config`.
    """
    return _settings(RunConfig, name, text, overrides)


def read_settings(kind: type[SettingsT], path: str, overrides: Sequence[str] = (), hint: str = "") -> SettingsT:
    """Read any settings from a YAML file, local or remote, with `dotted.key=value` overrides.

    Args:
        kind: The settings' class.
        path: The file.
        overrides: As for `load_config`.
        hint: Added to the message if there is no such file.

    Raises:
        UsageError: As `load_config`.
    """
    try:
        text = Location.parse(path).read_text()
    except FileNotFoundError:
        raise UsageError(f"{path}: no such config file{hint}") from None
    except OSError as error:
        raise UsageError(f"{path}: {_unreadable(path, error)}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text (byte {error.start})") from None
    return _settings(kind, path, text, overrides)


def _unreadable(path: str, error: OSError) -> str:
    location = Location.parse(path)
    if not location.is_directory():
        return f"the config file cannot be read: {error}"
    own = location / _RUN_CONFIG
    if own.exists():
        return f"a run directory, not a config file: write {path.rstrip('/')}/{_RUN_CONFIG}"
    return f"a directory, not a config file, and it has no {_RUN_CONFIG}"


def dump_config(config: RunConfig) -> str:
    """The whole resolved config as YAML."""
    return yaml.safe_dump(json.loads(config.model_dump_json()), sort_keys=False, allow_unicode=True)


def with_values(config: RunConfig, changes: Mapping[str, object]) -> RunConfig:
    """The config with some fields set, by dotted name; all else stays.

    Raises:
        UsageError: A value does not fit its field, or the others.
    """
    values: dict[str, Any] = json.loads(config.model_dump_json())
    shown = ", ".join(f"{name}={value}" for name, value in changes.items())
    for name, value in changes.items():
        _set_dotted(values, name, value, f"{name}={value}")
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise UsageError("\n".join(_problems(error, shown, {}))) from None


class _YamlLoader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, but `5e-4` and `1.5e6` are numbers (as in YAML 1.2), not texts."""


_YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _parse_yaml(text: str) -> object:
    return yaml.load(text, _YamlLoader)  # noqa: S506  (a SafeLoader)


def _settings(kind: type[SettingsT], name: str, text: str, overrides: Sequence[str]) -> SettingsT:
    try:
        values = _parse_yaml(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{name}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{name}: expected a mapping of config sections at the top level")
    _rename_fields(values, name)
    origin: dict[str, str] = {}
    for override in overrides:
        key, value = _parse_override(override)
        origin[key] = f"override {override!r}"
        _set_dotted(values, key, value, override)
    _rename_fields(values, name)  # an override may hold a whole section
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UsageError("\n".join(_problems(error, name, origin))) from None


def _parse_override(override: str) -> tuple[str, object]:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UsageError(f"override {override!r}: expected KEY=VALUE, for example cluster.fine.centers=256")
    try:
        return key, _parse_yaml(text)
    except yaml.YAMLError:
        raise UsageError(f"override {override!r}: the value is not valid YAML") from None


def _set_dotted(values: dict[str, Any], key: str, value: object, override: str) -> None:
    if key in RENAMED:
        _report_former_names(f"override {override!r}", (key,))
    *sections, last = RENAMED.get(key, key).split(".")
    target = values
    for section in sections:
        target = target.setdefault(section, {})
        if not isinstance(target, dict):
            raise UsageError(f"override {override!r}: {section!r} is a value, not a section")
    target[last] = value


def _rename_fields(values: dict[str, Any], source: str) -> None:
    """Give fields that have a former name their name of today, and report it once unless they have their default."""
    found = []
    for former, name in RENAMED.items():
        section, _, old = former.partition(".")
        fields = values.get(section)
        if not isinstance(fields, dict) or old not in fields:
            continue
        value = fields.pop(old)
        if fields.setdefault(name.removeprefix(f"{section}."), value) is not value:
            raise UsageError(f"{source}: {former} is the former name of {name}: give {name} only")
        if value not in (None, list(get_args(ReusableModels))):
            found.append(former)
    if found:
        _report_former_names(source, tuple(found))


@cache
def _report_former_names(source: str, names: tuple[str, ...]) -> None:
    renamed = ", ".join(f"{name} is now {RENAMED[name]}" for name in names)
    _logger.warning("%s: %s; the former name is accepted until version 0.3.0", source, renamed)


def _problems(error: ValidationError, name: str, origin: Mapping[str, str]) -> list[str]:
    """One sentence a problem: file (or override), field, what is wrong."""
    sentences = []
    for problem in error.errors():
        field = ".".join(str(part) for part in problem["loc"]) or "(top level)"
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = "unknown key"
        elif problem["type"] == "missing":
            message = "is required"
        elif problem["type"] == "tuple_type" and isinstance(problem["input"], str | int | float):
            kind = "string" if isinstance(problem["input"], str) else "value"
            message = f"is one {kind} where a list is meant: write [{problem['input']}]"
        else:
            given = problem.get("input")
            shown = f" (given: {given!r})" if isinstance(given, str | int | float | bool) else ""
            message = message[0].lower() + message[1:] + shown
        source = next(
            (text for key, text in origin.items() if f"{field}.".startswith(f"{RENAMED.get(key, key)}.")), name
        )
        sentences.append(f"{source}: {field}: {message}")
    return sentences
