"""The `study` command: run all points, and keep results, picture and page up to date as they are done."""

import jinja2
from rich.console import Console

from mode_ray.config.study import StudyConfig
from mode_ray.evaluate.report.render import compact
from mode_ray.evaluate.stage import load_report
from mode_ray.run_directory import stage_directories
from mode_ray.storage import Location
from mode_ray.study.plan import plan_study
from mode_ray.study.plot import study_png
from mode_ray.study.results import LinePoint, Measured, lines, measured_lines, write_results
from mode_ray.study.series import run_series
from mode_ray.tables import WideTable

STUDY_PNG = "study.png"
STUDY_HTML = "study.html"


def run_study(study: StudyConfig, console: Console) -> Location:
    """Run a study, or what is left of it; returns where its page lies.

    Raises:
        UsageError: A point is no valid config, or its directory was begun with another.
        ModeRayError: As the stages raise; points that are done stay, and the same command goes on.
    """
    points = plan_study(study)
    runs = {point.name: point.config for point in points}
    by_name = {point.name: point for point in points}
    measured: list[Measured] = []
    tasks: list[str] = []

    def take(name: str) -> None:
        point = by_name[name]
        report = load_report(stage_directories(point.config.directory)["evaluate"])
        measured.extend(measured_lines(point.label, point.seed, report))
        tasks[:] = [task["name"] for task in report["tasks"]]
        _write(study, {name: config.run for name, config in runs.items()}, measured, tasks)

    run_series(runs, console, take)
    console.print(study_table(study, lines(measured, study.labels)))
    return study.directory / STUDY_HTML


def _write(study: StudyConfig, runs: dict[str, str], measured: list[Measured], tasks: list[str]) -> None:
    about = {
        "title": study.title,
        "axis": study.axis_title,
        "labels": list(study.labels),
        "tasks": tasks,
        "runs": runs,
    }
    write_results(study.directory, about, measured)
    found = lines(measured, study.labels)
    (study.directory / STUDY_PNG).write_bytes(study_png(found, study.labels, study.axis_title, study.against))
    environment = jinja2.Environment(loader=jinja2.PackageLoader("mode_ray.study", "."), autoescape=True)
    environment.filters["compact"] = compact
    page = environment.get_template("study.html.j2").render(
        title=study.title or f"Study of {study.axis_title}",
        axis=study.axis_title,
        labels=study.labels,
        seeds=study.seeds,
        tasks=tasks,
        runs=runs,
        done=len({(one.label, one.seed) for one in measured}),
        rows={name: {point.label: point for point in points} for name, points in found.items()},
    )
    (study.directory / STUDY_HTML).write_text(page)


def study_table(study: StudyConfig, found: dict[str, list[LinePoint]]) -> WideTable:
    """The mean of every line at every value of the field."""
    table = WideTable(study.title, study.axis_title, *study.labels)
    for name, points in found.items():
        by_label = {point.label: point for point in points}
        cells = [f"{100 * by_label[label].mean:.1f}" if label in by_label else "" for label in study.labels]
        table.add_row(name, *cells)
    return table
