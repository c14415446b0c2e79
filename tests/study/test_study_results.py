"""Results of a study: lines with means over seeds, differences paired by seed, a picture."""

import io
from typing import Any

import pytest
from matplotlib.colors import to_rgb
from PIL import Image
from terminal import require_words, shown_at_80_columns

from mode_ray.config.study import StudyConfig
from mode_ray.evaluate.report.schema import ReportData, check_report
from mode_ray.study.plot import numbers_of, png_of, study_figure, study_png
from mode_ray.study.results import LinePoint, Measured, StudyResults, lines
from mode_ray.study.run import study_table


def report(n: int, gain: float) -> ReportData:
    def model(name: str, kind: str, value: float, **more: Any) -> dict[str, Any]:  # noqa: ANN401
        metrics = {"a": {"top1": value}, "b": {"top1": value + 0.2}}
        return {"name": name, "kind": kind, "metrics": metrics, "samples_total": 64, **more}

    return check_report(
        {
            "title": "t",
            "run": "r",
            "created": "now",
            "rule": "calibrated",
            "tasks": [{"name": name, "metric": "top1", "items": 10} for name in ("a", "b")],
            "models": [
                model("dense", "dense", 0.4),
                model(f"MoDE-{n} (calibrated)", "mode", 0.4 + gain, rule="calibrated"),
                model("expert 0 alone", "single", 0.3),
                model(f"Random-{n} (uniform)", "random", 0.2),
            ],
        }
    )


def results(*runs: tuple[str, int, float]) -> StudyResults:
    """Of runs with the given label (n), seed and gain."""
    found = StudyResults()
    for label, seed, gain in runs:
        found = found.with_report(label, seed, report(int(label), gain))
    return found


class TestLines:
    @pytest.mark.parametrize("n", [2, 4])
    def test_they_are_named_alike_for_every_n_and_experts_alone_are_left_out(self, n: int) -> None:
        assert {one.line: one.mean for one in results((str(n), 0, 0.1)).measured} == {
            "dense": pytest.approx(0.5),
            "MoDE-n (calibrated)": pytest.approx(0.6),
            "Random-n": pytest.approx(0.3),
        }

    def test_means_and_deviations_are_over_seeds(self) -> None:
        measured = results(("2", 0, 0.1), ("2", 1, 0.3), ("4", 0, 0.2)).measured
        found = lines(measured, ["2", "4", "8"])["MoDE-n (calibrated)"]
        assert [(point.label, point.mean, point.samples) for point in found] == [  # type: ignore[comparison-overlap]
            ("2", pytest.approx(0.7), 64),
            ("4", pytest.approx(0.7), 64),
        ]
        assert found[0].deviation == pytest.approx(0.1 * 2**0.5)
        assert found[1].deviation is None

    def test_a_line_without_a_mean_is_left_out(self) -> None:
        measured = [Measured(label="2", seed=0, line="dense", mean=None, samples=None, tasks={})]
        assert lines(measured, ["2"]) == {}

    def test_scores_are_kept_by_task(self) -> None:
        dense = results(("2", 0, 0.1)).measured[0]
        assert dense.tasks == {"a": pytest.approx(0.4), "b": pytest.approx(0.6)}


class TestDifferences:
    def test_they_are_of_mode_under_the_runs_rule_and_paired_by_seed(self) -> None:
        found = results(("2", 0, 0.1), ("2", 1, 0.3))
        ahead = lines(found.differences, ["2"])
        assert set(ahead) == {"dense", "Random-n"}
        assert [one.mean for one in found.differences if one.line == "dense"] == pytest.approx([0.1, 0.3])
        assert ahead["dense"][0].mean == pytest.approx(0.2)
        assert ahead["dense"][0].deviation == pytest.approx(0.1 * 2**0.5)
        assert ahead["Random-n"][0].mean == pytest.approx(0.4)

    def test_those_of_the_tasks_have_the_tasks_as_lines(self) -> None:
        by_task = lines(results(("2", 0, 0.1), ("2", 1, 0.3)).task_differences("dense"), ["2"])
        assert {task: points[0].mean for task, points in by_task.items()} == pytest.approx({"a": 0.2, "b": 0.2})

    def test_without_a_mean_there_is_no_difference(self) -> None:
        content = report(2, 0.1)
        del content["models"][0]["metrics"]["b"]
        found = StudyResults().with_report("2", 0, content)
        assert "dense" not in lines(found.differences, ["2"])
        assert [one.line for one in found.task_differences("dense")] == ["a"]


def flat(labels: list[str]) -> list[LinePoint]:
    return [LinePoint(label=label, mean=0.5, deviation=None, samples=1000.0) for label in labels]


class TestThePicture:
    @pytest.mark.parametrize("against", ["value", "samples"])
    @pytest.mark.parametrize("labels", [["1", "2", "16"], ["MiniLM", "words", "SimCSE"], ["0.3", "0.5", "0"]])
    def test_it_can_be_drawn(self, labels: list[str], against: Any) -> None:  # noqa: ANN401
        points = [
            LinePoint(label=label, mean=0.5, deviation=0.1, samples=1000.0 * (place + 1))
            for place, label in enumerate(labels)
        ]
        unknown = [LinePoint(label=labels[0], mean=0.4, deviation=None, samples=None)]
        png = study_png({"MoDE-n (calibrated)": points, "dense": unknown}, labels, "axis", against)
        assert Image.open(io.BytesIO(png)).size[0] > 800

    @pytest.mark.parametrize("labels", [["2", "4", "6"], ["2", "4", "32"]])
    def test_there_are_ticks_at_the_studied_values_only(self, labels: list[str]) -> None:
        (axes,) = study_figure({"dense": flat(labels)}, labels, "experts", "value").axes
        assert [
            (tick.get_text(), place) for tick, place in zip(axes.get_xticklabels(), axes.get_xticks(), strict=True)
        ] == [(label, float(label)) for label in labels]
        assert len(axes.get_xticks(minor=True)) == 0

    def test_equal_lines_are_all_visible(self) -> None:
        labels, names = ["2", "4"], ["MoDE-n (calibrated)", "MoDE-n (soft)", "dense", "best single expert"]
        figure = study_figure({name: flat(labels) for name in names}, labels, "experts", "value")
        axes: Any = figure.axes[0]
        drawn = [container.lines[0] for container in axes.containers]
        assert len({(line.get_marker(), line.get_linestyle()) for line in drawn}) == len(names)
        axes.get_legend().remove()
        picture = Image.open(io.BytesIO(png_of(figure))).convert("RGB")
        colors = {color for _, color in picture.getcolors(1 << 20) or []}
        for line in drawn:
            assert tuple(round(255 * part) for part in to_rgb(line.get_color())) in colors, line.get_linestyle()

    def test_labels_are_numbers_only_together(self) -> None:
        assert numbers_of(["1", "2.5"]) == [1.0, 2.5]
        assert numbers_of(["1", "one"]) is None


def test_the_table_of_a_study_fits_80_columns() -> None:
    study = StudyConfig(
        study="/studies/n",
        base="demo",
        field="train.optimizer.learning_rate",
        values=(0.0001, 0.0002, 0.0004, 0.0008, 0.0016),
    )
    found = {
        name: [LinePoint(label=label, mean=0.5, deviation=0.0, samples=64) for label in study.labels]
        for name in ("dense", "MoDE-n (calibrated)", "Random-n (uniform)")
    }
    require_words(shown_at_80_columns(study_table(study, "learning rate", found)), [*study.labels, *found])
