"""The base of all config sections, and the fingerprint of the fields that decide an output."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

# Fields by the name they had up to version 0.1.0. Configs may use a former name until version 0.3.0. Hashes
# always use it, so that a run which was begun before the renaming keeps its fingerprint.
RENAMED = {
    "cluster.standing": "cluster.reuse",
    "cluster.standing (content)": "cluster.reuse (content)",
    "train.standing": "train.reuse",
    "train.standing_models": "train.reuse_models",
}
_FORMER = {name: former for former, name in RENAMED.items()}


def _not_one_string(value: object) -> object:
    if isinstance(value, str):
        raise ValueError(f"is one string where a list is meant: write [{value}]")
    return value


def _absolute_folder(name: str) -> str:
    return str(Path(name).expanduser().absolute()) if name.startswith("~") or Path(name).is_dir() else name


def _absolute_file(name: str) -> str:
    return str(Path(name).expanduser().absolute()) if name.startswith("~") or Path(name).is_file() else name


Share = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveInt = Annotated[int, Field(gt=0)]
Seed = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
Strings = Annotated[tuple[str, ...], Field(strict=False), BeforeValidator(_not_one_string)]
# A name, a URI, or a local path. Paths that exist become absolute: workers and later commands have other working
# directories.
FolderName = Annotated[str, AfterValidator(_absolute_folder)]
FileName = Annotated[str, AfterValidator(_absolute_file)]


class Settings(BaseModel):
    """Base of all config sections: frozen, no unknown keys, no silent conversions."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )
    versioned: ClassVar[bool] = True
    added: ClassVar[frozenset[str]] = frozenset()
    """Fields newer than version 0.1.0. A fingerprint leaves them out while they have their default or are None, so
    that a run which was begun before they existed keeps its fingerprint."""
    unversioned: ClassVar[frozenset[str]] = frozenset()
    """Fields that no fingerprint has, such as the place of files."""


class Placement(Settings):
    """A section that decides where and how fast a stage works, never its output."""

    versioned: ClassVar[bool] = False


class LabelledPlacement(Placement):
    """A placement of processes that may require node labels."""

    label_selector: Annotated[dict[str, str], Field(strict=False)] = Field(default_factory=dict)
    """Node labels that the processes require, for example `{"mode-ray/pool": "cpu"}`. Without them, many processes
    make the autoscaler start machines of every pool, GPU machines too."""

    @property
    def required_labels(self) -> dict[str, str] | None:
        """`label_selector` as Ray takes it: None if it is empty."""
        return dict(self.label_selector) or None


class ActorPool(LabelledPlacement):
    """Processes of one stage. Each works on one unit at a time. One process does the work of few small files."""

    min_actors: PositiveInt = 1
    """Actors started at once, rather than ramped up from one by Ray."""
    max_actors: PositiveInt = 2
    cpus_per_actor: PositiveFloat = 1.0
    gpus_per_actor: Annotated[float, Field(ge=0.0)] = 0.0
    threads_per_actor: PositiveInt = 1
    retries_per_unit: Annotated[int, Field(ge=0)] = 3
    """Further attempts after an I/O error, before the unit is quarantined."""

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.min_actors > self.max_actors:
            raise ValueError(f"min_actors={self.min_actors} is above max_actors={self.max_actors}")
        return self


def fingerprint_fields(settings: Settings, prefix: str) -> dict[str, object]:
    """The dotted fields of a config section that decide its output, as JSON values.

    Placements and `unversioned` fields are left out, and so are fields of `added` that have their default or are None.
    """
    fields: dict[str, object] = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        at_default = value == type(settings).model_fields[name].default
        if name in settings.unversioned or (name in settings.added and (at_default or value is None)):
            continue
        if not isinstance(value, Settings):
            fields[f"{prefix}.{name}"] = json.loads(json.dumps(value))
        elif type(value).versioned:
            fields |= fingerprint_fields(value, f"{prefix}.{name}")
    return fields


def with_current_names(fields: Mapping[str, object]) -> dict[str, object]:
    """Stored dotted fields, those under a former name by their name of today."""
    return {RENAMED.get(name, name): value for name, value in fields.items()}


def config_hash(fields: Mapping[str, object]) -> str:
    """SHA-256 (first 16 hex digits) of dotted fields, independent of their order and of renamed fields."""
    hashed = {_FORMER.get(name, name): value for name, value in fields.items()}
    canonical = json.dumps(hashed, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
