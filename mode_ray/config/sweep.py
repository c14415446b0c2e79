"""The section `sweep`: a search over training fields."""

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mode_ray.config.base import Placement, PositiveInt, Seed, Settings, Share
from mode_ray.config.train import TrainConfig

Scalar = bool | int | float | str
# These fields decide which models are trained, not how well.
_NOT_SWEPT = frozenset(
    {"train.experts", "train.reuse", "train.reuse_models", "train.controls", "train.model.pretrained"}
)


class SweepRange(Settings):
    """Values to draw from uniformly."""

    low: int | float
    high: int | float
    log: bool = False
    """Draw uniformly in the logarithm, as suits learning rates."""

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low={self.low} is not below high={self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"low={self.low}: a logarithmic range begins above 0")
        return self


class SweepConfig(Placement):
    """Which training fields `mode-ray sweep` tries, and how. Not part of the fingerprint."""

    fields: dict[str, Annotated[tuple[Scalar, ...], Field(strict=False)] | SweepRange] = Field(default_factory=dict)
    """Fields of `train` by dotted name, each with a list of values or a range. A range with two whole numbers as
    bounds yields whole numbers. For example `{train.optimizer.learning_rate: {low: 1e-4, high: 2e-3, log: true}}`."""
    trials: PositiveInt = 8
    """Points that are drawn. If all fields have lists with no more combinations than this, all combinations are
    tried."""
    seed: Seed = 0
    """Seed of the draws."""
    model: Literal["widest", "dense"] | Annotated[int, Field(ge=0)] = "widest"
    """What each trial trains: the widest expert, the dense baseline, or the expert with this number. An expert's seed
    model is trained, too."""
    held_out_pairs: PositiveInt = 1000
    """Pairs of that model's training set that are held out from all trials and used to measure them."""
    measurements: PositiveInt = 8
    """How often a trial is measured, at equal distances in samples."""
    grace_share: Share = 0.25
    """Share of its samples that every trial sees before it may be stopped."""
    reduction_factor: Annotated[float, Field(gt=1.0)] = 2.0
    """Whenever trials are compared, one of this many continues."""

    @model_validator(mode="after")
    def _known_fields(self) -> Self:
        known = set(_versioned(TrainConfig, "train")) - _NOT_SWEPT
        for name, values in self.fields.items():
            if name not in known:
                raise ValueError(f"{name} cannot be swept: choose among {', '.join(sorted(known))}")
            if not isinstance(values, SweepRange) and not values:
                raise ValueError(f"{name} has an empty list of values")
        return self


def _versioned(section: type[Settings], prefix: str) -> Iterator[str]:
    """The dotted names of a section's fields that decide an outcome."""
    for name, field in section.model_fields.items():
        kind = field.annotation
        if not (isinstance(kind, type) and issubclass(kind, Settings)):
            yield f"{prefix}.{name}"
        elif kind.versioned:
            yield from _versioned(kind, f"{prefix}.{name}")
