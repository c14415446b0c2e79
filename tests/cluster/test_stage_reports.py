"""What the cluster stage says about the balance of a fit."""

from collections.abc import Mapping
from typing import Any

from mode_ray.cluster.stage import FitProgress, balance_line
from mode_ray.config.cluster import FineConfig
from mode_ray.stages.run import Quiet


class Said(Quiet):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def iteration(self, report: Mapping[str, Any], most: int) -> None:
        self.lines.append(f"{report['iteration']}/{most}")


def test_a_fit_that_continues_is_announced_once_with_its_new_bound() -> None:
    said = Said()
    progress = FitProgress(FineConfig(iterations=20), said)
    for iteration, extended_from in ((19, None), (20, None), (20, None), (22, 20), (23, 20)):
        progress.take({"iteration": iteration, "extended_from": extended_from})
    assert said.lines == [
        "19/20",
        "20/20",
        "[cluster] not balanced after 20 iterations: continuing, for up to 20 more",
        "22/40",
        "23/40",
    ]


def test_the_end_says_whether_the_balance_was_reached() -> None:
    met = {"fitted_max_over_mean": 1.0637, "iterations": 14}
    assert balance_line(met) == "balanced: the largest cluster has 1.06 x the mean"
    missed = balance_line({"fitted_max_over_mean": 2.25, "iterations": 40, "balance_score": 5.0})
    assert missed.startswith(
        "not balanced after 40 iterations: the largest cluster has 2.25 x the mean, the target is"
    )
    assert "Lower cluster.fine.centers or add captions" in missed
