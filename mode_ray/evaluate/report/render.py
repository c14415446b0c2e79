"""The evaluation report as a self-contained HTML file and as a terminal table, from JSON data.

Metrics are fractions between 0 and 1, shown as per cent. Samples are image-text pairs seen in training.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jinja2
from markupsafe import Markup
from rich.text import Text

from mode_ray.evaluate.metrics.intervals import RESAMPLES, mean_row
from mode_ray.evaluate.metrics.score import difference_margin, macro_mean
from mode_ray.evaluate.report.plots import (
    EXPERT_COLORS,
    Curve,
    difference_figure,
    loss_figure,
    pruning_figure,
    size_histogram,
    thumbnail_uris,
)
from mode_ray.evaluate.report.pruning import pruning_steps
from mode_ray.evaluate.report.schema import DifferenceRow, IntervalRow, ModelRow, ReportData, TaskRow, check_report
from mode_ray.train.plan import DENSE_RUNS
from mode_ray.util.tables import WideTable

Outcome = Literal["win", "tie", "loss", "unknown"]
_CHOSEN_BY_LABELS = ("best_expert", "oracle")

MAX_CAPTION_CHARACTERS = 110
MAX_CLASSES_SHOWN = 40
MAX_CLUSTER_CAPTIONS = 6000
_SHOWN_AS_NOTHING = 5e-4
_DASH, _MINUS, _TIMES = "\N{EN DASH}", "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"


@dataclass(frozen=True, kw_only=True)
class ResultRow:
    """One row of the main table.

    Attributes:
        model: The model or ensemble.
        scores: Main metric of every task; None if it was not measured.
        mean: Mean over tasks; None if a task is missing.
        change: Mean minus the mean of the dense model.
        best: Whether this is the best competing row, by task and last for the mean.
        cost: Total samples relative to those of the dense model.
    """

    model: ModelRow
    scores: tuple[float | None, ...]
    mean: float | None
    change: float | None
    best: tuple[bool, ...]
    cost: float | None

    @property
    def competes(self) -> bool:
        """Whether it could be deployed. A choice by test labels could not."""
        return self.model["kind"] not in _CHOSEN_BY_LABELS


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The comparison of MoDE with the dense model.

    Attributes:
        outcome: The outcome. `tie`: the difference of the means is within the sampling error of the test sets.
        sentence: One sentence for the top of the report.
        remarks: Limits and explanations of the result.
    """

    outcome: Outcome
    sentence: str
    remarks: tuple[str, ...]


def result_rows(data: ReportData) -> list[ResultRow]:
    """The main table, in the order of `models`."""
    models, names = data["models"], [task["name"] for task in data["tasks"]]
    scores = [tuple(_score(model, task) for task in data["tasks"]) for model in models]
    means = [macro_mean(dict(zip(names, row, strict=True))) for row in scores]
    cells = [(*row, mean) for row, mean in zip(scores, means, strict=True)]
    fair = [row for row, model in zip(cells, models, strict=True) if model["kind"] not in _CHOSEN_BY_LABELS]
    columns = [[row[column] for row in fair] for column in range(len(names) + 1)]
    highest = [max((cell for cell in column if cell is not None), default=None) for column in columns]
    dense = next((index for index, model in enumerate(models) if model["kind"] == "dense"), None)
    dense_mean = None if dense is None else means[dense]
    dense_total = None if dense is None else models[dense].get("samples_total")
    rows = []
    for index, model in enumerate(models):
        mean, total, oracle = means[index], model.get("samples_total"), model["kind"] in _CHOSEN_BY_LABELS
        pairs = zip(cells[index], highest, strict=True)
        best = tuple(cell is not None and cell == high and not oracle for cell, high in pairs)
        change = None if mean is None or dense_mean is None or index == dense else mean - dense_mean
        cost = total / dense_total if total and dense_total else None
        own = scores[index]
        rows.append(ResultRow(model=model, scores=own, mean=mean, change=change, best=best, cost=cost))
    return rows


def verdict(data: ReportData) -> Verdict:
    """Whether MoDE under the rule of the config beats the dense model, by how much, and how certain that is."""
    rows = result_rows(data)
    mode = next((r for r in rows if r.model["kind"] == "mode" and r.model.get("rule") == data["rule"]), None)
    dense = next((r for r in rows if r.model["kind"] == "dense"), None)
    if mode is None:
        return _undecided(f"No MoDE ensemble under the rule {data['rule']} was evaluated.")
    if dense is None:
        level = "" if mode.mean is None else f"; {mode.model['name']} averages {percent(mode.mean)} %"
        nothing = f"No dense baseline was trained, so there is no comparison{level}."
        return _undecided(nothing, [*_left_out(data), *_comparisons(rows, mode)])
    columns = zip(mode.scores, dense.scores, data["tasks"], strict=True)
    pairs = [(m, d, task["items"]) for m, d, task in columns if m is not None and d is not None]
    if not pairs:
        return _undecided(f"{mode.model['name']} and the dense model have no measured task in common.")
    outcome, sentence, noise = _gain(mode, pairs, _resampled(data, mode))
    noise += " One training seed: the noise between seeds is not measured. It may be larger."
    return Verdict(outcome=outcome, sentence=sentence, remarks=(noise, *_left_out(data), *_comparisons(rows, mode)))


