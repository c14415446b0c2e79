"""The `sweep` command: trials under Ray Tune's ASHA, as many at once as runs are allowed, and the winner's config."""

import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler

from mode_ray.assign.stage import FINE
from mode_ray.cluster.clustering import Clustering
from mode_ray.config.run import RunConfig
from mode_ray.errors import DataError, TrainingError, UsageError
from mode_ray.models.architecture import check_architecture
from mode_ray.pairs.held_out import HeldOut, choose_held_out
from mode_ray.pairs.images import decode_image
from mode_ray.pairs.index import load_index
from mode_ray.pairs.reader import PairReader
from mode_ray.run_directory import SWEEP_RESULT, WORK_UNITS_FILE, sweep_directory, sweep_held_out, sweep_storage
from mode_ray.stages.manifest import combined_hash, read_manifest, read_output, read_units
from mode_ray.stages.work_unit import WorkUnit, require_images, write_work_units
from mode_ray.storage import Location
from mode_ray.sweep.plan import SweepInputs, SweepTrial, plan_sweep, swept_expert
from mode_ray.sweep.results import SweepReport, read_result, write_result, write_results
from mode_ray.sweep.space import draw_points
from mode_ray.sweep.trainable import METRIC, TIME_KEY, TRIAL_KEY, result_of, run_sweep_trial
from mode_ray.util.ray_tasks import task_result

# A trial only waits for its runs. Tune wants some resource of it: a processor, or part of one, would be missing where
# the runs need it; a byte of memory is missed by nobody.
_TRIAL_RESOURCES = {"memory": 1}


def run_sweep(
    config: RunConfig,
    work_units: Sequence[WorkUnit],
    clusters: Location,
    assignments: Location,
    say: Callable[[str], None],
) -> SweepReport:
    """Run the sweep that the config asks for, or what is left of it; needs a running Ray.

    Raises:
        UsageError: No field is swept, a point is no valid config, or the assign stage is not done.
        DataError: The training set is too small, or held-out images cannot be read.
        TrainingError: No trial was trained to its end.
    """
    if not config.sweep.fields:
        raise UsageError("sweep.fields is empty: name the training fields to try out, with their values")
    assigned = read_manifest(assignments)
    if assigned is None:
        raise UsageError("the sweep needs the assign stage, which is not done: run `mode-ray assign` first")
    require_images(work_units)
    check_architecture(config.train.model)
    folder = sweep_directory(config.directory)
    clustering = Clustering.load(clusters)
    expert = swept_expert(config, clustering.widest_first(config.train.experts)[0])
    # A task of its own: it reads assignments and images, and needs memory for them.
    prepared = ray.remote(max_calls=1)(_prepare).options(name="sweep: held-out pairs")
    inputs: SweepInputs = task_result(
        prepared.remote(config, work_units, clusters, assignments, folder, expert, assigned.content_hash)
    )
    trials = plan_sweep(config, draw_points(config.sweep), inputs)
    for trial in trials:
        write_work_units(trial.folder / WORK_UNITS_FILE, work_units)
        earlier = read_result(trial.folder)
        if earlier is not None and earlier.state == "failed":
            (trial.folder / SWEEP_RESULT).delete()  # its cause may be mended
    model = "the dense baseline" if expert is None else f"expert {expert}"
    ended = sum(read_result(trial.folder) is not None for trial in trials)
    say(f"[sweep] {len(trials)} trials of {model}, {ended} of them ended before")
    failed = _tune(config, trials, folder, say) if ended < len(trials) else {}
    results = [result_of(trial, failed.get(trial.name)) for trial in trials]
    about = {"model": model, "metric": METRIC, "measurements": config.sweep.measurements}
    write_results(folder, config, results, about)
    if all(result.state != "finished" for result in results):
        reasons = "; ".join(f"{result.trial}: {result.reason}" for result in results if result.reason)
        raise TrainingError(f"sweep: no trial was trained to its end: {reasons}")
    return SweepReport(folder, results, config.sweep.measurements)


def asha(measurements: int, grace_share: float, reduction_factor: float) -> ASHAScheduler:
    """ASHA over the number of measurements, so that trials are compared at equal shares of their samples."""
    return ASHAScheduler(
        time_attr=TIME_KEY,
        metric=METRIC,
        mode="max",
        max_t=measurements,
        grace_period=max(1, math.ceil(grace_share * measurements)),
        reduction_factor=reduction_factor,
        # A trial that has come to its end writes its model: it is not to be stopped over that.
        stop_last_trials=False,
    )


