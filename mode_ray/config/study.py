"""The file that `mode-ray study` reads: a base config, the points with their values, and the study's directory."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from mode_ray.config.base import Seed, Settings, with_current_names
from mode_ray.config.load import read_settings
from mode_ray.storage import Location

Value = bool | int | float | str


class StudyConfig(Settings):
    """One study. Give either `field` with `values`, or `points`."""

    study: str
    """Directory of the study: its runs and its results."""
    base: str
    """A run's config file or a preset; its `run` is ignored."""
    title: str = ""
    changes: dict[str, Any] = Field(default_factory=dict)
    """Fields of the base that are set for all points: dotted name and value."""
    field: str = ""
    """Dotted name of the field that is varied."""
    values: Annotated[tuple[Value, ...], Field(strict=False)] = ()
    """Its values, one per point."""
    points: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """For points that differ in several fields: label, then dotted name and value."""
    axis: str = ""
    """Name of the axis; by default the field."""
    against: Literal["value", "samples"] = "value"
    """The horizontal axis of the picture: the values, or the training samples behind each result."""
    seeds: Annotated[tuple[Seed, ...], Field(strict=False)] = (0,)
    """Training seeds; every point is run with each of them."""
    keep_models: bool = True
    """False: the weights of a run's models are deleted once it is evaluated, but for those that other runs reuse."""
    seed_clustering: bool = False
    """Use the training seed for the clustering, too, so that the deviation over seeds includes that of the clustering.
    By default the runs of one point share their clustering."""

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
            for name in ("run", "train.reuse", "train.reuse_models", *self.seeded_fields):
                if name in with_current_names(fields):
                    raise ValueError(f"{name} is set by the study")
        return self

    @property
    def changes_by_label(self) -> Mapping[str, Mapping[str, Any]]:
        """Every point's own fields, by its label."""
        return self.points or {str(value): {self.field: value} for value in self.values}

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of the points, in order."""
        return tuple(self.points or (str(value) for value in self.values))

    @property
    def seeded_fields(self) -> tuple[str, ...]:
        """The fields of a run that its training seed sets."""
        return ("train.seed", "cluster.seed") if self.seed_clustering else ("train.seed",)

    @property
    def axis_title(self) -> str:
        """The text at the axis."""
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
    return read_settings(StudyConfig, path)
