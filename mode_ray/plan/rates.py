"""Measured speeds of the stages' steps: what `mode-ray plan --calibrate` writes and `mode-ray plan` reads."""

from typing import Annotated

from pydantic import Field, JsonValue, ValidationError

from mode_ray.config.base import PositiveFloat, PositiveInt, Settings, Share
from mode_ray.config.run import RunConfig
from mode_ray.errors import UsageError
from mode_ray.storage import Location

Seconds = Annotated[float, Field(ge=0.0)]
MAX_FILE_BYTES = 1_000_000

# The config fields that a rate holds for, and no others.
_MEASURED_FIELDS = (
    "encoder.kind",
    "encoder.model",
    "encoder.pooling",
    "encoder.max_tokens",
    "encoder.dtype",
    "embed.encoder.batch_size",
    "embed.pool.threads_per_actor",
    "assign.pool.threads_per_actor",
    "assign.rule",
    "cluster.fine.centers",
    "cluster.fine.init",
    "cluster.fine.balanced",
    "cluster.fine.price_updates",
    "cluster.placement.threads",
    "cluster.coarse.experts",
)


class StepRate(Settings):
    """One step of a stage, in seconds a row and actor while all actors of the machine are busy."""

    wall_seconds: Seconds
    """Time that passes."""
    cpu_seconds: Seconds
    """Processor time over all threads of the actor."""


class ActorRates(Settings):
    """The steps of one actor of a pool."""

    actors_busy: PositiveInt
    """Actors that worked at the same time on the machine."""
    device: str
    """Where the encoder ran: `cpu` or `cuda`."""
    read_captions: StepRate
    encode: StepRate
    write_embeddings: StepRate
    read_embeddings: StepRate
    search: StepRate
    write_assignments: StepRate


class KMeansRates(Settings):
    """The fine clustering's fit on one machine: seconds = seeding + rows * (once + iterations * iteration)."""

    rows: PositiveInt
    """Rows it was measured on."""
    row_iteration_seconds: PositiveFloat
    """A row and Lloyd iteration."""
    row_seconds: Seconds
    """A row, once a fit: duplicates, masses, last prices."""
    seeding_seconds: Seconds
    """Choosing the first centers on up to `seeding_rows` rows."""
    seeding_rows: PositiveInt
    coarse_seconds: Seconds
    """The coarse maps of all n; independent of the rows."""


class FixedCosts(Settings):
    """What a stage costs whatever its rows: start of its actors, loading of the encoder, manifest."""

    embed_seconds: Seconds
    cluster_seconds: Seconds
    assign_seconds: Seconds
    unit_seconds: Seconds
    """Of an actor, for every work unit."""


class MachineNote(Settings):
    """Where the rates were measured."""

    host: str
    processor: str
    cores: PositiveInt
    gpus: float


class CaptionFigures(Settings):
    """The captions that were measured."""

    source: str
    rows: PositiveInt
    """Captions that were encoded; repeated where the time allowed."""
    mean_bytes: float
    refused_share: Share


class Rates(Settings):
    """One calibration."""

    measured_at: str
    """UTC, ISO 8601."""
    machine: MachineNote
    captions: CaptionFigures
    settings: dict[str, JsonValue]
    """The config fields that the rates hold for."""
    dimension: PositiveInt
    embedding_bytes: PositiveFloat
    """A row of an embedding shard, as written."""
    assignment_bytes: PositiveFloat
    """A row of an assignment shard, as written."""
    embed: ActorRates
    assign: ActorRates
    kmeans: KMeansRates
    fixed: FixedCosts


def measured_settings(config: RunConfig) -> dict[str, JsonValue]:
    """The config fields that rates depend on, by dotted name."""
    values = config.model_dump(mode="json")
    return {name: _dotted(values, name) for name in _MEASURED_FIELDS}


def require_fit(rates: Rates, config: RunConfig, name: str) -> None:
    """Refuse rates that were measured for another config.

    Args:
        rates: The rates.
        config: The config to plan for.
        name: Where the rates come from, for the message.

    Raises:
        UsageError: The message names the fields that differ.
    """
    wanted = measured_settings(config)
    differing = [
        f"{field}={rates.settings.get(field)!r} (the config has {value!r})"
        for field, value in wanted.items()
        if rates.settings.get(field) != value
    ]
    if differing:
        raise UsageError(
            f"{name}: measured for {', '.join(differing)}: measure again with `mode-ray plan --calibrate`, "
            "or override the config's fields"
        )


def read_rates(location: Location) -> Rates:
    """Read a rates file.

    Raises:
        UsageError: No such file, or not one that `mode-ray plan --calibrate` wrote.
    """
    if not location.exists() or location.is_directory():
        raise UsageError(f"{location}: no such rates file: make it with `mode-ray plan --calibrate --rates FILE`")
    if location.size_bytes() > MAX_FILE_BYTES:
        raise UsageError(f"{location}: larger than any rates file; make it with `mode-ray plan --calibrate`")
    try:
        return Rates.model_validate_json(location.read_bytes())
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(str(part) for part in problem["loc"]) or "the file"
        raise UsageError(
            f"{location}: not a rates file of this version ({field}: {problem['msg']}): "
            "measure again with `mode-ray plan --calibrate`"
        ) from None


def write_rates(location: Location, rates: Rates) -> None:
    """Write a rates file (JSON)."""
    location.write_text(rates.model_dump_json(indent=1) + "\n")


def _dotted(values: JsonValue, name: str) -> JsonValue:
    for part in name.split("."):
        if not isinstance(values, dict):
            raise KeyError(name)
        values = values[part]
    return values
