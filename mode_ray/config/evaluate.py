"""The sections `routing`, `evaluate` and `index`: how the trained experts are used and measured."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from mode_ray.config.base import ActorPool, LabelledPlacement, Placement, PositiveFloat, PositiveInt, Settings, Strings

RoutingRule = Literal["calibrated", "soft", "paper", "released", "uniform"]


class RoutingConfig(Settings):
    """From a task's texts to weights over experts (paper section 3.3; formulas in mode_ray.routing.weights)."""

    rule: RoutingRule = "calibrated"
    """`calibrated` is `soft` with a temperature that the cluster stage fitted to the encoder without labels."""
    temperature: PositiveFloat = 0.1
    """lambda of `soft`, and of `calibrated` if the clustering has no fitted temperature."""
    paper_lambda: PositiveFloat = 0.2
    small_task_below: PositiveInt = 10
    large_task_above: PositiveInt = 200
    large_task_log_base: Annotated[float, Field(gt=1.0)] = 2.718281828459045
    released_softmax_temperature: PositiveFloat = 8.0


class EvaluatePlacement(LabelledPlacement):
    """Speed of the evaluation."""

    batch_size: PositiveInt = 256
    cpus_per_task: PositiveFloat = 1.0
    threads_per_task: PositiveInt = 2
    gpus_per_task: Annotated[float, Field(ge=0.0)] = 0.0
    workers_per_task: PositiveInt = 1
    """Ray tasks that share the images of one large evaluation task. Each loads all models and reads all of the task's
    files, but decodes and encodes only its own share of the images."""
    max_image_pixels: PositiveInt | None = None
    """Larger images of the tasks are refused before they are decoded, and counted. Default:
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
    """Experts to evaluate without, because they failed to train or their models are missing or damaged. The weights of
    the others are scaled to sum to 1, and the report says so. May change at any time. `index` and `search` use it
    too."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Arithmetic of the models. bfloat16 is several times as fast on GPUs, and changes cosines by less than 0.001."""
    placement: EvaluatePlacement = EvaluatePlacement()
    added: ClassVar[frozenset[str]] = frozenset({"precision"})


class IndexPlacement(Placement):
    """Speed of the image encoders of an index."""

    batch_size: PositiveInt = 64
    device: str = "auto"


class IndexConfig(Settings):
    """The image index of `mode-ray index`; docs/retrieval.md has the guide."""

    images: Strings = ()
    """Parquet or WebDataset files, directories or globs with the images; by default `captions.paths`. Format and
    fields are those of `captions`."""
    max_rows_per_unit: PositiveInt = 10_000
    """A parquet file with more rows is split by row groups. An actor holds the encoded images of two units."""
    rows_per_part: PositiveInt = 262_144
    """Images of one faiss file. One such file is in memory at a time while the index is built."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Arithmetic of the image encoders. The vectors are stored as before."""
    pool: ActorPool = ActorPool()
    placement: IndexPlacement = IndexPlacement()
    added: ClassVar[frozenset[str]] = frozenset({"precision"})
