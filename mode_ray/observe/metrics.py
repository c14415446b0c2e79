"""The Prometheus metrics of the stages: gauges and counters in the driver, exported by Ray.

All metrics are set in the driver, because the series of a worker disappear with the worker. Speeds and ages are
computed by the query (`rate()` of a counter, `time()` minus a timestamp), so they stay correct when the work stops.
docs/monitoring.md lists the metrics.
"""

import time
from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge

from mode_ray.observe.kept_gauges import GaugeKeeper
from mode_ray.observe.progress import FitReport
from mode_ray.stages.manifest import Manifest, UnitRecord
from mode_ray.train.runs.status import TrialState, TrialStatus
from mode_ray.util.path_notation import as_ascii

_INTERVAL_SECONDS = 1.0
_STAGE_TAGS = ("run", "stage")
_EXPERT_TAGS = (*_STAGE_TAGS, "expert")
_TASK_TAGS = (*_STAGE_TAGS, "task")
STATE_NUMBERS: Mapping[TrialState, float] = {"waiting": 0.0, "running": 1.0, "finished": 2.0, "failed": 3.0}
_STAGE_GAUGES = {
    "mode_stage_done": "1 when the stage is done, 0 while it runs",
    "mode_stage_units_done": "Finished units (shards, tasks, runs), including quarantined ones",
    "mode_stage_units_left": "Units that are not finished",
    "mode_stage_units_quarantined": "Units that this invocation left out",
    "mode_stage_actors": "Largest number of actors that the stage may use",
    "mode_kmeans_iteration": "Lloyd iterations done",
    "mode_kmeans_inertia": "Sum of squared distances of the sampled rows to their centers",
    "mode_kmeans_max_over_mean": "Size of the largest cluster over the mean size",
    "mode_kmeans_imbalance_factor": "m * sum(n^2) / N^2 over the cluster sizes n",
    "mode_kmeans_empty_clusters": "Clusters without a row",
}
_STAGE_COUNTERS = {
    "mode_stage_rows": "Rows written",
    "mode_stage_rows_refused": "Rows refused",
    "mode_stage_busy_seconds": "Seconds that actors spent on units",
}
_EXPERT_GAUGES = {
    "mode_expert_status": "0 waiting, 1 running, 2 finished, 3 failed",
    "mode_expert_samples": "Samples that it will see in total",
    "mode_expert_samples_seen": "Samples it has seen",
    "mode_expert_samples_per_second": "Last measured speed; 0 while it does not run",
    "mode_expert_loss": "Last measured loss",
    "mode_expert_data_wait_share": "Share of its time spent waiting for data",
    "mode_expert_checkpoint_timestamp_seconds": "Unix time of its newest checkpoint",
    "mode_expert_launches": "Number of launches",
    "mode_expert_workers": "Workers that train it",
}
_TASK_GAUGES = {"mode_routing_entropy": "Entropy of the expert weights over log n: 0 is one expert, 1 is uniform"}
EXPORTED = (
    *(f"ray_{name}" for name in (*_STAGE_GAUGES, *_EXPERT_GAUGES, *_TASK_GAUGES)),
    *(f"ray_{name}_total" for name in _STAGE_COUNTERS),
)
"""The names on Ray's metrics port."""


class PipelineMetrics:
    """Sets the metrics of a run from its progress; a `ProgressObserver`.

    Counts of units are exported at most once per second.

    Args:
        run: The run directory's URI. Ray takes labels of ASCII only, so other characters are percent-encoded.
    """

    def __init__(self, run: str) -> None:
        self._run = as_ascii(run)
        self._stage = ""
        self._units = self._done = self._quarantined = 0
        self._pending: dict[str, float] = dict.fromkeys(_STAGE_COUNTERS, 0.0)
        self._exported_at = 0.0
        self._keeper = GaugeKeeper()
        gauges = ((_STAGE_TAGS, _STAGE_GAUGES), (_EXPERT_TAGS, _EXPERT_GAUGES), (_TASK_TAGS, _TASK_GAUGES))
        self._gauges = {name: Gauge(name, text, tags) for tags, texts in gauges for name, text in texts.items()}
        self._counters = {name: Counter(name, text, _STAGE_TAGS) for name, text in _STAGE_COUNTERS.items()}

    def begin(self, stage: str, units: int, done: int, actors: int) -> None:
        """A stage begins; `done` of its units were finished before."""
        self._stage, self._units, self._done, self._quarantined = stage, units, done, 0
        self._set("mode_stage_done", 0.0)
        self._set("mode_stage_actors", float(actors))
        self._export()
        self._exported_at = 0.0  # export the next event at once

    def unit(self, record: UnitRecord) -> None:
        """A unit was finished or quarantined."""
        self._done += 1
        self._quarantined += record.error is not None
        self._pending["mode_stage_rows"] += record.rows_out
        self._pending["mode_stage_rows_refused"] += sum(record.refused.values())
        self._pending["mode_stage_busy_seconds"] += record.seconds
        if time.monotonic() - self._exported_at >= _INTERVAL_SECONDS:
            self._export()

    def iteration(self, report: FitReport) -> None:
        """The fine clustering finished an iteration."""
        for figure in ("iteration", "inertia", "max_over_mean", "imbalance_factor", "empty_clusters"):
            self._set(f"mode_kmeans_{figure}", float(report[figure]))

    def trials(self, statuses: Mapping[str, TrialStatus]) -> None:
        """The current state of all training runs."""
        now = time.monotonic()
        ended = sum(status.state in ("finished", "failed") for status in statuses.values())
        if ended == self._done and now - self._exported_at < _INTERVAL_SECONDS:
            return
        self._units, self._done = len(statuses), ended
        self._quarantined = sum(status.state == "failed" for status in statuses.values())
        for status in statuses.values():
            self._export_trial(status)
        self._export()

    def routing(self, entropy_by_task: Mapping[str, float]) -> None:
        """The entropy of the routing weights of each evaluated task."""
        for task, entropy in entropy_by_task.items():
            self._set("mode_routing_entropy", entropy, task=task)

    def end(self, manifest: Manifest) -> None:
        """A stage is done."""
        self._stage, self._units, self._done = manifest.stage, manifest.units, manifest.units
        self._quarantined = len(manifest.quarantined)
        self._export()
        self._set("mode_stage_done", 1.0)

    def _export_trial(self, status: TrialStatus) -> None:
        running = status.state == "running"
        figures: dict[str, float | None] = {
            "status": STATE_NUMBERS[status.state],
            "samples": status.samples,
            "samples_seen": status.samples_seen,
            "samples_per_second": (status.samples_per_second or 0.0) if running else 0.0,
            "loss": status.loss,
            "data_wait_share": status.data_wait_share,
            "checkpoint_timestamp_seconds": status.checkpoint_unix_seconds,
            "launches": status.launches,
            "workers": (status.workers or 0) if running else 0,
        }
        for name, value in figures.items():
            if value is not None:
                self._set(f"mode_expert_{name}", float(value), expert=status.trial)

    def _export(self) -> None:
        self._exported_at = time.monotonic()
        self._set("mode_stage_units_done", float(self._done))
        self._set("mode_stage_units_left", float(max(0, self._units - self._done)))
        self._set("mode_stage_units_quarantined", float(self._quarantined))
        for name, amount in self._pending.items():
            if amount > 0:  # Ray refuses an increment of 0
                self._counters[name].inc(amount, {"run": self._run, "stage": self._stage})
                self._pending[name] = 0.0

    def _set(self, name: str, value: float, **tags: str) -> None:
        self._keeper.set(self._gauges[name], value, {"run": self._run, "stage": self._stage, **tags})
