"""Points depend only on the seed, are inside their bounds, and are distinct."""

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from mode_ray.config.sweep import SweepConfig
from mode_ray.sweep.space import draw_points

RATE, BATCH, SHARE = "train.optimizer.learning_rate", "train.batch_size", "train.seed_share"


def named(values: dict[str, Any], **options: Any) -> SweepConfig:  # noqa: ANN401
    return SweepConfig.model_validate({"fields": values, **options})


class TestPoints:
    def test_few_combinations_are_all_tried(self) -> None:
        points = draw_points(named({RATE: [1e-3, 1e-4], BATCH: [8, 16, 32]}, trials=6))
        assert points[:2] == [{RATE: 1e-3, BATCH: 8}, {RATE: 1e-3, BATCH: 16}]
        assert len(points) == 6

    def test_of_many_combinations_distinct_ones_are_drawn(self) -> None:
        points = draw_points(named({RATE: [1e-3, 1e-4, 1e-5], BATCH: [8, 16, 32]}, trials=5))
        assert len({tuple(point.values()) for point in points}) == 5

    def test_the_seed_decides(self) -> None:
        space = {RATE: {"low": 1e-5, "high": 1e-2, "log": True}, BATCH: [8, 16]}
        assert draw_points(named(space, seed=3)) == draw_points(named(space, seed=3))
        assert draw_points(named(space, seed=3)) != draw_points(named(space, seed=4))

    def test_more_trials_keep_the_first_points(self) -> None:
        space = {RATE: {"low": 1e-5, "high": 1e-2, "log": True}}
        assert draw_points(named(space, trials=12))[:5] == draw_points(named(space, trials=5))

    def test_logarithmic_ranges_are_even_in_the_logarithm(self) -> None:
        points = draw_points(named({RATE: {"low": 1e-6, "high": 1e-2, "log": True}}, trials=400))
        logs = np.log10([float(point[RATE]) for point in points])
        assert (logs >= -6).all()
        assert (logs <= -2).all()
        assert abs(float(np.mean(logs)) + 4) < 0.2

    def test_ranges_stay_inside_their_bounds_when_rounded(self) -> None:
        points = draw_points(named({SHARE: {"low": 0.12345, "high": 0.12347}}, trials=1))
        assert 0.12345 <= float(points[0][SHARE]) <= 0.12347

    def test_whole_bounds_give_whole_numbers(self) -> None:
        points = draw_points(named({"train.seed": {"low": 1, "high": 9}}, trials=20))
        assert all(type(point["train.seed"]) is int for point in points)
        assert len(points) <= 9


class TestRefusals:
    @pytest.mark.parametrize(
        ("fields", "said"),
        [
            ({"train.learning_rate": [1]}, r"train\.learning_rate cannot be swept: choose among .*learning_rate"),
            ({"train.experts": [2, 4]}, r"train\.experts cannot be swept"),
            ({"train.placement.compile": [True]}, r"train\.placement\.compile cannot be swept"),
            ({RATE: []}, "an empty list"),
            ({RATE: {"low": 1e-3, "high": 1e-4}}, "is not below"),
            ({RATE: {"low": 0.0, "high": 1e-4, "log": True}}, "begins above 0"),
        ],
    )
    def test_fields_that_cannot_be_swept(self, fields: dict[str, Any], said: str) -> None:
        with pytest.raises(ValidationError, match=said):
            named(fields)
