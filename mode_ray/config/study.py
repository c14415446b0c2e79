"""The file that `mode-ray study` reads: a base config, an axis with its values, and where the points' runs go."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from mode_ray.config.base import Seed, Settings
from mode_ray.errors import UsageError
from mode_ray.storage import Location

Value = bool | int | float | str


class StudyConfig(Settings):
    """One study. Give either `field` with `values`, or `points`."""

    study: str
    """Directory of the study: the points' runs, and the results."""
    base: str
    """A run's config file or a preset; its `run` counts for nothing."""
    title: str = ""
    changes: dict[str, Any] = Field(default_factory=dict)
    """Fields of the base that are set for all points, by dotted name."""
    field: str = ""
    """The field that is varied, by dotted name."""
    values: Annotated[tuple[Value, ...], Field(strict=False)] = ()
    """Its values, one a point."""
    points: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """For points that differ in several fields: label, then field and value."""
    axis: str = ""
    """What the axis is called; by default the field."""
    against: Literal["value", "samples"] = "value"
    """What is drawn to the right: the axis' values, or the training samples behind each result."""
    seeds: Annotated[tuple[Seed, ...], Field(strict=False)] = (0,)
    """Training seeds; every point is run with each of them."""

    @model_validator(mode="after")
    def _points_or_values(self) -> Self:
        if bool(self.points) == bool(self.field or self.values):
            raise ValueError("give either field with values, or points")
        if bool(self.field) != bool(self.values):
            raise ValueError("field and values go together")
        for name, given in (("values", self.labels), ("seeds", self.seeds)):
            if len(set(given)) < len(given):
                raise ValueError(f"{name}: one of them is given twice")
        if not self.seeds:
            raise ValueError("seeds: is empty")
        for fields in (self.changes, *self.changes_by_label.values()):
            for name in ("run", "train.seed", "train.standing", "train.standing_models"):
                if name in fields:
                    raise ValueError(f"{name} is the study's own to set")
        return self

    @property
    def changes_by_label(self) -> Mapping[str, Mapping[str, Any]]:
        """Every point's own fields, by its label."""
        return self.points or {str(value): {self.field: value} for value in self.values}

    @property
    def labels(self) -> tuple[str, ...]:
        """Of the points, in order."""
        return tuple(self.points or (str(value) for value in self.values))

    @property
    def axis_title(self) -> str:
        """Words for the axis."""
        return self.axis or self.field or "point"

    @property
    def directory(self) -> Location:
        """The study's directory."""
        return Location.parse(self.study)


def load_study(path: str) -> StudyConfig:
    """Read a study's file, local or remote.

    Raises:
        UsageError: No such file, not YAML, an unknown key, a wrong value; it names file and field.
    """
    try:
        values = yaml.safe_load(Location.parse(path).read_text())
    except FileNotFoundError:
        raise UsageError(f"{path}: no such study file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path}: expected a mapping with study, base, field and values")
    try:
        return StudyConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"{path}: {f'{field}: ' if field else ''}{message[0].lower()}{message[1:]}") from None
