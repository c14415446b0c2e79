"""Gauges that Ray keeps exporting although their value does not change."""

import threading
import time
import weakref
from collections.abc import Mapping

import ray
from ray.util.metrics import Gauge

# Ray drops a gauge that was not set for 30 seconds.
_AGAIN_SECONDS = 5.0


class GaugeKeeper:
    """Sets gauges, and repeats that every few seconds in a thread. The thread ends with this object or with Ray."""

    def __init__(self) -> None:
        self._values: dict[tuple[Gauge, tuple[tuple[str, str], ...]], float] = {}
        self._lock = threading.Lock()
        threading.Thread(target=_set_again, args=(weakref.ref(self),), name="metrics", daemon=True).start()

    def set(self, gauge: Gauge, value: float, labels: Mapping[str, str]) -> None:
        """Set a gauge. It keeps the value until it is set again; `labels` must have all its labels."""
        with self._lock:
            self._values[gauge, tuple(labels.items())] = value
            gauge.set(value, dict(labels))

    def set_again(self) -> None:
        """Set every gauge to its current value."""
        with self._lock:
            for (gauge, labels), value in self._values.items():
                gauge.set(value, dict(labels))


def _set_again(keeper: "weakref.ref[GaugeKeeper]") -> None:
    while True:
        time.sleep(_AGAIN_SECONDS)
        living = keeper()
        if living is None or not ray.is_initialized():
            return
        living.set_again()
        del living
