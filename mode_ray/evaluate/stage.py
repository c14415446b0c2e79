"""The evaluate stage: measure all models on all tasks, compare, and write the report."""

import json
from collections.abc import Callable, Mapping, Sequence

from mode_ray.atlas.summary import near_captions, read_summary
from mode_ray.cluster.calibration import calibration_of
from mode_ray.cluster.clustering import Clustering
from mode_ray.config.base import fingerprint_fields
from mode_ray.config.run import RunConfig
from mode_ray.embed.encoder import encoder_name
from mode_ray.errors import DataError
from mode_ray.evaluate.measure.measurements import TaskCosines, TaskSummary, load_cosines, load_summary
from mode_ray.evaluate.measure.models import Trained, check_models, find_trained
from mode_ray.evaluate.measure.spread import measure_tasks
from mode_ray.evaluate.report.compare import Router, TaskResults, compare
from mode_ray.evaluate.report.data import report_data
from mode_ray.evaluate.report.schema import ReportData
from mode_ray.evaluate.report.sources import ReportSources, read_thumbnails
from mode_ray.evaluate.tasks.task import Task, load_tasks
from mode_ray.routing.router import expert_centers
from mode_ray.run_directory import FINE_FILE, REPORT_HTML, REPORT_JSON, ROUTING_FILE, measured_task, stage_directories
from mode_ray.stages.manifest import Manifest, Stage, UnitRecord, combined_hash
from mode_ray.stages.run import Run, StageReport
from mode_ray.storage import Location
from mode_ray.train.plan import SEED, Trial, expert_name


def evaluate_fields(run: Run) -> dict[str, object]:
    """The fields that decide the report."""
    tasks = [task.model_dump_json() for task in load_tasks(run.config.evaluate.tasks)]
    return {
        **fingerprint_fields(run.config.routing, "routing"),
        **fingerprint_fields(run.config.evaluate, "evaluate"),
        "evaluate (content of the tasks)": combined_hash(tasks),
    }


def run_evaluate(run: Run, stage: Stage, report: StageReport) -> Manifest:
    """Run the evaluate stage; tasks that are measured already are not measured again.

    Raises:
        UsageError: A model is not trained that is not left out.
        DataError: A task or model cannot be read.
    """
    config = run.config
    tasks = load_tasks(config.evaluate.tasks)
    trained = _find_trained(config, run.experts)
    models = {trial.name: run.experts / trial.name for trial in trained.trials if trial.name != SEED}
    Clustering.load_for(run.clusters, encoder_name(config.encoder))
    check_models(config.train.experts, models)
    stage.begin(len(tasks))
    records = _measure(config, stage, tasks, models, report.unit)
    write_report(run, stage.directory)
    report.routing(routing_entropies(stage.directory))
    return stage.finish(records, {"report": (stage.directory / REPORT_HTML).uri})


def write_report(run: Run, target: Location) -> None:
    """Compare all models and rules from what was measured, and write the report; no model runs.

    Args:
        run: The run; its routing may be another than that of the evaluation that measured.
        target: Where the report goes.

    Raises:
        UsageError: A model is not trained that is not left out.
        DataError: The clustering is of another encoder, a task is not measured, or the atlas summary is damaged.
    """
    config = run.config
    clustering = Clustering.load_for(run.clusters, encoder_name(config.encoder))
    trained = _find_trained(config, run.experts)
    centers = len(clustering.centers_md)
    calibration = calibration_of(clustering, config.train.experts)
    tasks = load_tasks(config.evaluate.tasks)
    measured, results = compare_tasks(run, tasks, clustering, trained.trials)
    sources = ReportSources(
        config=config,
        work_units=run.work_units,
        directories=stage_directories(run.directory),
        clustering=clustering,
        captions=near_captions(read_summary(run.clusters, centers), centers),
        trials=trained.trials,
        pairs_n=trained.pairs_n,
        tasks=tasks,
        measured=measured,
        results=results,
        calibration=calibration,
    )
    from mode_ray.evaluate.report.render import render_report  # imports matplotlib

    data = report_data(sources)
    (target / REPORT_JSON).write_text(json.dumps(data, indent=1))
    (target / REPORT_HTML).write_text(render_report(data, read_thumbnails(sources)))


