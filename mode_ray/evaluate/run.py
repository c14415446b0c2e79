"""The evaluate stage: measure all models on all tasks, compare, and write the report."""

import json
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import ray

from mode_ray.captions.shards import Shard
from mode_ray.cluster.clustering import Clustering
from mode_ray.config import RunConfig
from mode_ray.encoders.encoder import load_encoder
from mode_ray.errors import ModeRayError, UsageError
from mode_ray.evaluate.compare import TaskResults, compare
from mode_ray.evaluate.measurements import TaskCosines, TaskSummary, load_cosines, load_summary
from mode_ray.evaluate.report import ReportData, render_report
from mode_ray.evaluate.report_data import ReportSources, report_data
from mode_ray.evaluate.tasks import Task, load_tasks
from mode_ray.stage import Manifest, Stage, UnitRecord, read_manifest
from mode_ray.storage import Location
from mode_ray.train.budget import SEED, Trial, expert_name
from mode_ray.train.trial import trials_of

REPORT_JSON = "report.json"
REPORT_HTML = "report.html"


def run_evaluate(
    config: RunConfig,
    stage: Stage,
    shards: Sequence[Shard],
    directories: Mapping[str, Location],
    on_record: Callable[[UnitRecord], None],
) -> Manifest:
    """Run the evaluate stage; tasks that are measured already are not measured again.

    Args:
        config: The run's config.
        stage: The stage.
        shards: The run's input, for sample captions and images in the report.
        directories: Of all stages, by name.
        on_record: Called for every task as it is done.

    Raises:
        UsageError: The train stage is not done.
        DataError: A task or model cannot be read.
    """
    tasks = load_tasks(config.evaluate.tasks)
    stage.begin(len(tasks))
    clustering = Clustering.load(directories["cluster"])
    trained = read_manifest(directories["train"])
    if trained is None:
        raise UsageError(f"{directories['train']}: the train stage is not done: run `mode-ray train` first")
    # As they were trained: those of another run had other budgets than this one plans.
    trials, pairs_n = trials_of(trained), np.array(trained.summary["pairs_by_expert"])
    models = {trial.name: directories["train"] / trial.name for trial in trials if trial.name != SEED}
    records = _measure(config, stage, tasks, models, on_record)
    measured = {task.name: load_cosines(stage.directory / "tasks" / task.name) for task in tasks}
    results = {task.name: _compare(config, task, measured[task.name], clustering, trials) for task in tasks}
    sources = ReportSources(config, shards, directories, clustering, trials, pairs_n, tasks, measured, results)
    data = report_data(sources)
    (stage.directory / REPORT_JSON).write_text(json.dumps(data, indent=1))
    (stage.directory / REPORT_HTML).write_text(render_report(data, sources.thumbnails()))
    return stage.finish(records, {"report": (stage.directory / REPORT_HTML).uri})


def load_report(directory: Location) -> ReportData:
    """The data of a finished evaluation."""
    data: ReportData = json.loads((directory / REPORT_JSON).read_text())
    return data


def _measure(
    config: RunConfig,
    stage: Stage,
    tasks: Sequence[Task],
    models: Mapping[str, Location],
    on_record: Callable[[UnitRecord], None],
) -> list[UnitRecord]:
    """Measure what is not measured yet, each task in a Ray task of its own."""
    placement = config.evaluate.placement
    remote = ray.remote(_measure_one).options(num_cpus=placement.cpus_per_task, num_gpus=placement.gpus_per_task)
    directories = {task.name: stage.directory / "tasks" / task.name for task in tasks}
    summaries = {name: load_summary(directory) for name, directory in directories.items()}
    pending = {
        remote.remote(config, task, models, directories[task.name]): task
        for task in tasks
        if summaries[task.name] is None
    }
    records = [_record(summary, stage) for summary in summaries.values() if summary is not None]
    for record in records:
        on_record(record)
    while pending:
        ready, _ = ray.wait(list(pending), num_returns=1)
        pending.pop(ready[0])
        try:
            records.append(_record(ray.get(ready[0]), stage))
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, ModeRayError):
                raise error.cause from None
            raise
        on_record(records[-1])
    return records


def _measure_one(config: RunConfig, task: Task, models: Mapping[str, Location], directory: Location) -> TaskSummary:
    from mode_ray.evaluate.similarities import measure_task  # needs torch, which the driver has no use for

    placement = config.evaluate.placement
    encoder = load_encoder(config.encoder, config.embed.encoder, placement.threads_per_task)
    return measure_task(task, models, encoder, directory, placement, config.limits.max_image_pixels)


def _compare(
    config: RunConfig, task: Task, measured: TaskCosines, clustering: Clustering, trials: Sequence[Trial]
) -> TaskResults:
    n = config.train.experts
    names = {trial.name for trial in trials}
    random_models = [expert_name(n, expert, random=True) for expert in range(n)]
    return compare(
        task,
        measured,
        experts=[expert_name(n, expert) for expert in range(n)],
        random_models=[name for name in random_models if name in names],
        centers_md=clustering.centers_md,
        group_m=clustering.coarse[n],
        routing=config.routing,
        rules=config.evaluate.rules,
    )


def _record(summary: TaskSummary, stage: Stage) -> UnitRecord:
    return UnitRecord(
        unit=summary.task,
        source=(stage.directory / "tasks" / summary.task).uri,
        rows_in=summary.images + sum(summary.skipped.values()),
        rows_out=summary.images,
        refused=summary.skipped,
        examples=summary.examples,
        attempt=stage.attempt,
    )
