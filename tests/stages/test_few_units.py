"""Which units are few enough for one process."""

import pytest

from mode_ray.stages.tasks import are_few
from mode_ray.stages.work_unit import WorkUnit


def units(*sizes: int) -> list[WorkUnit]:
    return [
        WorkUnit(unit=f"u{number}", uri=f"/u{number}.parquet", format="parquet", size_bytes=size)
        for number, size in enumerate(sizes)
    ]


@pytest.mark.parametrize("sizes", [[1 << 40], [0], [1000] * 8, [1 << 17, 1 << 17]])
def test_a_single_unit_or_some_small_files_are_few(sizes: list[int]) -> None:
    assert are_few(units(*sizes))


@pytest.mark.parametrize("sizes", [[1] * 9, [1 << 17, 1 << 18], [0, 10]], ids=["many", "large", "unknown size"])
def test_many_large_or_unknown_ones_are_not(sizes: list[int]) -> None:
    assert not are_few(units(*sizes))
