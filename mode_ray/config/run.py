"""One typed, frozen config for a run, validated on construction.

pydantic validates (it comes with Ray Serve): it refuses unknown keys and wrong types and names the field.
`Placement`s only say *where* or *how fast*: a run may go on with others, a change of anything else is found and named.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mode_ray.config.base import Placement, PositiveFloat, PositiveInt, Seed, Settings, Share, Strings
from mode_ray.config.serve import ServeConfig
from mode_ray.config.sweep import SweepConfig
from mode_ray.config.train import TrainConfig
from mode_ray.storage import Location

RoutingRule = Literal["calibrated", "soft", "paper", "released", "uniform"]


class ActorPool(Placement):
    """Actors of one Ray Data stage; each takes one unit after the other."""

    min_actors: PositiveInt = 1
    """Started at once; Ray's own ramp-up from one is not relied on."""
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


class CaptionsConfig(Settings):
    """Where the pairs lie and which of their texts count."""

    paths: Strings
    """Files, directories, globs; local, s3:// or gs://. A file that ends in `.txt` or `.list` is a listing: one of
    these a line, `#` comments skipped, relative lines counted from the listing's folder."""
    format: Literal["auto", "parquet", "webdataset", "jsonl", "csv", "tsv"] = "auto"
    """`auto`: by suffix, .parquet .pq, .tar, .jsonl .ndjson, .csv, .tsv, the text ones plain or `.gz`. JSON Lines, CSV
    and TSV (with a header line) hold captions only: they can be clustered and assigned, not trained on."""
    caption_field: str | None = None
    """Parquet, CSV: the column (default `caption`). JSON Lines: the field (default `caption`). Tars: a field of the
    `.json` member, or else the `.txt`."""
    key_field: str | None = None
    """The column or field with a pair's name (default: row number). Tars: always the member's base name."""
    image_field: str = "image"
    """Parquet: the column with the encoded image; only training reads it."""
    select: Literal["first", "all"] = "first"
    """Which captions of a pair with several are used."""
    max_caption_bytes: PositiveInt = 8192
    """Longer captions are refused, and counted."""
    max_rows_per_unit: PositiveInt = 1_000_000
    """A parquet file with more rows is split by row groups into several work units; JSON Lines, CSV and TSV files with
    more captions are refused."""

    @model_validator(mode="after")
    def _paths_given(self) -> Self:
        if not self.paths:
            raise ValueError("paths is empty: name at least one file, directory or glob")
        return self


class LimitsConfig(Placement):
    """What a run puts up with in its input. Not part of the fingerprint: a run may go on with other limits."""

    max_refused_share: Share = 0.2
    """Above this share of refused captions a stage ends with an error: the wrong column, most likely."""
    max_quarantined_units: Annotated[int, Field(ge=0)] = 0
    """How many unreadable shards a stage may leave out and still count as done."""
    max_bad_image_share: Share = 0.01
    """Above this share of undecodable images a training run ends with an error."""
    max_image_pixels: PositiveInt = 64_000_000
    """Larger images are refused before they are decoded."""


