"""Lines of a study: named alike for every n, means and deviations over seeds, a picture of them."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mode_ray.evaluate.report.schema import ReportData, check_report
from mode_ray.storage import Location
from mode_ray.study.plot import numbers_of, study_png
from mode_ray.study.results import LinePoint, Measured, lines, measured_lines, write_results


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


class TestLines:
    def test_they_are_named_alike_for_every_n_and_experts_alone_are_left_out(self) -> None:
        for n in (2, 4):
            named = {one.line: one.mean for one in measured_lines(str(n), 0, report(n, 0.1))}
            assert named == {
                "dense": pytest.approx(0.5),
                "MoDE-n (calibrated)": pytest.approx(0.6),
                "Random-n": pytest.approx(0.3),
            }

    def test_means_and_deviations_are_over_seeds(self) -> None:
        measured = [
            one
            for label, seed, gain in (("2", 0, 0.1), ("2", 1, 0.3), ("4", 0, 0.2))
            for one in measured_lines(label, seed, report(int(label), gain))
        ]
        found = lines(measured, ["2", "4", "8"])["MoDE-n (calibrated)"]
        assert [(point.label, point.mean, point.samples) for point in found] == [  # type: ignore[comparison-overlap]
            ("2", pytest.approx(0.7), 64),
            ("4", pytest.approx(0.7), 64),
        ]
        assert found[0].deviation == pytest.approx(0.1 * 2**0.5)
        assert found[1].deviation is None

    def test_a_line_without_a_mean_is_left_out(self) -> None:
        measured = [Measured(label="2", seed=0, line="dense", mean=None, samples=None)]
        assert lines(measured, ["2"]) == {}

    def test_all_figures_are_kept(self, tmp_path: Path) -> None:
        measured = measured_lines("2", 0, report(2, 0.1))
        write_results(Location.parse(str(tmp_path)), {"axis": "n"}, measured)
        content = json.loads((tmp_path / "study.json").read_text())
        assert content["axis"] == "n"
        assert [Measured(**row) for row in content["measured"]] == measured


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

    def test_labels_are_numbers_only_together(self) -> None:
        assert numbers_of(["1", "2.5"]) == [1.0, 2.5]
        assert numbers_of(["1", "one"]) is None
