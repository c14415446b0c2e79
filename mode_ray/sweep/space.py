"""The points of a sweep, drawn with the seed of the sweep before training starts."""

import itertools
import json
import math
from collections.abc import Mapping

import numpy as np

from mode_ray.config.sweep import Scalar, SweepConfig, SweepRange

Point = Mapping[str, Scalar]
_DRAWS_PER_POINT = 100


def draw_points(config: SweepConfig) -> list[dict[str, Scalar]]:
    """Distinct points, at most `config.trials`.

    If all fields are lists and have at most that many combinations, the points are all combinations in order.
    Otherwise every field is drawn independently. Values of ranges are rounded to three significant digits.
    """
    lists = {name: values for name, values in config.fields.items() if not isinstance(values, SweepRange)}
    if len(lists) == len(config.fields) and math.prod(map(len, lists.values())) <= config.trials:
        return [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]
    generator = np.random.default_rng(config.seed)
    points: dict[str, dict[str, Scalar]] = {}
    for _ in range(config.trials * _DRAWS_PER_POINT):
        point = {name: _draw(values, generator) for name, values in config.fields.items()}
        points.setdefault(json.dumps(point), point)
        if len(points) == config.trials:
            break
    return list(points.values())


def _draw(values: tuple[Scalar, ...] | SweepRange, generator: np.random.Generator) -> Scalar:
    if not isinstance(values, SweepRange):
        return values[int(generator.integers(len(values)))]
    low, high = float(values.low), float(values.high)
    drawn = math.exp(generator.uniform(math.log(low), math.log(high))) if values.log else generator.uniform(low, high)
    rounded = min(max(float(f"{drawn:.3g}"), low), high)
    whole = isinstance(values.low, int) and isinstance(values.high, int)
    return round(rounded) if whole else rounded