class EncoderConfig(Settings):
    """The frozen language encoder (paper section 4.1; never CLIP itself)."""

    kind: Literal["huggingface", "static"] = "huggingface"
    model: str = "princeton-nlp/sup-simcse-bert-base-uncased"
    """Hub id, folder, or `package:NAME/FOLDER` for files inside an installed Python package."""
    pooling: Literal["auto", "pooler", "mean", "cls"] = "auto"
    """`auto`: what a sentence-transformers folder asks for, else the pooler output (SimCSE)."""
    max_tokens: PositiveInt = 64
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Arithmetic of the forward pass; embeddings are stored as float16 whatever it is."""


class EncoderPlacement(Placement):
    """Speed of the encoder."""

    batch_size: PositiveInt = 64
    device: str = "auto"


class EmbedConfig(Settings):
    """Embedding shards."""

    keep: Literal["all", "sample"] = "all"
    """`all`: every caption's embedding is stored. `sample`: only those that the clustering is fitted on;
    `assign` then reads the captions itself and encodes and assigns them in one pass."""
    pool: ActorPool = ActorPool()
    encoder: EncoderPlacement = EncoderPlacement()


class FineConfig(Settings):
    """Fine-grained clustering: m centers (paper section 3.2, step 1)."""

    centers: PositiveInt = 1024
    iterations: PositiveInt = 20
    init: Literal["kmeans++", "random"] = "kmeans++"
    spherical: bool = False
    balanced: bool = True
    """Fit with capacity prices, so that clusters are of nearly equal size."""
    price_updates: PositiveInt = 40
    """Price updates in each Lloyd step."""
    price_rate: PositiveFloat = 0.04
    """Size of one price update, as a share of the mean squared distance."""
    tolerance: Annotated[float, Field(ge=0.0)] = 5e-4
    """Lloyd stops when the objective improves by less than this share."""


class CoarseConfig(Settings):
    """Coarse grouping of the centers into experts (paper section 3.2, step 2)."""

    experts: Annotated[tuple[int, ...], Field(strict=False)] = (4,)
    """Every n to make a map for; one fine clustering serves all."""
    slack: Annotated[float, Field(ge=0.0)] = 0.1
    """A group may hold up to (1 + slack)/n of the rows."""
    iterations: PositiveInt = 50
    restarts: PositiveInt = 8


class ClusterPlacement(Placement):
    """Resources of the clustering."""

    workers: PositiveInt = 1
    """Actors that hold the sample; 1 keeps it in the clustering's own task. The centers are the same anyway."""
    cpus: PositiveFloat = 1.0
    """Of the task, and of each actor."""
    threads: PositiveInt = 2
    """Of the task, and of each actor."""


class ClusterConfig(Settings):
    """Both clustering steps, or a standing clustering to take over instead."""

    standing: str | None = None
    """Directory of a finished clustering, for example another run's `clusters`: it is checked against the encoder and
    copied, and nothing is fitted. What decides a fit (`fine`, `coarse`, `sample_rows`, `seed`) then counts for nothing
    but the new centers of `mode-ray cluster extend`, and may change at any time."""
    sample_rows: PositiveInt = 2_000_000
    """Rows the fine centers are fitted on, uniform over all shards' rows."""
    seed: Seed = 0
    fine: FineConfig = FineConfig()
    coarse: CoarseConfig = CoarseConfig()
    placement: ClusterPlacement = ClusterPlacement()

    @model_validator(mode="after")
    def _sizes(self) -> Self:
        if self.standing is not None:
            return self
        for n in self.coarse.experts:
            if n < 1:
                raise ValueError(f"coarse.experts has n={n}: a group count is at least 1")
            if n > self.fine.centers:
                raise ValueError(
                    f"coarse.experts has n={n} but fine.centers is m={self.fine.centers}: "
                    "there cannot be more experts than fine centers"
                )
        if self.sample_rows < self.fine.centers:
            raise ValueError(f"sample_rows={self.sample_rows} is below fine.centers={self.fine.centers}")
        return self


class AssignConfig(Settings):
    """Nearest fine center of every caption."""

    rule: Literal["nearest", "priced"] = "nearest"
    """`nearest` is the paper's; `priced` adds the balancing prices to the squared distances."""
    pool: ActorPool = ActorPool()


class DriftConfig(Placement):
    """How the assigned captions are compared with what the clustering was fitted on. Not part of the fingerprint."""

    far_quantile: Share = 0.99
    """A caption is far where its squared distance is above this quantile of the fitted sample's; one of those that the
    clustering stores: 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999."""


class RoutingConfig(Settings):
    """From a task's texts to weights over experts (paper section 3.3; formulas in mode_ray.routing.weights)."""

    rule: RoutingRule = "calibrated"
    """`calibrated` is `soft` with the temperature that the clustering fitted to the encoder, without labels."""
    temperature: PositiveFloat = 0.1
    """lambda of `soft`, and of `calibrated` where the clustering has no fitted temperature."""
    paper_lambda: PositiveFloat = 0.2
    small_task_below: PositiveInt = 10
    large_task_above: PositiveInt = 200
    large_task_log_base: Annotated[float, Field(gt=1.0)] = 2.718281828459045
    released_softmax_temperature: PositiveFloat = 8.0


