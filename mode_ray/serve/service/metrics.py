"""Metrics of the service: counts and times of requests, never their content.

Ray Serve exports them; without Ray the route `/metrics` shows them. Prometheus sees the names with additions: counters
end in `_total`, and Ray puts `ray_` in front.
"""

from collections.abc import Callable
from typing import Any, Literal, Protocol

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_COUNTS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)

Kind = Literal["counter", "gauge", "histogram"]


class Record(Protocol):
    """Records an amount in a metric."""

    def __call__(self, amount: float, **labels: str) -> None:
        """Record an amount, with the values of all labels."""


class MakeRecord(Protocol):
    """Creates a metric."""

    def __call__(
        self, kind: Kind, name: str, description: str, labels: tuple[str, ...], boundaries: tuple[float, ...]
    ) -> Record:
        """Create a metric; `boundaries` are those of the buckets of a histogram."""
        ...


class ServeMetrics:
    """The metrics of one router or expert process.

    Args:
        make: Creates a metric.
        exposition: Returns the page for Prometheus and its content type; None where Ray exports the metrics.
    """

    def __init__(self, make: MakeRecord, exposition: Callable[[], tuple[bytes, str] | None]) -> None:
        self.exposition = exposition
        self.requests = make("counter", "mode_serve_requests", "Answered requests.", ("route", "status"), ())
        self.step_seconds = make(
            "histogram", "mode_serve_step_seconds", "Duration of one step of a request.", ("step",), _SECONDS
        )
        self.expert_seconds = make(
            "histogram",
            "mode_serve_expert_seconds",
            "Time from asking an expert to its answer.",
            ("expert",),
            _SECONDS,
        )
        self.batch_size = make(
            "histogram", "mode_serve_batch_size", "Images in one batch of an expert.", ("expert",), _COUNTS
        )
        self.experts_per_request = make(
            "histogram", "mode_serve_experts_per_request", "Experts asked for a request.", (), _COUNTS
        )
        self.degraded = make("counter", "mode_serve_degraded", "Answers in which an expert is missing.", (), ())
        self.task_cache = make(
            "counter", "mode_serve_task_cache", "Lookups in the task cache: hit or miss.", ("result",), ()
        )
        self.queue_length = make(
            "gauge", "mode_serve_queue_length", "Requests that are being answered or are waiting.", (), ()
        )


def ray_metrics() -> ServeMetrics:
    """Metrics that Ray exports on every node, with application, deployment and replica as further labels."""
    from ray.serve import metrics

    from mode_ray.observe.kept_gauges import GaugeKeeper

    keeper = GaugeKeeper()

    def make(
        kind: Kind, name: str, description: str, labels: tuple[str, ...], boundaries: tuple[float, ...]
    ) -> Record:
        # Ray's annotation allows one label only; its code accepts any number.
        options: Any = {"description": description, "tag_keys": labels}
        if kind == "counter":
            counter = metrics.Counter(name, **options)
            return lambda amount, **values: counter.inc(amount, tags=values)  # noqa: PLW0108  (one dictionary)
        if kind == "gauge":
            gauge = metrics.Gauge(name, **options)
            return lambda amount, **values: keeper.set(gauge, amount, values)
        histogram = metrics.Histogram(name, boundaries=list(boundaries), **options)
        return lambda amount, **values: histogram.observe(amount, tags=values)  # noqa: PLW0108  (as above)

    return ServeMetrics(make, lambda: None)


def prometheus_metrics() -> ServeMetrics:
    """Metrics of this process, in a registry of their own: several services in a process do not share it."""
    registry = CollectorRegistry()

    def make(
        kind: Kind, name: str, description: str, labels: tuple[str, ...], boundaries: tuple[float, ...]
    ) -> Record:
        if kind == "counter":
            counter = Counter(name, description, labels, registry=registry)
            return lambda amount, **values: (counter.labels(**values) if labels else counter).inc(amount)
        if kind == "gauge":
            gauge = Gauge(name, description, labels, registry=registry)
            return lambda amount, **values: (gauge.labels(**values) if labels else gauge).set(amount)
        histogram = Histogram(name, description, labels, registry=registry, buckets=boundaries)
        return lambda amount, **values: (histogram.labels(**values) if labels else histogram).observe(amount)

    return ServeMetrics(make, lambda: (generate_latest(registry), CONTENT_TYPE_LATEST))
