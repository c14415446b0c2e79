"""Evaluation tasks on Ray. One Ray task measures those over the same files; or several share the images of each."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import ray

from mode_ray.config.run import RunConfig
from mode_ray.embed.load import load_encoder
from mode_ray.evaluate.measure.measurements import TaskSummary
from mode_ray.evaluate.measure.options import MeasureOptions
from mode_ray.evaluate.tasks.samples import Split
from mode_ray.evaluate.tasks.task import Task
from mode_ray.stages.dashboard_names import shown_name
from mode_ray.storage import Location
from mode_ray.util.ray_tasks import task_result

if TYPE_CHECKING:  # it imports torch, which the driver does not need
    from mode_ray.evaluate.measure.split_features import EncodedPart

_PARTS = "parts"
_Tasks: TypeAlias = Mapping[Location, Task]
_PartBySplit: TypeAlias = "dict[Split, EncodedPart]"


def measure_tasks(
    config: RunConfig,
    tasks: _Tasks,
    models: Mapping[str, Location],
    on_summary: Callable[[TaskSummary], None],
) -> None:
    """Measure tasks, given by their output directory, with all models; `on_summary` is called for each when finished.

    A Ray task loads the models once, and embeds an image once for all of its tasks.

    Raises:
        ModeRayError: As `measure_task`.
    """
    placement = config.evaluate.placement
    options: dict[str, Any] = {
        "num_cpus": placement.cpus_per_task,
        "num_gpus": placement.gpus_per_task,
        "label_selector": placement.required_labels,
    }
    encode: Any = ray.remote(_encode_part)  # Ray has no types for varying arguments
    measure: Any = ray.remote(_measure)
    workers = range(placement.workers_per_task) if placement.workers_per_task > 1 else ()
    pending = []
    for together in _one_by_one(tasks) if workers else _over_the_same_files(tasks):
        directory, task = next(iter(together.items()))
        others = f" and {len(together) - 1} more" if len(together) > 1 else ""
        options["name"] = f"evaluate {shown_name(config.directory)} {shown_name(directory)}{others}"
        parts = [encode.options(**options).remote(config, task, models, directory, worker) for worker in workers]
        pending.append(measure.options(**options).remote(config, together, models, *parts))
    while pending:
        ready, pending = ray.wait(pending, num_returns=1)
        for summary in task_result(ready[0]):
            on_summary(summary)


def _one_by_one(tasks: _Tasks) -> list[_Tasks]:
    return [{directory: task} for directory, task in tasks.items()]


def _over_the_same_files(tasks: _Tasks) -> list[_Tasks]:
    groups: dict[tuple[str, ...], dict[Location, Task]] = {}
    for directory, task in tasks.items():
        groups.setdefault(tuple(task.paths), {})[directory] = task
    return list(groups.values())


def _encode_part(
    config: RunConfig, task: Task, models: Mapping[str, Location], directory: Location, worker: int
) -> _PartBySplit:
    import torch

    from mode_ray.evaluate.measure.known_images import KnownImages
    from mode_ray.evaluate.measure.split_features import encode_part
    from mode_ray.models.together import load_experts

    options = MeasureOptions.of(config)
    torch.set_num_threads(options.placement.threads_per_task)
    images = KnownImages(load_experts(models, precision=options.precision))
    splits: Sequence[Split] = ("test", "train") if task.linear_probe else ("test",)
    folder = directory / _PARTS / str(worker)
    return {split: encode_part(task, split, images, options, worker, folder / split) for split in splits}


def _measure(
    config: RunConfig, tasks: _Tasks, models: Mapping[str, Location], *parts: _PartBySplit
) -> list[TaskSummary]:
    import torch

    from mode_ray.evaluate.measure.known_images import KnownImages
    from mode_ray.evaluate.measure.similarities import measure_task
    from mode_ray.models.together import load_experts

    options = MeasureOptions.of(config)
    torch.set_num_threads(options.placement.threads_per_task)
    images = KnownImages(load_experts(models, precision=options.precision))
    encoder = load_encoder(config.encoder, config.embed.encoder.elsewhere, options.placement.threads_per_task)
    splits = {split: [part[split] for part in parts] for split in parts[0]} if parts else None
    summaries = []
    for directory, task in tasks.items():
        summaries.append(measure_task(task, images, encoder, directory, options, splits))
        if parts:
            (directory / _PARTS).delete()
    return summaries