class EvaluatePlacement(Placement):
    """Speed of the evaluation."""

    batch_size: PositiveInt = 256
    cpus_per_task: PositiveFloat = 1.0
    threads_per_task: PositiveInt = 2
    gpus_per_task: Annotated[float, Field(ge=0.0)] = 0.0
    workers_per_task: PositiveInt = 1
    """Ray tasks that share the images of one evaluation task, where it is large. Each loads all models and reads all
    of the task's files, but decodes and encodes its own share of the images alone."""
    max_image_pixels: PositiveInt | None = None
    """Larger images of the tasks are refused before they are decoded, and counted; by default
    `limits.max_image_pixels`."""


class EvaluateConfig(Settings):
    """Zero-shot tasks and the report."""

    tasks: Strings = ()
    """Task files (YAML); see docs/tasks.md."""
    rules: Annotated[tuple[RoutingRule, ...], Field(strict=False)] = (
        "calibrated",
        "soft",
        "paper",
        "released",
        "uniform",
    )
    leave_out_experts: Annotated[tuple[int, ...], Field(strict=False)] = ()
    """Experts that failed to train, or whose models are missing or damaged: evaluated without them, the others'
    weights scaled to sum to 1. The report says so. It may change at any time; `index` and `search` heed it too."""
    placement: EvaluatePlacement = EvaluatePlacement()


class IndexPlacement(Placement):
    """Speed of the image encoders that make an index."""

    batch_size: PositiveInt = 64
    device: str = "auto"


class IndexConfig(Settings):
    """The image index of `mode-ray index`; docs/retrieval.md has the guide."""

    images: Strings = ()
    """Parquet or WebDataset files, directories, globs with the images; by default those of `captions.paths`. Their
    format and fields are those of `captions`."""
    max_rows_per_unit: PositiveInt = 10_000
    """A parquet file with more rows is split by row groups. An actor holds the encoded images of two units."""
    rows_per_part: PositiveInt = 262_144
    """Images of one faiss file. One of them lies in memory at a time while the index is built."""
    pool: ActorPool = ActorPool()
    placement: IndexPlacement = IndexPlacement()


class RayConfig(Placement):
    """How the driver reaches Ray."""

    address: str | None = None
    """`auto` or host:port joins a cluster; empty starts one on this machine unless RAY_ADDRESS is set."""
    num_cpus: PositiveInt | None = None
    """Logical CPUs of a cluster started here; by default as many as there are."""
    object_store_bytes: PositiveInt | None = None
    dashboard: bool = True
    log_to_driver: bool = False
    """Copy the workers' output to the driver's."""
    log_format: Literal["text", "json"] = "text"
    """`json`: a run's lines are JSON objects on the error output, with run, stage, shard and expert. The environment's
    MODE_RAY_LOG_FORMAT overrides it."""


class RunConfig(Settings):
    """All of a run; see docs/config.md for every field with its default."""

    run: str
    """The run directory: a local path, s3:// or gs:// URI."""
    captions: CaptionsConfig
    limits: LimitsConfig = LimitsConfig()
    encoder: EncoderConfig = EncoderConfig()
    embed: EmbedConfig = EmbedConfig()
    cluster: ClusterConfig = ClusterConfig()
    assign: AssignConfig = AssignConfig()
    drift: DriftConfig = DriftConfig()
    train: TrainConfig
    sweep: SweepConfig = SweepConfig()
    routing: RoutingConfig = RoutingConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    index: IndexConfig = IndexConfig()
    serve: ServeConfig = ServeConfig()
    ray: RayConfig = RayConfig()

    @model_validator(mode="after")
    def _experts_have_a_map(self) -> Self:
        if self.cluster.standing is None and self.train.experts not in self.cluster.coarse.experts:
            raise ValueError(
                f"train.experts={self.train.experts} has no coarse map: "
                f"cluster.coarse.experts is {list(self.cluster.coarse.experts)}"
            )
        return self

    @property
    def fits_nothing(self) -> bool:
        """Whether a standing clustering takes the place of a fitted one."""
        return self.cluster.standing is not None

    @property
    def directory(self) -> Location:
        """The run directory."""
        return Location.parse(self.run)
