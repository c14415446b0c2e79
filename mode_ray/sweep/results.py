"""The results of a sweep: one row per trial, the best trial, and their files and table."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from mode_ray.config.load import dump_config, with_values
from mode_ray.config.run import RunConfig
from mode_ray.config.sweep import Scalar
from mode_ray.run_directory import SWEEP_BEST, SWEEP_RESULT, SWEEP_RESULTS
from mode_ray.storage import Location
from mode_ray.util.tables import WideTable

SweepState = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """The result of one trial.

    Attributes:
        trial: Name of the trial.
        point: Values of the swept fields.
        state: finished, failed, or stopped because other trials were better at the same share of their samples.
        curve: Recall by number of the measurement.
        samples: Samples of the complete trial.
        reason: Why it failed.
    """

    trial: str
    point: Mapping[str, Scalar]
    state: SweepState
    curve: Mapping[int, float]
    samples: int
    reason: str | None = None

    @property
    def measurements(self) -> int:
        """Number of the last measurement; 0 if there is none."""
        return max(self.curve, default=0)

    @property
    def recall(self) -> float | None:
        """The last measured recall."""
        return self.curve.get(self.measurements)


@dataclass(frozen=True)
class SweepReport:
    """The result of a sweep.

    Attributes:
        folder: Directory of the results.
        results: Results of all trials.
        measurements: Measurements of a trial that was not stopped.
    """

    folder: Location
    results: Sequence[SweepResult]
    measurements: int


def ranked(results: Sequence[SweepResult]) -> list[SweepResult]:
    """The best first: by number of measurements, because only worse trials are stopped, then by recall."""
    return sorted(results, key=lambda result: (-result.measurements, -(result.recall or 0.0)))


def best_of(results: Sequence[SweepResult]) -> SweepResult | None:
    """The best finished trial, or None if none is finished."""
    return next((result for result in ranked(results) if result.state == "finished"), None)


def write_results(
    folder: Location, config: RunConfig, results: Sequence[SweepResult], about: Mapping[str, object]
) -> None:
    """Write `results.json` (with the fields `about`), and the config with the winner's values as `best.yaml`."""
    best = best_of(results)
    if best is not None:
        (folder / SWEEP_BEST).write_text(dump_config(with_values(config, best.point)))
    rows = [{**asdict(result), "recall": result.recall} for result in ranked(results)]
    content = {**about, "best": None if best is None else best.trial, "trials": rows}
    (folder / SWEEP_RESULTS).write_text(json.dumps(content, indent=1))


def write_result(folder: Location, result: SweepResult) -> None:
    """Write the `result.json` of a trial, which marks it as ended."""
    (folder / SWEEP_RESULT).write_text(json.dumps(asdict(result), indent=1))


def read_result(folder: Location) -> SweepResult | None:
    """The `result.json` of a trial, or None if it has not ended."""
    file = folder / SWEEP_RESULT
    if not file.exists():
        return None
    values = json.loads(file.read_text())
    return SweepResult(**{**values, "curve": {int(number): recall for number, recall in values["curve"].items()}})


def sweep_table(results: Sequence[SweepResult], measurements: int) -> WideTable:
    """One row per trial, the best first."""
    fields = list(results[0].point) if results else []
    names = [name.removeprefix("train.") for name in fields]
    table = WideTable("sweep", "trial", *names, "recall@1", "measured", "state")
    for result in ranked(results):
        recall = "" if result.recall is None else f"{result.recall:.2%}"
        values = [str(result.point[name]) for name in fields]
        table.add_row(result.trial[:6], *values, recall, f"{result.measurements}/{measurements}", result.state)
    return table
