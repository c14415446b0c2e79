"""The config of a sweep over training fields."""

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mode_ray.config.base import Placement, PositiveInt, Seed, Settings, Share
from mode_ray.config.train import TrainConfig

Scalar = bool | int | float | str
# Which models there are is no matter of how well they train.
_NOT_SWEPT = frozenset(
    {"train.experts", "train.reuse", "train.reuse_models", "train.controls", "train.model.pretrained"}
)


class SweepRange(Settings):
    """Values to draw from uniformly."""

    low: int | float
    high: int | float
    log: bool = False
    """Uniform in the logarithm, as suits learning rates."""

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low={self.low} is not below high={self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"low={self.low}: a logarithmic range begins above 0")
        return self


class SweepConfig(Placement):
    """Which training fields `mode-ray sweep` tries out, and how. Not part of the fingerprint."""

    fields: dict[str, Annotated[tuple[Scalar, ...], Field(strict=False)] | SweepRange] = Field(default_factory=dict)
    """Fields of `train` by dotted name, each with a list of values or a range; a range of whole numbers where both
    bounds are. For example `{train.optimizer.learning_rate: {low: 1e-4, high: 2e-3, log: true}}`."""
    trials: PositiveInt = 8
    """Points that are drawn; of lists alone, all combinations where there are no more than this."""
    seed: Seed = 0
    """Of the draws."""
    model: Literal["widest", "dense"] | Annotated[int, Field(ge=0)] = "widest"
    """What each trial trains: the widest expert, the dense baseline, or the expert of this number; experts with their
    seed model."""
    held_out_pairs: PositiveInt = 1000
    """Pairs of that model's training set that no trial is trained on, to measure by."""
    measurements: PositiveInt = 8
    """How often a trial is measured, at equal shares of its samples."""
    grace_share: Share = 0.25
    """Share of its samples that every trial may see before a worse one is stopped."""
    reduction_factor: Annotated[float, Field(gt=1.0)] = 2.0
    """One trial of so many goes on, whenever trials are compared."""

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