def compare_tasks(
    run: Run, tasks: Sequence[Task], clustering: Clustering, trials: Sequence[Trial]
) -> tuple[dict[str, TaskCosines], dict[str, TaskResults]]:
    """What was measured on each task, without the cosines, and the results, both by task."""
    router = Router(
        centers=expert_centers(clustering, run.config.train.experts),
        config=run.config.routing,
        missing=run.config.evaluate.leave_out_experts,
    )
    measured, results = {}, {}
    for task in tasks:
        measured[task.name], results[task.name] = _compare(run, task, router, trials)
    return measured, results


def load_report(directory: Location) -> ReportData:
    """The data of a finished evaluation."""
    data: ReportData = json.loads((directory / REPORT_JSON).read_text())
    return data


def routing_entropies(directory: Location) -> dict[str, float]:
    """Normalised entropy of the expert weights by task, under the config's own rule, of a finished evaluation."""
    report = load_report(directory)
    rows = [row for row in report.get("routing", []) if row["rule"] == report["rule"]]
    return {row["task"]: row["normalised_entropy"] for row in rows}


def _find_trained(config: RunConfig, directory: Location) -> Trained:
    return find_trained(config.train.experts, config.evaluate.leave_out_experts, directory)


def _check_dimension(measured: TaskCosines, router: Router, place: Location, clusters: Location) -> None:
    found, expected = measured.routing_texts_ld.shape[1], router.centers.centers_md.shape[1]
    if found != expected:
        raise DataError(
            f"{place / ROUTING_FILE}: text embeddings of {found} dimensions, but the centers of "
            f"{clusters / FINE_FILE} have {expected}: they are of different encoders; "
            f"delete {place} and evaluate again"
        )


def _measure(
    config: RunConfig,
    stage: Stage,
    tasks: Sequence[Task],
    models: Mapping[str, Location],
    on_record: Callable[[UnitRecord], None],
) -> list[UnitRecord]:
    """Measure what is not measured yet with all of these models."""
    records: list[UnitRecord] = []

    def done(summary: TaskSummary) -> None:
        records.append(_record(summary, stage))
        on_record(records[-1])

    left: dict[Location, Task] = {}
    for task in tasks:
        directory = measured_task(stage.directory, task.name)
        summary = load_summary(directory)
        if summary is not None and summary.covers(models):
            done(summary)
        else:
            left[directory] = task
    measure_tasks(config, left, models, done)
    return records


def _compare(run: Run, task: Task, router: Router, trials: Sequence[Trial]) -> tuple[TaskCosines, TaskResults]:
    """A task's results, and its measurements without the cosines, which are freed before the next task is read."""
    place = measured_task(run.evaluation, task.name)
    measured = load_cosines(place)
    _check_dimension(measured, router, place, run.clusters)
    n = run.config.train.experts
    controls: dict[str, list[str]] = {}
    for trial in trials:
        if trial.role in ("full", "random"):
            controls.setdefault(trial.role, []).append(trial.name)
    results = compare(
        task,
        measured,
        experts=[expert_name(n, expert) for expert in range(n)],
        controls=controls,
        router=router,
        rules=run.config.evaluate.rules,
    )
    return measured.without_cosines(), results


def _record(summary: TaskSummary, stage: Stage) -> UnitRecord:
    return UnitRecord(
        unit=summary.task,
        source=measured_task(stage.directory, summary.task).uri,
        rows_in=summary.images + sum(summary.skipped.values()),
        rows_out=summary.images,
        refused=summary.skipped,
        examples=summary.examples,
        attempt=stage.attempt,
    )
