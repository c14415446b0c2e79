"""Gauges of an idle process are set again, because Ray drops gauges that were not set for a while."""

import time

import pytest
import ray

from mode_ray.observe import kept_gauges
from mode_ray.observe.kept_gauges import GaugeKeeper

DEADLINE_SECONDS = 20.0


class Shown:
    """A gauge that keeps its value for a limited time, as on the metrics page."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def set(self, value: float, tags: dict[str, str]) -> None:
        self.values[tags["expert"]] = value


def test_what_stands_still_is_shown_again_with_its_last_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_gauges, "_AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    gauge, keeper = Shown(), GaugeKeeper()
    for expert, value in (("0", 5.0), ("1", 7.0), ("0", 3.0)):
        keeper.set(gauge, value, {"expert": expert})  # type: ignore[arg-type]
    gauge.values.clear()
    deadline = time.monotonic() + DEADLINE_SECONDS
    while len(gauge.values) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert gauge.values == {"0": 3.0, "1": 7.0}
