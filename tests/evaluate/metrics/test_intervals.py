"""Intervals of the report's lines: paired within a task, independent between tasks."""

import numpy as np
import pytest

from mode_ray.evaluate.metrics.intervals import RESAMPLES, interval_rows, mean_row, task_draws
from mode_ray.evaluate.metrics.scored import Scored

IMAGES = 400


def scored(right_i: np.ndarray) -> Scored:
    """Two classes, of which class 0 is right; an image is answered so or not."""
    scores_il = np.where(right_i[:, None], [0.6, 0.4], [0.4, 0.6]).astype(np.float32)
    return Scored(kind="classification", scores_il=scores_il, labels=np.zeros(len(right_i), np.int64))


@pytest.fixture
def answers() -> dict[str, np.ndarray]:
    """The better model is right wherever the other is, and on a few images more."""
    base = np.arange(IMAGES) % 2 == 0
    better = base | (np.arange(IMAGES) < 20)
    return {"dense": base, "mode": better}


def test_a_task_is_resampled_alike_for_all_and_otherwise_than_another(answers: dict[str, np.ndarray]) -> None:
    one, again, other = (task_draws(scored(answers["dense"]), name, "top1") for name in ("a", "a", "b"))
    assert one.shape == (RESAMPLES,)
    np.testing.assert_array_equal(one, again)
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.15


def test_a_difference_is_paired(answers: dict[str, np.ndarray]) -> None:
    draws = {name: {"a": task_draws(scored(right), "a", "top1")} for name, right in answers.items()}
    scores = {name: {"a": float(right.mean())} for name, right in answers.items()}
    rows = interval_rows(scores, draws, "dense")
    assert [(row["model"], row["task"]) for row in rows] == [
        ("dense", "a"),
        ("dense", None),
        ("mode", "a"),
        ("mode", None),
    ]
    difference = rows[2]["against_dense"]
    assert difference["change"] == pytest.approx(10 / IMAGES)
    # Single scores vary by five points either way; the difference, on the same images, by one and a half.
    assert rows[2]["high"] - rows[2]["low"] > 0.08
    assert 0.0 < difference["low"] < difference["change"] < difference["high"] < 0.045
    assert "against_dense" not in rows[0]


def test_the_mean_over_tasks_is_surer_than_a_task(answers: dict[str, np.ndarray]) -> None:
    names = [f"task {number}" for number in range(9)]
    draws = {"mode": {name: task_draws(scored(answers["mode"]), name, "top1") for name in names}}
    rows = interval_rows({"mode": dict.fromkeys(names, 0.525)}, draws, None)
    mean = mean_row(rows, "mode")
    assert mean is not None
    assert mean["score"] == pytest.approx(0.525)
    assert (mean["high"] - mean["low"]) < 0.5 * (rows[0]["high"] - rows[0]["low"])
    assert mean_row(rows, "dense") is None