def _tune(
    config: RunConfig, trials: Sequence[SweepTrial], folder: Location, say: Callable[[str], None]
) -> dict[str, str]:
    """Run the trials; returns the reasons of those that failed, by name."""
    by_name = {trial.name: trial for trial in trials}
    sweep, storage = config.sweep, sweep_storage(folder)
    notes = _Notes(by_name, sweep.measurements, say)
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
    # Tune's own records: all that counts lies in the trials' folders.
    storage.delete()
    return notes.failed


class _Notes(tune.Callback):
    """Tells what happens, and writes down the end of every trial; in the driver."""

    def __init__(self, trials: Mapping[str, SweepTrial], measurements: int, say: Callable[[str], None]) -> None:
        self._trials = trials
        self._measurements = measurements
        self._say = say
        self.failed: dict[str, str] = {}

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:  # noqa: ANN401, ARG002 - Tune's types
        """A measurement."""
        name, number = trial.config[TRIAL_KEY], result[TIME_KEY]
        self._say(f"[sweep] {name[:6]} {number}/{self._measurements}: recall@1 {result[METRIC]:.2%}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:  # noqa: ANN401, ARG002
        """It came to its end, failed for good, or ASHA stopped it."""
        ended = self._trials[trial.config[TRIAL_KEY]]
        result = result_of(ended)
        write_result(ended.folder, result)
        self._say(f"[sweep] {result.trial[:6]} {result.state}{f': {result.reason}' if result.reason else ''}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:  # noqa: ANN401, ARG002
        """It ended by an error that is not of its training; Tune has logged it."""
        name = trial.config[TRIAL_KEY]
        self.failed[name] = "it ended by the error that Ray Tune has logged"
        self._say(f"[sweep] {name[:6]} failed: {self.failed[name]}")


def _prepare(
    config: RunConfig,
    work_units: Sequence[WorkUnit],
    clusters: Location,
    assignments: Location,
    folder: Location,
    expert: int | None,
    data_hash: str,
) -> SweepInputs:
    """Choose the held-out pairs, and write them to a file of their own."""
    group_m = Clustering.load(clusters).experts_of(config.train.experts)
    units = {record.unit for record in read_units(assignments)}
    pairs_n = np.zeros(config.train.experts, np.int64)

    def rows() -> Any:  # noqa: ANN401
        for work_unit in work_units:
            if work_unit.unit in units:
                table = read_output(assignments, work_unit.unit, ["row", "caption_index", FINE])
                expert_p = group_m[table[FINE].to_numpy()]
                pairs_n[:] += np.bincount(expert_p, minlength=len(pairs_n))
                own_p = np.ones(len(expert_p), np.bool_) if expert is None else expert_p == expert
                yield work_unit.unit, table["row"].to_numpy()[own_p], table["caption_index"].to_numpy()[own_p]

    held_out = choose_held_out(rows(), config.sweep.held_out_pairs)
    file = sweep_held_out(folder, combined_hash(map(repr, held_out.places)))
    if not file.exists():
        file.write_table(_read_pairs(config, work_units, assignments, held_out))
    return SweepInputs(
        sweep=folder,
        assignments=assignments,
        clusters=clusters,
        held_out=file,
        held_out_below=held_out.below,
        pairs_n=pairs_n,
        expert=expert,
        data_hash=data_hash,
    )


def _read_pairs(
    config: RunConfig, work_units: Sequence[WorkUnit], assignments: Location, held_out: HeldOut
) -> pa.Table:
    """Image and caption of every held-out pair, those with an undecodable image left out.

    Raises:
        DataError: More of them than limits.max_bad_image_share cannot be decoded.
    """
    units = {unit for unit, _, _ in held_out.places}
    index = load_index(assignments, [work_unit for work_unit in work_units if work_unit.unit in units])
    columns = (index.table[name].to_pylist() for name in ("shard", "row", "caption_index"))
    place_of = {
        (index.work_units[work_unit].unit, row, caption): place
        for place, (work_unit, row, caption) in enumerate(zip(*columns, strict=True))
    }
    pairs = PairReader(index, config.captions).read([place_of[place] for place in held_out.places])
    kept, bad = [], []
    for pair in pairs:
        try:
            decode_image(pair.image, config.limits.max_image_pixels, pair.place)
        except DataError as error:
            bad.append(str(error))
        else:
            kept.append(pair)
    if len(bad) > config.limits.max_bad_image_share * len(pairs):
        raise DataError(
            f"{len(bad)} of {len(pairs)} held-out images cannot be decoded, more than limits.max_bad_image_share="
            f"{config.limits.max_bad_image_share} allows; first: {bad[0]}"
        )
    return pa.table({"image": [pair.image for pair in kept], "caption": [pair.caption for pair in kept]})
