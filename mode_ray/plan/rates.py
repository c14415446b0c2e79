"""Rates of a finished or partly finished run: what `mode_ray.plan.from_run` reads and the plan extrapolates from."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from mode_ray.config.run import RunConfig
from mode_ray.errors import UsageError

_ENCODER_FIELDS = (
    "encoder.kind",
    "encoder.model",
    "encoder.pooling",
    "encoder.max_tokens",
    "encoder.dtype",
    "embed.encoder.batch_size",
    "embed.keep",
)
_MODEL_FIELDS = ("train.model.architecture", "train.model.precision")
# The config fields that the rates of each stage are valid for.
_FIELDS_BY_STAGE: Mapping[str, tuple[str, ...]] = {
    "embed": (*_ENCODER_FIELDS, "embed.pool.threads_per_actor"),
    "cluster": (
        "encoder.model",
        "cluster.fine.centers",
        "cluster.fine.init",
        "cluster.fine.balanced",
        "cluster.fine.price_updates",
        "cluster.coarse.experts",
        "cluster.placement.threads",
    ),
    "assign": (*_ENCODER_FIELDS, "cluster.fine.centers", "assign.rule", "assign.pool.threads_per_actor"),
    "train": (
        *_MODEL_FIELDS,
        "train.placement.use_gpu",
        "train.placement.strategy",
        "train.placement.compile",
        "train.placement.gradient_checkpointing",
        "train.placement.threads_per_worker",
        "train.placement.loader_workers",
    ),
    "evaluate": (*_MODEL_FIELDS, "evaluate.placement.workers_per_task", "evaluate.placement.threads_per_task"),
}


@dataclass(frozen=True, kw_only=True)
class ShardRates:
    """What one row costs in embed or assign, from the records of the stage's work units.

    Attributes:
        units: Units whose records were read.
        rows: Rows that they took in: captions, or stored embeddings.
        actors_busy: Actors that worked at the same time, on average.
        on_gpu: Whether each actor had a GPU.
        row_seconds: Seconds of an actor for each row taken in.
        read_row_seconds: The part of them for reading, which is due for every row; the other part is due for the rows
            that are embedded or assigned.
        kept_share: Rows written, as a share of the rows taken in.
        refused_share: Rows refused, as a share of the rows taken in.
        row_bytes: Bytes written for each row written.
        unit_bytes: Bytes of each unit's line in `units.parquet`.
        fixed_seconds: Time of the stage without a unit in work: starting actors, loading the encoder, the manifest.
    """

    units: int
    rows: int
    actors_busy: float
    on_gpu: bool
    row_seconds: float
    read_row_seconds: float
    kept_share: float
    refused_share: float
    row_bytes: float
    unit_bytes: float
    fixed_seconds: float


@dataclass(frozen=True, kw_only=True)
class ClusterRates:
    """What the fit of the clustering costs, from the parts in the stage's manifest.

    Attributes:
        rows: Rows of the sample.
        read_row_seconds: Reading, for each stored embedding.
        seeding_seconds: Choosing the first centers from `seeding_rows` rows.
        seeding_rows: Rows that the first centers were chosen from.
        row_iteration_seconds: One process, for each row and Lloyd iteration.
        row_seconds: One process, for each row once: the passes after the last iteration.
        coarse_seconds: The coarse maps of all n, whatever the number of rows.
        fixed_seconds: The rest of the stage.
        written_bytes: Size of the directory: the clustering and its atlas.
    """

    rows: int
    read_row_seconds: float
    seeding_seconds: float
    seeding_rows: int
    row_iteration_seconds: float
    row_seconds: float
    coarse_seconds: float
    fixed_seconds: float
    written_bytes: float


@dataclass(frozen=True, kw_only=True)
class TrainRates:
    """What a sample costs, from the status files of the training runs.

    Attributes:
        trials: Training runs that had seen samples.
        samples: Samples (pairs of an image and a caption) that they had seen.
        samples_per_second: Of one worker, which is one GPU where training uses whole ones.
        launch_seconds: Time of a training run besides its steps: start of the workers, the last checkpoint.
    """

    trials: int
    samples: int
    samples_per_second: float
    launch_seconds: float


@dataclass(frozen=True, kw_only=True)
class EvaluateRates:
    """What the evaluation took, from its manifest.

    Attributes:
        seconds: Wall time of the invocation that finished it; tasks measured by an earlier one are not in it.
        tasks: Evaluation tasks.
        images: Images of all tasks.
        models: Models that were measured.
        written_bytes: Size of the directory.
    """

    seconds: float
    tasks: int
    images: int
    models: int
    written_bytes: float


@dataclass(frozen=True, kw_only=True)
class Rates:
    """The rates of one run; those of a stage are None where the run has no record of it.

    Attributes:
        run: URI of the run directory.
        measured_at: When its newest unit was finished; UTC, ISO 8601.
        source: First path of its captions.
        cpus: CPUs of the Ray cluster that it ran on; 0 where the run does not have that.
        gpus: GPUs of that cluster.
        settings: The config fields that the rates are valid for.
        dimension: d of the embeddings; 0 where none were stored.
        embed: Rates of the stage.
        cluster: Rates of the stage.
        assign: Rates of the stage.
        train: Rates of the stage.
        evaluate: Rates of the stage.
    """

    run: str
    measured_at: str
    source: str
    cpus: float
    gpus: float
    settings: Mapping[str, JsonValue]
    dimension: int
    embed: ShardRates | None = None
    cluster: ClusterRates | None = None
    assign: ShardRates | None = None
    train: TrainRates | None = None
    evaluate: EvaluateRates | None = None

    @property
    def refused_share(self) -> float:
        """Share of the captions that were refused when they were read."""
        reader = self.embed or self.assign
        return reader.refused_share if reader else 0.0


def measured_settings(config: RunConfig) -> dict[str, JsonValue]:
    """The config fields that rates depend on, by dotted name."""
    values = config.model_dump(mode="json")
    return {name: _dotted(values, name) for names in _FIELDS_BY_STAGE.values() for name in names}


def require_fit(rates: Rates, config: RunConfig, stages: Collection[str]) -> None:
    """Refuse rates of another config.

    Args:
        rates: The rates.
        config: The config to plan for.
        stages: The stages that the plan takes rates for.

    Raises:
        UsageError: The message names the fields that differ.
    """
    wanted = measured_settings(config)
    fields = dict.fromkeys(name for stage in stages for name in _FIELDS_BY_STAGE[stage])
    differing = [
        f"{name}={rates.settings.get(name)!r} (the config has {wanted[name]!r})"
        for name in fields
        if rates.settings.get(name) != wanted[name]
    ]
    if differing:
        raise UsageError(
            f"{rates.run}: ran with {', '.join(differing)}: make a small run with the config's values, or override "
            "the fields of the config"
        )


def _dotted(values: JsonValue, name: str) -> JsonValue:
    for part in name.split("."):
        if not isinstance(values, dict):
            raise KeyError(name)
        values = values[part]
    return values
