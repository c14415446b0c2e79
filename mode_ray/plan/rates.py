"""The rates of a run, which `mode_ray.plan.from_run` reads and the plan extrapolates."""

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
    "embed.encoder.runtime",
    "embed.keep",
)
_MODEL_FIELDS = ("train.model.architecture", "train.model.precision")
_READS = "train.data.mode"
_TRUNK_FIELDS = (*_MODEL_FIELDS, "train.model.lock.image", "train.model.lock.text")
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
    "features": (
        *_TRUNK_FIELDS,
        "features.views",
        "features.augmented",
        "features.trunk.batch_size",
        "features.pool.threads_per_actor",
    ),
    "train": (
        *_TRUNK_FIELDS,
        _READS,
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
    """The cost of a row in embed, assign or features, from the records of the work units.

    Attributes:
        units: Units whose records were read.
        rows: Rows read: captions with or without their images, or stored embeddings.
        actors_busy: Mean number of concurrent actors.
        on_gpu: Whether each actor had a GPU.
        row_seconds: Seconds of an actor per row read.
        read_row_seconds: The part of them for reading, which every row needs. Only rows that are embedded or assigned
            need the other part.
        kept_share: Rows written as a share of the rows read.
        refused_share: Rows refused as a share of the rows read.
        row_bytes: Bytes written per row written.
        unit_bytes: Bytes of each unit's line in `units.parquet`.
        fixed_seconds: Time of the stage outside units: starting actors, loading the encoder, writing the manifest.
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
    """The cost of fitting the clustering, from the parts in the manifest.

    Attributes:
        rows: Rows of the sample.
        read_row_seconds: Reading time per stored embedding.
        seeding_seconds: Time to choose the first centers from `seeding_rows` rows.
        seeding_rows: Rows that the first centers were chosen from.
        row_iteration_seconds: Time of one process per row and Lloyd iteration.
        row_seconds: Time of one process per row for the passes after the last iteration.
        coarse_seconds: Time of the coarse maps of all n, independent of the number of rows.
        fixed_seconds: The rest of the stage.
        written_bytes: Size of the directory, with the atlas.
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
    """The speed of training, from the status files of the training runs.

    Attributes:
        trials: Training runs that have seen samples.
        samples: Samples (pairs of an image and a caption) that they have seen.
        samples_per_second: Speed of one worker, which is one GPU if `gpus_per_worker` is 1.
        launch_seconds: Time of a training run outside its steps: start of the workers, the last checkpoint.
    """

    trials: int
    samples: int
    samples_per_second: float
    launch_seconds: float


@dataclass(frozen=True, kw_only=True)
class EvaluateRates:
    """The time of the evaluation, from its manifest.

    Attributes:
        seconds: Wall time of the invocation that finished it, without tasks measured by an earlier one.
        tasks: Number of evaluation tasks.
        images: Images of all tasks.
        models: Number of measured models.
        written_bytes: Size of the directory.
    """

    seconds: float
    tasks: int
    images: int
    models: int
    written_bytes: float


@dataclass(frozen=True, kw_only=True)
class Rates:
    """The rates of one run. The rates of a stage are None if the run has no record of it.

    Attributes:
        run: URI of the run directory.
        measured_at: Time of its newest unit; UTC, ISO 8601.
        source: First path of its captions.
        cpus: CPUs of its Ray cluster; 0 if unknown.
        gpus: GPUs of its Ray cluster.
        settings: The config fields that the rates are valid for.
        dimension: Embedding dimension; 0 if none were stored.
        embed: Rates of the stage.
        cluster: Rates of the stage.
        assign: Rates of the stage.
        features: Rates of the stage.
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
    features: ShardRates | None = None
    train: TrainRates | None = None
    evaluate: EvaluateRates | None = None

    @property
    def refused_share(self) -> float:
        """Share of the captions that were refused."""
        reader = self.embed or self.assign
        return reader.refused_share if reader else 0.0


def measured_settings(config: RunConfig) -> dict[str, JsonValue]:
    """The config fields that rates depend on, by dotted name."""
    values = config.model_dump(mode="json")
    # Where images are read from does not decide the speed of a worker.
    values["train"]["data"]["mode"] = "features" if config.uses_features else "images"
    return {name: _dotted(values, name) for names in _FIELDS_BY_STAGE.values() for name in names}


def require_fit(rates: Rates, config: RunConfig, stages: Collection[str]) -> None:
    """Refuse rates that were measured with other fields than the config has, in the stages of the plan.

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
