"""The pictures and tables of docs/science.md, from the finished study of `science.py --heads --final`.

    .venv/bin/python benchmarks/science_page.py science-runs/heads-final --to docs

Three pictures: scores over the number of samples; MoDE-4 minus each other model; MoDE-4 minus dense by task. The
tables are printed as Markdown. Differences are paired by seed. The interval of the mean difference is a bootstrap over
the test images, the same resamples for both models and all seeds.
"""

import argparse
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mode_ray.cluster.clustering import Clustering
from mode_ray.config.load import load_config, with_values
from mode_ray.embed.encoder import encoder_name
from mode_ray.evaluate.metrics.bootstrap import percentile_interval
from mode_ray.evaluate.report.schema import ReportData
from mode_ray.evaluate.stage import compare_tasks, load_report
from mode_ray.evaluate.tasks.task import load_tasks
from mode_ray.pipeline import open_run
from mode_ray.storage import Location
from mode_ray.study.plot import png_of
from mode_ray.study.results import Measured
from mode_ray.train.runs.trial import planned_trials_of, training_summary

BASE, BASE_SAMPLES = "mode4", 131_072
CURVE = {BASE: BASE_SAMPLES} | {f"samples {n}": n for n in (32_768, 65_536, 262_144, 524_288, 1_048_576)}
DENSE, MODE = "dense", "MoDE-n (calibrated)"
CURVE_LINES = {DENSE: "dense", MODE: "MoDE-4", "MoDE-n (uniform)": "MoDE-4, uniform weights"}
NAMES = {
    MODE: "MoDE-4 (calibrated)",
    "MoDE-n (soft)": "MoDE-4 (soft)",
    "MoDE-n (paper)": "MoDE-4 (paper)",
    "MoDE-n (released)": "MoDE-4 (released)",
    "MoDE-n (uniform)": "MoDE-4 (uniform)",
    "Full-n": "Full-4 (uniform)",
    "Random-n": "Random-4 (uniform)",
}
RULE = "calibrated"


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean in points, and the standard error of the mean; not a number with one value."""
    deviation = statistics.stdev(values) if len(values) > 1 else math.nan
    return 100 * statistics.fmean(values), 100 * deviation / math.sqrt(len(values))


def means_of(found: Sequence[Measured], label: str, line: str) -> list[float]:
    """Means over the tasks of one line at one point, seed by seed."""
    return [one.mean for one in found if (one.label, one.line) == (label, line) and one.mean is not None]


def lines_of(found: Sequence[Measured], label: str) -> list[str]:
    """The lines that were measured at a point."""
    return list(dict.fromkeys(one.line for one in found if one.label == label))


def draws_of_run(directory: str) -> np.ndarray:
    """The difference from dense of the mean over tasks, on resamples of the test images."""
    run = open_run(with_values(load_config(f"{directory}/config.yaml"), {"evaluate.rules": [RULE]}))
    summary = training_summary(run.experts)
    if summary is None:
        raise SystemExit(f"{directory}: not trained")
    clustering = Clustering.load_for(run.clusters, encoder_name(run.config.encoder))
    tasks = load_tasks(run.config.evaluate.tasks)
    _, results = compare_tasks(run, tasks, clustering, planned_trials_of(summary))
    draws: np.ndarray = np.mean([one.draws[RULE] - one.draws[DENSE] for one in results.values()], axis=0)
    return draws


def pruned_rows(reports: Sequence[ReportData], dense: Sequence[float]) -> list[list[str]]:
    """Rows of the table of pruning: which experts of a task run, how many those are, and the score, over the seeds."""
    rows = []
    for keep, value in dict.fromkeys((one["keep"], one["value"]) for one in reports[0]["pruning"]):
        kept = [
            [one for one in report["pruning"] if (one["keep"], one["value"]) == (keep, value)] for report in reports
        ]
        scores = [statistics.fmean(one["score"] for one in of_seed) for of_seed in kept]
        run = statistics.fmean(one["experts_run"] for of_seed in kept for one in of_seed)
        change = [score - base for score, base in zip(scores, dense, strict=True)]
        name = f"the {value:g} with the most weight" if keep == "top" else f"those with {value:.0%} of the weight"
        rows.append([name, f"{run:.1f}", f"{mean_and_error(scores)[0]:.2f}", signed(*mean_and_error(change))])
    return rows


def curve(axes: Axes, measured: Sequence[Measured]) -> None:
    """Scores over the samples of the dense model, with bars of one standard error."""
    for (line, name), marker in zip(CURVE_LINES.items(), "soD", strict=True):
        found = {samples: means_of(measured, label, line) for label, samples in CURVE.items()}
        points = {samples: mean_and_error(means) for samples, means in sorted(found.items()) if means}
        means, errors = ([point[side] for point in points.values()] for side in (0, 1))
        axes.errorbar(list(points), means, errors, marker=marker, capsize=3, label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(CURVE.values()), [f"{samples // 1024}k" for samples in CURVE.values()])
    axes.set_xlabel("training samples of the dense model, and of all of MoDE-4's models together")
    axes.set_ylabel("mean of ten tasks, points")
    axes.legend()


def bars(axes: Axes, values: Mapping[str, Sequence[float]], title: str) -> None:
    """A mean with its standard error per row, and one dot per seed."""
    for place, (name, found) in enumerate(reversed(list(values.items()))):
        mean, error = mean_and_error(found)
        axes.barh(place, mean, xerr=error, color="#9ecae1", error_kw={"capsize": 3}, label=name)
        axes.plot([100 * value for value in found], [place] * len(found), "k.", markersize=4)
    axes.set_yticks(range(len(values)), list(reversed(list(values))))
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel(title)


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def signed(value: float, error: float | None = None) -> str:
    """Points with a sign, and their standard error."""
    return f"{value:+.2f}" if error is None or math.isnan(error) else f"{value:+.2f} ± {error:.2f}"


def write(folder: Path, name: str, figure: Figure) -> None:
    """Write a picture."""
    figure.tight_layout()
    (folder / name).write_bytes(png_of(figure))


def main() -> None:
    """Draw the pictures and print the tables."""
    parser = argparse.ArgumentParser(description="The pictures and tables of docs/science.md.")
    parser.add_argument("study", type=Path, help="the directory of the finished study")
    parser.add_argument("--to", type=Path, required=True, help="the folder of the pictures")
    options = parser.parse_args()
    content = json.loads((options.study / "study.json").read_text())
    measured, differences = ([Measured(**one) for one in content[name]] for name in ("measured", "differences"))
    seeds = sorted({one.seed for one in measured if one.label == BASE})

    figure = Figure(figsize=(7.5, 4.2))
    curve(figure.subplots(), measured)
    write(options.to, "science-samples.png", figure)

    against = {NAMES.get(line, line): means_of(differences, BASE, line) for line in lines_of(differences, BASE)}
    figure = Figure(figsize=(7.5, 4.2))
    bars(figure.subplots(), against, "MoDE-4 (calibrated) minus this model, points; a dot is a seed")
    write(options.to, "science-controls.png", figure)

    dense = [one for one in differences if (one.label, one.line) == (BASE, DENSE)]
    by_task = {task: [one.tasks[task] for one in dense] for task in sorted(content["tasks"])}
    figure = Figure(figsize=(7.5, 4.2))
    bars(figure.subplots(), by_task, "MoDE-4 (calibrated) minus dense, points; a dot is a seed")
    write(options.to, "science-tasks.png", figure)

    draws = np.mean([draws_of_run(str(options.study / "points" / f"{BASE}-seed{seed}")) for seed in seeds], axis=0)
    low, high = percentile_interval(draws)
    print(f"seeds {seeds}; bootstrap over test images: {100 * low:+.2f} to {100 * high:+.2f}\n")
    rows = []
    for line in lines_of(measured, BASE):
        mean, error = mean_and_error(means_of(measured, BASE, line))
        own = means_of(differences, BASE, line)
        rows.append([NAMES.get(line, line), f"{mean:.2f} ± {error:.2f}", signed(*mean_and_error(own)) if own else ""])
    print(table(["model", "mean of the tasks", "MoDE-4 minus it"], rows), "\n")
    points = [Location.parse(str(options.study / "points" / f"{BASE}-seed{seed}" / "evaluation")) for seed in seeds]
    rows = pruned_rows([load_report(point) for point in points], means_of(measured, BASE, DENSE))
    print(table(["experts that run", "on average", "score", "minus dense"], rows), "\n")
    rows = []
    for label in dict.fromkeys(one.label for one in measured):
        of_dense, of_mode = (mean_and_error(means_of(measured, label, line))[0] for line in (DENSE, MODE))
        change = signed(*mean_and_error(means_of(differences, label, DENSE)))
        uniform = signed(*mean_and_error(means_of(differences, label, "MoDE-n (uniform)")))
        count = len(means_of(measured, label, MODE))
        rows.append([label, f"{of_dense:.2f}", f"{of_mode:.2f}", change, uniform, str(count)])
    print(table(["setting", "dense", "MoDE", "MoDE minus dense", "minus uniform weights", "seeds"], rows), "\n")
    rows = []
    for task, found in by_task.items():
        scores = [
            100 * statistics.fmean(one.tasks[task] for one in measured if (one.label, one.line) == (BASE, line))
            for line in (DENSE, MODE)
        ]
        rows.append([task, f"{scores[0]:.1f}", f"{scores[1]:.1f}", signed(*mean_and_error(found))])
    print(table(["task", "dense", "MoDE-4", "difference"], rows))


if __name__ == "__main__":
    main()
