"""What serving counts and times, through Ray's metrics or, without Ray, as a page for Prometheus.

Prometheus shows the names with what the backend adds: counters end in `_total`, and Ray puts `ray_` in front.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

Labels = Mapping[str, str]
Record = Callable[[float, Labels], None]

_SECONDS_BOUNDARIES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_COUNT_BOUNDARIES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)


class MetricsBackend(Protocol):
    """Makes instruments; each returned function takes an amount and the values of all labels."""

    def counter(self, name: str, description: str, labels: tuple[str, ...]) -> Record:
        """Something that only grows."""

    def gauge(self, name: str, description: str, labels: tuple[str, ...]) -> Record:
        """Something that is as it is now."""

    def histogram(self, name: str, description: str, labels: tuple[str, ...], boundaries: tuple[float, ...]) -> Record:
        """How often something was how large."""

    def exposition(self) -> tuple[bytes, str] | None:
        """The page for Prometheus and its content type; None where Ray exports the metrics."""


class ServeMetrics:
    """The instruments of one router or expert process.

    Args:
        backend: Where they are kept.
    """

    def __init__(self, backend: MetricsBackend) -> None:
        self._backend = backend
        self._requests = backend.counter(
            "mode_serve_requests", "Answered requests, by route and HTTP status.", ("route", "status")
        )
        self._step_seconds = backend.histogram(
            "mode_serve_step_seconds", "Time of one step of a request.", ("step",), _SECONDS_BOUNDARIES
        )
        self._expert_seconds = backend.histogram(
            "mode_serve_expert_seconds", "Time from asking an expert to its answer.", ("expert",), _SECONDS_BOUNDARIES
        )
        self._batch_size = backend.histogram(
            "mode_serve_batch_size", "Images that went through an expert at once.", ("expert",), _COUNT_BOUNDARIES
        )
        self._experts = backend.histogram(
            "mode_serve_experts_per_request", "Experts that were asked for a request.", (), _COUNT_BOUNDARIES
        )
        self._degraded = backend.counter(
            "mode_serve_degraded", "Answers without an expert that should have been in them.", ()
        )
        self._cache = backend.counter("mode_serve_task_cache", "Tasks asked of the cache.", ("result",))
        self._queue = backend.gauge("mode_serve_queue_length", "Requests being worked on or waiting.", ())

    def count_request(self, route: str, status: int) -> None:
        """One request was answered."""
        self._requests(1.0, {"route": route, "status": str(status)})

    def observe_step(self, step: str, seconds: float) -> None:
        """One step of a request (decode, route, ensemble) took so long."""
        self._step_seconds(seconds, {"step": step})

    def observe_expert(self, expert: int, seconds: float) -> None:
        """An expert answered after so long."""
        self._expert_seconds(seconds, {"expert": str(expert)})

    def observe_batch(self, expert: int, size: int) -> None:
        """So many images went through an expert at once."""
        self._batch_size(float(size), {"expert": str(expert)})

    def observe_experts(self, count: int) -> None:
        """So many experts were asked for one request."""
        self._experts(float(count), {})

    def count_degraded(self) -> None:
        """One answer lacks an expert."""
        self._degraded(1.0, {})

    def count_cache(self, hit: bool) -> None:
        """One lookup of a task."""
        self._cache(1.0, {"result": "hit" if hit else "miss"})

    def set_queue(self, length: int) -> None:
        """How many requests are in the service now."""
        self._queue(float(length), {})

    def exposition(self) -> tuple[bytes, str] | None:
        """The page for Prometheus and its content type; None where Ray exports the metrics."""
        return self._backend.exposition()


def ray_metrics() -> ServeMetrics:
    """Metrics that Ray exports on every node, with application, deployment and replica as further labels."""
    return ServeMetrics(_RayBackend())


def prometheus_metrics() -> ServeMetrics:
    """Metrics of this process alone, for a `/metrics` route."""
    return ServeMetrics(_PrometheusBackend())


def _as_ray_has_it(labels: tuple[str, ...]) -> Any:  # noqa: ANN401
    """Ray's annotation allows one label alone, its code any number."""
    return labels


class _RayBackend:
    """Makes instruments of Ray Serve's, which add where they are counted."""

    def __init__(self) -> None:
        from mode_ray.observe.kept_gauges import GaugeKeeper

        self._keeper = GaugeKeeper()

    def counter(self, name: str, description: str, labels: tuple[str, ...]) -> Record:
        from ray.serve import metrics

        counter = metrics.Counter(name, description=description, tag_keys=_as_ray_has_it(labels))
        return lambda amount, values: counter.inc(amount, tags=dict(values))

    def gauge(self, name: str, description: str, labels: tuple[str, ...]) -> Record:
        from ray.serve import metrics

        gauge = metrics.Gauge(name, description=description, tag_keys=_as_ray_has_it(labels))
        return lambda amount, values: self._keeper.set(gauge, amount, values)

    def histogram(self, name: str, description: str, labels: tuple[str, ...], boundaries: tuple[float, ...]) -> Record:
        from ray.serve import metrics

        histogram = metrics.Histogram(
            name, description=description, boundaries=list(boundaries), tag_keys=_as_ray_has_it(labels)
        )
        return lambda amount, values: histogram.observe(amount, tags=dict(values))

    def exposition(self) -> tuple[bytes, str] | None:
        return None


class _PrometheusBackend:
    """Makes instruments in a registry of its own, so that several services in a process do not meet."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()

    def counter(self, name: str, description: str, labels: tuple[str, ...]) -> Record:
        counter = Counter(name, description, labels, registry=self._registry)
        return lambda amount, values: (counter.labels(**values) if labels else counter).inc(amount)

    def gauge(self, name: str, description: str, labels: tuple[str, ...]) -> Record:
        gauge = Gauge(name, description, labels, registry=self._registry)
        return lambda amount, values: (gauge.labels(**values) if labels else gauge).set(amount)

    def histogram(self, name: str, description: str, labels: tuple[str, ...], boundaries: tuple[float, ...]) -> Record:
        histogram = Histogram(name, description, labels, registry=self._registry, buckets=boundaries)
        return lambda amount, values: (histogram.labels(**values) if labels else histogram).observe(amount)

    def exposition(self) -> tuple[bytes, str] | None:
        return generate_latest(self._registry), CONTENT_TYPE_LATEST
