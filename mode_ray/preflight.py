"""Checks before the first stage: what a later stage would only find after hours of earlier ones."""

from collections.abc import Callable, Collection, Mapping

from mode_ray.captions.parquet import open_parquet
from mode_ray.config.run import RunConfig
from mode_ray.embed.available import require_encoder
from mode_ray.errors import DataError, UsageError
from mode_ray.models.check import check_model
from mode_ray.stages.run import Run
from mode_ray.stages.session import joins_cluster
from mode_ray.stages.work_unit import require_images
from mode_ray.util.devices import CudaState, cuda_state, require_cuda


def check_stages(run: Run, stages: Collection[str], cuda: Callable[[], CudaState] = cuda_state) -> None:
    """Check what some stages need besides the outputs of the stages before; task files are read with the config.

    Args:
        run: The run.
        stages: The stages to be run, without those that are done.
        cuda: The state of this machine's GPUs, asked only if the cluster is started here and a stage needs GPUs.

    Raises:
        UsageError: A required field is missing, the batch does not fit the budget, there are no images, or the
            encoder, architecture, checkpoint, locks or GPUs cannot be used.
    """
    config = run.config
    budget = config.train.budget_samples if "train" in stages else None
    if {"features", "train"} & set(stages):
        require_images(run.work_units)
        _require_image_column(run)
    if budget is not None:
        _require_room_for_a_batch(config.train.batch_size, budget)
    if "evaluate" in stages and not config.evaluate.tasks:
        raise UsageError(
            "evaluate.tasks is empty: name at least one task file (docs/tasks.md), or stop before with `--until train`"
        )
    # The nodes of a cluster have caches of their own: there, the workers check the encoder.
    if not joins_cluster(config.ray):
        check_gpus({stage: gpus for stage, gpus in gpus_of_stages(config).items() if stage in stages}, cuda)
    if _encodes(run, stages) and not joins_cluster(config.ray):
        require_encoder(config.encoder)
    if {"features", "train"} & set(stages):
        check_model(config.train)


def gpus_of_stages(config: RunConfig) -> dict[str, tuple[str, float]]:
    """By stage, the config field that asks for GPUs, and how many one of its processes needs."""
    train = config.train.placement
    return {
        "embed": ("embed.pool.gpus_per_actor", config.embed.pool.gpus_per_actor),
        "cluster": ("cluster.placement.gpus", config.cluster.placement.gpus),
        "assign": ("assign.pool.gpus_per_actor", config.assign.pool.gpus_per_actor),
        "features": ("features.pool.gpus_per_actor", config.features.pool.gpus_per_actor),
        "train": ("train.placement.gpus_per_worker", train.gpus_per_worker if train.use_gpu else 0.0),
        "evaluate": ("evaluate.placement.gpus_per_task", config.evaluate.placement.gpus_per_task),
    }


def check_gpus(asked: Mapping[str, tuple[str, float]], cuda: Callable[[], CudaState]) -> None:
    """Check that this machine has the GPUs that its stages ask for; Ray would wait for them without an end.

    Raises:
        UsageError: It has not; the message names the first such field.
    """
    needed = [(field, gpus) for field, gpus in asked.values() if gpus > 0]
    if not needed:
        return
    state = require_cuda(f"{needed[0][0]}={needed[0][1]:g}", cuda)
    for field, gpus in needed:
        if gpus > state.gpus:
            raise UsageError(
                f"{field}={gpus:g}: this machine has {state.gpus} usable GPUs; lower it, or join a cluster"
            )


def _require_room_for_a_batch(batch: int, budget: int) -> None:
    if batch > budget:
        raise UsageError(
            f"train.batch_size={batch:,} is above train.dense_samples={budget:,}, so the budget has no room for one "
            f"step: set train.batch_size to a small part of the budget, for example {max(1, budget // 100):,}"
        )


def _encodes(run: Run, stages: Collection[str]) -> bool:
    """Whether one of the stages loads the caption encoder."""
    return (
        ("embed" in stages and not run.embeds_nothing)
        or ("cluster" in stages and run.config.reuses_clustering)
        or ("assign" in stages and run.config.embed.keep == "sample")
        or "evaluate" in stages
    )


def _require_image_column(run: Run) -> None:
    """Check the image column of the first parquet shard. Other shards are checked when they are read."""
    first = next((unit for unit in run.work_units if unit.format == "parquet"), None)
    if first is None:
        return
    field = run.config.captions.image_field
    try:
        names = open_parquet(first).schema_arrow.names
    except DataError:
        return  # the embed stage quarantines it with the reason
    if field not in names:
        raise UsageError(f"{first.uri}: no column {field!r} with images; set captions.image_field to one of {names}")
