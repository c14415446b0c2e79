"""The `study` command: run all points. Results, picture and page are written again after each run."""

import json
from dataclasses import asdict

import jinja2
from rich.console import Console

from mode_ray.config.study import StudyConfig
from mode_ray.evaluate.report.render import compact
from mode_ray.evaluate.stage import load_report
from mode_ray.run_directory import stage_directories
from mode_ray.study.plan import StudyPoint, plan_study
from mode_ray.study.plot import study_png
from mode_ray.study.results import LinePoint, StudyResults, lines
from mode_ray.study.reuse import delete_weights
from mode_ray.study.series import run_series
from mode_ray.util.tables import WideTable

STUDY_JSON = "study.json"
STUDY_PNG = "study.png"
STUDY_HTML = "study.html"
_WIDEST_TABLE = 1000
_DIFFERENCES = "MoDE minus"
_TASK_DIFFERENCES = "MoDE minus dense, by task"


def run_study(study: StudyConfig, console: Console) -> StudyResults:
    """Run a study, or the runs that are left of it.

    Raises:
        UsageError: A point is not a valid config, or its directory was begun with another.
        ModeRayError: As the stages raise. Finished runs are kept, and the same call resumes.
    """
    points = plan_study(study)
    by_name = {point.name: point for point in points}
    results = StudyResults()

    def take(name: str) -> None:
        nonlocal results
        point = by_name[name]
        report = load_report(stage_directories(point.config.directory)["evaluate"])
        results = results.with_report(point.label, point.seed, report)
        _write(study, points, results)
        if not study.keep_models:
            delete_weights(point.config, [other.config for other in points])

    run_series({name: point.config for name, point in by_name.items()}, console, take)
    for title, rows in _tables(study, results).items():
        console.print(study_table(study, title, rows))
    return results


def _tables(study: StudyConfig, results: StudyResults) -> dict[str, dict[str, list[LinePoint]]]:
    """The tables of the study by title."""
    return {
        study.title or f"Study of {study.axis_title}": lines(results.measured, study.labels),
        _DIFFERENCES: lines(results.differences, study.labels),
        _TASK_DIFFERENCES: lines(results.task_differences("dense"), study.labels),
    }


def _write(study: StudyConfig, points: list[StudyPoint], results: StudyResults) -> None:
    runs = {point.name: point.config.run for point in points}
    about = {"title": study.title, "axis": study.axis_title, "labels": study.labels, "runs": runs}
    (study.directory / STUDY_JSON).write_text(json.dumps({**about, **asdict(results)}, indent=1))
    (main_title, found), *others = _tables(study, results).items()
    (study.directory / STUDY_PNG).write_bytes(study_png(found, study.labels, study.axis_title, study.against))
    environment = jinja2.Environment(loader=jinja2.PackageLoader("mode_ray.study", "."), autoescape=True)
    environment.filters["compact"] = compact
    page = environment.get_template("study.html.j2").render(
        title=main_title,
        axis=study.axis_title,
        labels=study.labels,
        seeds=study.seeds,
        tasks=results.tasks,
        runs=runs,
        done=len({(one.label, one.seed) for one in results.measured}),
        found=found,
        others=others,
    )
    (study.directory / STUDY_HTML).write_text(page)


def study_table(study: StudyConfig, title: str, rows: dict[str, list[LinePoint]]) -> WideTable:
    """One row per line of the reports, one column per value of the field."""
    table = WideTable(title, study.axis_title, *study.labels)
    for name, points in rows.items():
        by_label = {point.label: point for point in points}
        table.add_row(name, *(_cell(by_label.get(label)) for label in study.labels))
    return table


def _cell(point: LinePoint | None) -> str:
    if point is None:
        return ""
    return f"{100 * point.mean:.1f}" + ("" if point.deviation is None else f" ± {100 * point.deviation:.1f}")