def render_report(report: Mapping[str, Any], thumbnails: Mapping[int, Sequence[bytes]] | None = None) -> str:
    """The report as one HTML page without network access and scripts.

    Args:
        report: A `ReportData`. Its texts are untrusted and escaped.
        thumbnails: A few small PNG or JPEG files of training images of every expert.

    Raises:
        DataError: A field is missing or has a wrong type; the message names it.
    """
    data = check_report(report)
    clusters = data.get("fine_clusters", [])
    steps = pruning_steps(data.get("pruning", []))
    curves = [
        Curve(row["samples"], row["loss"], row.get("expert"), dashed=row.get("kind") in DENSE_RUNS)
        for row in data.get("losses", [])
    ]
    chosen, probes = _chosen_differences(data), data.get("linear_probes", {}).values()
    template = _environment().get_template("report.html.j2")
    return template.render(
        data=data,
        rows=result_rows(data),
        verdict=verdict(data),
        colors=EXPERT_COLORS,
        classes_shown=MAX_CLASSES_SHOWN,
        captions_each=max(1, min(6, MAX_CLUSTER_CAPTIONS // max(1, len(clusters)))),
        thumbnails=thumbnail_uris(thumbnails or {}),
        histogram=Markup(size_histogram([c["rows"] for c in clusters])) if clusters else None,  # noqa: S704
        loss_plot=Markup(loss_figure(curves)) if curves else None,  # noqa: S704
        probed=[task for task in data["tasks"] if any(task["name"] in scores for scores in probes)],
        intervals=_by_model(data.get("intervals", [])),
        resamples=RESAMPLES,
        difference_plot=Markup(difference_figure(chosen)) if chosen else None,  # noqa: S704
        pruning=steps,
        pruning_plot=Markup(pruning_figure(steps)) if steps else None,  # noqa: S704
    )


def results_table(report: Mapping[str, Any]) -> WideTable:
    """The main table for the terminal, best values bold.

    Raises:
        DataError: As for `render_report`.
    """
    data = check_report(report)
    tasks = [f"{task['name']}\n{task['metric']}" for task in data["tasks"]]
    headings = ("model", *tasks, "mean", "vs dense", "samples", "in all")
    table = WideTable(data["title"], *headings, caption=verdict(data).sentence)
    for row in result_rows(data):
        cells = [
            Text(percent(value), style="bold" if best else "")
            for value, best in zip((*row.scores, row.mean), row.best, strict=True)
        ]
        samples = [compact(row.model.get("samples_seen")), compact(row.model.get("samples_total"))]
        style = "" if row.competes else "dim"
        table.add_row(row.model["name"], *cells, signed(row.change), *samples, style=style)
    return table


def percent(fraction: float | None, digits: int = 1) -> str:
    """A fraction in per cent, without the sign: 0.4427 as 44.3."""
    return _DASH if fraction is None else f"{fraction * 100:.{digits}f}"


def signed(fraction: float | None) -> str:
    """A difference of fractions in points, with a sign unless it is shown as zero: 0.019 as +1.9."""
    if fraction is None:
        return _DASH
    points = f"{fraction * 100:+.1f}"
    return "0.0" if float(points) == 0.0 else points.replace("-", _MINUS)


def direction(fraction: float | None) -> str:
    """The CSS class of a difference: `up` or `down`; empty if it is shown as zero."""
    return {"+": "up", _MINUS: "down"}.get(signed(fraction)[0], "")


def compact(count: float | None) -> str:
    """A count with three digits: 12800000 as 12.8 M."""
    if count is None:
        return _DASH
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= 0.9995 * size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f}"


def duration(seconds: float) -> str:
    """A time in seconds, minutes or hours: 4210 as 1 h 10 min."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


def clipped(text: str) -> str:
    """A caption on one line, truncated if it is long."""
    plain = " ".join(text.split())
    return plain if len(plain) <= MAX_CAPTION_CHARACTERS else plain[: MAX_CAPTION_CHARACTERS - 1] + "…"


def _by_model(rows: Sequence[IntervalRow]) -> dict[str, list[IntervalRow]]:
    found: dict[str, list[IntervalRow]] = {}
    for row in rows:
        found.setdefault(row["model"], []).append(row)
    return found


def _chosen_differences(data: ReportData) -> dict[str, DifferenceRow]:
    """The ensemble under the rule of the config against the dense model, by task and last for the mean."""
    mode = next((m["name"] for m in data["models"] if m["kind"] == "mode" and m.get("rule") == data["rule"]), None)
    rows = [row for row in data.get("intervals", []) if row["model"] == mode and "against_dense" in row]
    return {row["task"] or "Mean": row["against_dense"] for row in rows}


def _left_out(data: ReportData) -> list[str]:
    missing = data.get("missing_experts", [])
    if not missing:
        return []
    numbers = ", ".join(map(str, missing))
    return [f"Experts left out by the config: {numbers}. The weights of the others are scaled to sum to 1."]


def _undecided(sentence: str, remarks: Sequence[str] = ()) -> Verdict:
    return Verdict(outcome="unknown", sentence=sentence, remarks=tuple(remarks))


def _resampled(data: ReportData, mode: ResultRow) -> DifferenceRow | None:
    row = mean_row(data.get("intervals", []), mode.model["name"])
    return None if row is None else row.get("against_dense")


def _gain(
    mode: ResultRow, pairs: Sequence[tuple[float, float, int]], resampled: DifferenceRow | None
) -> tuple[Outcome, str, str]:
    """The outcome, the sentence and the sampling noise, from resampling or else from a binomial bound."""
    mode_mean = sum(m for m, _, _ in pairs) / len(pairs)
    dense_mean = sum(d for _, d, _ in pairs) / len(pairs)
    gain, wins = mode_mean - dense_mean, sum(m > d for m, d, _ in pairs)
    if resampled is None:
        margin = difference_margin(pairs)
        open_ = abs(gain) <= margin
        noise = f"The sampling error of the test sets on this difference is up to ±{margin * 100:.1f} points (95 %)."
    else:
        low, high = resampled["low"], resampled["high"]
        open_ = low <= 0 <= high
        noise = f"On resampled test images the difference is between {signed(low)} and {signed(high)} points (95 %)."
    outcome: Outcome = "tie" if open_ or abs(gain) <= _SHOWN_AS_NOTHING else "win" if gain > 0 else "loss"
    name, points, side = mode.model["name"], f"{abs(gain) * 100:.1f} points", "above" if gain > 0 else "below"
    claim = {
        "win": f"{name} beats the dense model by {points}",
        "loss": f"{name} does not win: it is {points} below the dense model",
        "tie": f"{name} does not win clearly: it is {points} {side} the dense model, within sampling error",
    }[outcome]
    cost = f", for {mode.cost:.2f}{_TIMES} the training samples" if mode.cost is not None else ""
    levels = f"{percent(mode_mean)} % against {percent(dense_mean)} % on average"
    return outcome, f"{claim}{cost} ({levels}, ahead in {wins} of {len(pairs)} tasks).", noise


def _comparisons(rows: Sequence[ResultRow], mode: ResultRow) -> list[str]:
    """Comparisons with the other rows that were measured on all tasks, which explain the gain."""
    remarks = []
    for row in rows:
        if row is mode or row.mean is None or mode.mean is None:
            continue
        kind, name, level = row.model["kind"], row.model["name"], f"{percent(row.mean)} %"
        gain = mode.mean - row.mean
        if kind == "mode" and row.model.get("rule") == "uniform":
            helps = "Routing" if gain > 0 else "Routing does not help"
            remarks.append(f"{helps}: {signed(gain)} points against the uniform mean of the experts ({level}).")
        elif kind == "mode" and gain < 0:
            remarks.append(f"{name} is better ({level}), but this rule was not chosen in advance.")
        elif kind == "random":
            helps = "Clustering" if gain > 0 else "Clustering does not help"
            remarks.append(f"{helps}: {signed(gain)} points against {name}, with randomly distributed rows ({level}).")
        elif kind == "dense_equal_total":
            remarks.append(f"At equal total samples: {signed(gain)} points against one dense model ({level}).")
        elif kind == "wide":
            what = f"against one model as wide as all experts ({level})"
            remarks.append(f"At equal trained parameters: {signed(gain)} points {what}.")
        elif kind == "clustered":
            what = f"against one dense model with batches of one cluster at a time ({level})"
            remarks.append(f"Experts beyond such batches: {signed(gain)} points {what}.")
        elif kind == "full":
            what = f"against {name}, models on all data in different orders ({level})"
            remarks.append(f"Specialisation: {signed(gain)} points {what}.")
        elif kind == "oracle" and gain < 0:
            remarks.append(f"The best expert of each task, chosen by test labels, would reach {level}.")
    return remarks


def _score(model: ModelRow, task: TaskRow) -> float | None:
    value = model["metrics"].get(task["name"], {}).get(task["metric"])
    return None if value is None or math.isnan(value) else value


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mode_ray.evaluate.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for shown in (percent, signed, direction, compact, duration, clipped):
        environment.filters[shown.__name__] = shown
    return environment
