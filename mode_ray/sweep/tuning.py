"""The trials of a sweep under Ray Tune, in a task of its own: data goes in, notes and results come out as files."""

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
# A trial only waits for its runs. Tune requires some resource for it. A CPU, or part of one, would be taken from the
# runs; one byte of memory takes nothing from them.
_TRIAL_RESOURCES = {"memory": 1}


def asha(measurements: int, grace_share: float, reduction_factor: float) -> ASHAScheduler:
    """ASHA over the number of measurements, so that trials are compared at equal shares of their samples."""
    return ASHAScheduler(
        time_attr=TIME_KEY,
        metric=METRIC,
        mode="max",
        max_t=measurements,
        grace_period=max(1, math.ceil(grace_share * measurements)),
        reduction_factor=reduction_factor,
        # A trial after its last measurement writes its model, and must not be stopped while it does.
        stop_last_trials=False,
    )


def tune_trials(config: RunConfig, trials: Sequence[SweepTrial], storage: Location) -> dict[str, str]:
    """Run the trials, as many at once as `train.placement.concurrent_runs` allows.

    Args:
        config: The run's.
        trials: All trials of the sweep, those that ended before too.
        storage: Directory of Tune's own records and of the notes.

    Returns:
        The reasons of the trials that failed outside of their training, by name.
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
    """What has happened so far, one line each."""
    file = storage / NOTES_FILE
    lines: list[str] = json.loads(file.read_text()) if file.exists() else []
    return lines


class _Notes(tune.Callback):
    """Notes each measurement and end of a trial, and writes the result of every trial that ended."""

    def __init__(self, trials: Mapping[str, SweepTrial], measurements: int, storage: Location) -> None:
        self._trials = trials
        self._measurements = measurements
        self._file = storage / NOTES_FILE
        self._lines: list[str] = []
        self.failed: dict[str, str] = {}

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:  # noqa: ANN401, ARG002 - Tune's types
        """A measurement."""
        name, number = trial.config[TRIAL_KEY], result[TIME_KEY]
        self._note(f"{name[:6]} {number}/{self._measurements}: recall@1 {result[METRIC]:.2%}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:  # noqa: ANN401, ARG002
        """The trial finished, failed for good, or was stopped by ASHA."""
        ended = self._trials[trial.config[TRIAL_KEY]]
        result = result_of(ended)
        write_result(ended.folder, result)
        self._note(f"{result.trial[:6]} {result.state}{f': {result.reason}' if result.reason else ''}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:  # noqa: ANN401, ARG002
        """The trial ended by an error that is not of its training; Tune has logged it."""
        name = trial.config[TRIAL_KEY]
        self.failed[name] = "it ended by the error that Ray Tune has logged"
        self._note(f"{name[:6]} failed: {self.failed[name]}")

    def _note(self, line: str) -> None:
        self._lines.append(line)
        self._file.write_text(json.dumps(self._lines))
