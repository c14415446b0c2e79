"""The first sentence of the report claims a win only beyond the sampling error of the test sets."""

from typing import Any

import pytest
from report_example import shifted

from mode_ray.evaluate.report.render import verdict
from mode_ray.evaluate.report.schema import check_report


def test_verdict_of_a_win_gives_the_gain_the_cost_and_the_noise(report: dict[str, Any]) -> None:
    result = verdict(check_report(shifted(report, 3.0)))
    assert result.outcome == "win"
    assert result.sentence == (
        "MoDE-4 (soft) beats the dense model by 3.0 points, for 1.00× the training samples "  # noqa: RUF001
        "(33.1 % against 30.1 % on average, ahead in 5 of 5 tasks)."
    )
    assert "One training seed" in result.remarks[0]
    assert any("Routing: +2.7 points against the uniform mean" in remark for remark in result.remarks)
    assert any("Clustering: +4.0 points against Random-4" in remark for remark in result.remarks)


def test_verdict_of_a_loss_says_so(report: dict[str, Any]) -> None:
    report = shifted(report, -3.0)
    report["models"][1]["samples_total"] = 1_280_000
    result = verdict(check_report(report))
    assert result.outcome == "loss"
    assert result.sentence.startswith("MoDE-4 (soft) does not win: it is 3.0 points below the dense model, for 2.50")
    assert "ahead in 0 of 5" in result.sentence
    remarks = " ".join(result.remarks)
    assert "Routing does not help" in remarks
    assert "Clustering does not help" in remarks
    assert "MoDE-4 (paper) is better (32.0 %), but this rule was not chosen in advance." in remarks


@pytest.mark.parametrize(("points", "side"), [(0.3, "above"), (-0.3, "below")])
def test_verdict_within_the_sampling_error_is_a_tie(report: dict[str, Any], points: float, side: str) -> None:
    result = verdict(check_report(shifted(report, points)))
    assert result.outcome == "tie"
    assert f"does not win clearly: it is 0.3 points {side} the dense model" in result.sentence
    assert "within sampling error" in result.sentence


def test_the_same_gain_on_larger_test_sets_is_a_win(report: dict[str, Any]) -> None:
    for task in report["tasks"]:
        task["items"] *= 100
    assert verdict(check_report(shifted(report, 0.3))).outcome == "win"


def test_the_verdict_is_about_the_rule_of_the_config(report: dict[str, Any]) -> None:
    report["rule"] = "released"
    assert verdict(check_report(report)).sentence.startswith("MoDE-4 (released) ")


class TestResampledImages:
    """Intervals in the report replace the binomial bound."""

    def with_interval(self, report: dict[str, Any], points: float, low: float, high: float) -> dict[str, Any]:
        changed = shifted(report, points)
        difference = {"change": points / 100, "low": low / 100, "high": high / 100}
        row = {"model": "MoDE-4 (soft)", "task": None, "score": 0.3, "low": 0.29, "high": 0.31}
        return {**changed, "intervals": [{**row, "against_dense": difference}]}

    def test_a_small_gain_is_a_win_where_the_interval_says_so(self, report: dict[str, Any]) -> None:
        result = verdict(check_report(self.with_interval(report, 0.3, 0.1, 0.5)))
        assert result.outcome == "win"
        expected = "On resampled test images the difference is between +0.1 and +0.5 points (95 %)."
        assert result.remarks[0].startswith(expected)

    def test_a_large_one_is_a_tie_where_the_interval_holds_zero(self, report: dict[str, Any]) -> None:
        assert verdict(check_report(self.with_interval(report, 3.0, -0.2, 6.0))).outcome == "tie"
