"""The trials of a sweep under Ray Tune, in a separate task that writes notes and results as files."""

import json
import math
import secrets
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler

from mode_ray.config.run import RunConfig
from mode_ray.storage import Location
from mode_ray.sweep.plan import SweepTrial
from mode_ray.sweep.results import write_result
from mode_ray.sweep.trainable import METRIC, TIME_KEY, TRIAL_KEY, result_of, run_sweep_trial

NOTES_FILE = "notes.json"
# A trial only waits for its runs, but Tune requires a resource for it. One byte of memory takes nothing from the runs.
_TRIAL_RESOURCES = {"memory": 1}


def asha(measurements: int, grace_share: float, reduction_factor: float) -> ASHAScheduler:
    """ASHA over the number of measurements: trials are compared at equal shares of their samples."""
    return ASHAScheduler(
        time_attr=TIME_KEY,
        metric=METRIC,
        mode="max",
        max_t=measurements,
        grace_period=max(1, math.ceil(grace_share * measurements)),
        reduction_factor=reduction_factor,
        # After its last measurement a trial writes its model, and must not be stopped.
        stop_last_trials=False,
    )


def tune_trials(config: RunConfig, trials: Sequence[SweepTrial], storage: Location) -> dict[str, str]:
    """Run the trials, at most `train.placement.concurrent_runs` at a time.

    Returns:
        The reasons of the trials that failed outside training, by name.
    """
    by_name = {trial.name: trial for trial in trials}
    sweep = config.sweep
    notes = _Notes(by_name, sweep.measurements, storage)
    tuner = tune.Tuner(
        tune.with_resources(
            partial(run_sweep_trial, trials=by_name), tune.PlacementGroupFactory([dict(_TRIAL_RESOURCES)])
        ),
        param_space={TRIAL_KEY: tune.grid_search(list(by_name))},
        tune_config=tune.TuneConfig(
            scheduler=asha(sweep.measurements, sweep.grace_share, sweep.reduction_factor),
            max_concurrent_trials=config.train.placement.concurrent_runs,
            trial_dirname_creator=lambda trial: str(trial.config[TRIAL_KEY]),
        ),
        run_config=tune.RunConfig(
            name=secrets.token_hex(4),
            storage_path=storage.path,
            storage_filesystem=None if storage.is_local else storage.filesystem,
            callbacks=[notes],
            verbose=0,
        ),
    )
    tuner.fit()
    return notes.failed


def read_notes(storage: Location) -> list[str]:
    """The notes so far, one line per event."""
    file = storage / NOTES_FILE
    lines: list[str] = json.loads(file.read_text()) if file.exists() else []
    return lines


class _Notes(tune.Callback):
    """Writes a note for each measurement and end of a trial, and the result of every ended trial."""

    def __init__(self, trials: Mapping[str, SweepTrial], measurements: int, storage: Location) -> None:
        self._trials = trials
        self._measurements = measurements
        self._file = storage / NOTES_FILE
        self._lines: list[str] = []
        self.failed: dict[str, str] = {}

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:  # noqa: ANN401, ARG002 - Tune's types
        """Note a measurement."""
        name, number = trial.config[TRIAL_KEY], result[TIME_KEY]
        self._note(f"{name[:6]} {number}/{self._measurements}: recall@1 {result[METRIC]:.2%}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:  # noqa: ANN401, ARG002
        """Write the result of a trial that finished, failed permanently, or was stopped by ASHA."""
        ended = self._trials[trial.config[TRIAL_KEY]]
        result = result_of(ended)
        write_result(ended.folder, result)
        self._note(f"{result.trial[:6]} {result.state}{f': {result.reason}' if result.reason else ''}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:  # noqa: ANN401, ARG002
        """Note an error outside training. Tune has logged it."""
        name = trial.config[TRIAL_KEY]
        self.failed[name] = "Ray Tune has logged the error"
        self._note(f"{name[:6]} failed: {self.failed[name]}")

    def _note(self, line: str) -> None:
        self._lines.append(line)
        self._file.write_text(json.dumps(self._lines))
