"""The `sweep` command: plan the trials, report them while they train, and write the best one as a config."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from mode_ray.assign.table import FINE, assigned_units, stream_assignments
from mode_ray.cluster.clustering import Clustering
from mode_ray.config.run import RunConfig
from mode_ray.errors import DataError, TrainingError, UsageError
from mode_ray.models.architecture import clip_config_of
from mode_ray.models.check import check_model
from mode_ray.pairs.held_out import HeldOut, choose_held_out
from mode_ray.pairs.index import load_index
from mode_ray.pairs.reader import PairReader
from mode_ray.pairs.training_set import write_set_units
from mode_ray.run_directory import SWEEP_RESULT, WORK_UNITS_FILE, sweep_directory, sweep_held_out, sweep_storage
from mode_ray.stages.manifest import combined_hash, read_manifest
from mode_ray.stages.run import Run
from mode_ray.stages.work_unit import require_images
from mode_ray.storage import Location
from mode_ray.sweep.plan import SweepInputs, SweepTrial, plan_sweep, swept_expert
from mode_ray.sweep.results import SweepReport, read_result, write_results
from mode_ray.sweep.space import draw_points
from mode_ray.sweep.trainable import METRIC, result_of
from mode_ray.sweep.tuning import read_notes, tune_trials
from mode_ray.train.runs.launcher import launcher_options
from mode_ray.util.ray_tasks import cancel_unfinished, task_result

_POLL_SECONDS = 1.0


def run_sweep(run: Run, say: Callable[[str], None]) -> SweepReport:
    """Run the sweep of a run's config; finished trials are kept. Ray must be running.

    Raises:
        UsageError: No field is swept, a point is not a valid config, or the assign stage is not done.
        DataError: The training set is too small, or held-out images cannot be read.
        TrainingError: No trial was trained to its end.
    """
    config = run.config
    if not config.sweep.fields:
        raise UsageError("sweep.fields is empty: name the training fields to sweep, with their values")
    assigned = read_manifest(run.assignments)
    if assigned is None:
        raise UsageError("the sweep needs the assign stage, which is not done: run `mode-ray assign` first")
    require_images(run.work_units)
    check_model(config.train)
    folder = sweep_directory(run.directory)
    clustering = Clustering.load(run.clusters)
    expert = swept_expert(config, clustering.widest_first(config.train.experts)[0])
    # A separate task, because it needs memory for assignments and images.
    prepared = ray.remote(max_calls=1)(_prepare).options(name="sweep: held-out pairs")
    inputs: SweepInputs = task_result(prepared.remote(run, expert, assigned.content_hash))
    trials = plan_sweep(config, draw_points(config.sweep), inputs)
    for trial in trials:
        write_set_units(trial.folder / WORK_UNITS_FILE, run.work_units)
        earlier = read_result(trial.folder)
        if earlier is not None and earlier.state == "failed":
            (trial.folder / SWEEP_RESULT).delete()  # its cause may be fixed
    model = "the dense baseline" if expert is None else f"expert {expert}"
    ended = sum(read_result(trial.folder) is not None for trial in trials)
    say(f"[sweep] {len(trials)} trials of {model}, {ended} of them ended before")
    failed = _train_all(config, trials, folder, say) if ended < len(trials) else {}
    results = [result_of(trial, failed.get(trial.name)) for trial in trials]
    about = {"model": model, "metric": METRIC, "measurements": config.sweep.measurements}
    write_results(folder, config, results, about)
    if all(result.state != "finished" for result in results):
        reasons = "; ".join(f"{result.trial}: {result.reason}" for result in results if result.reason)
        raise TrainingError(f"sweep: no trial was trained to its end: {reasons}")
    return SweepReport(folder, results, config.sweep.measurements)


def _train_all(
    config: RunConfig, trials: Sequence[SweepTrial], folder: Location, say: Callable[[str], None]
) -> dict[str, str]:
    """Run Tune in a separate task, and report its notes; returns the reasons of failed trials, by name.

    Tune pickles everything that it is given, including callbacks. Therefore it gets only data and writes its notes to
    a file, and the driver prints them.
    """
    storage = sweep_storage(folder)
    storage.delete()  # left by a sweep that was killed
    options = launcher_options(config.train.placement, "sweep")
    reference = ray.remote(max_calls=1)(tune_trials).options(**options).remote(config, trials, storage)
    reported = 0
    ready: list[Any] = []
    try:
        while not ready:
            ready, _ = ray.wait([reference], timeout=_POLL_SECONDS)
            notes = read_notes(storage)
            for note in notes[reported:]:
                say(f"[sweep] {note}")
            reported = len(notes)
        failed: dict[str, str] = task_result(reference)
    except ray.exceptions.WorkerCrashedError as error:
        raise TrainingError(f"sweep: the task that runs Ray Tune was lost ({error}); run the command again") from None
    finally:
        # Otherwise the trials continue in a session that outlives this call, such as a notebook's.
        cancel_unfinished([reference])
    # These are Tune's own records. The results of the trials are in the trials' folders.
    storage.delete()
    return failed


def _prepare(run: Run, expert: int | None, data_hash: str) -> SweepInputs:
    """Choose the held-out pairs, and write them to a file."""
    folder, n = sweep_directory(run.directory), run.config.train.experts
    group_m = Clustering.load(run.clusters).experts_of(n)
    pairs_n = np.zeros(n, np.int64)

    def rows() -> Any:  # noqa: ANN401
        numbered = assigned_units(run.assignments, run.work_units)
        for _, work_unit, table in stream_assignments(run.assignments, numbered, ["row", "caption_index", FINE]):
            expert_p = group_m[table[FINE].to_numpy()]
            pairs_n[:] += np.bincount(expert_p, minlength=len(pairs_n))
            own_p = np.ones(len(expert_p), np.bool_) if expert is None else expert_p == expert
            yield work_unit.unit, table["row"].to_numpy()[own_p], table["caption_index"].to_numpy()[own_p]

    held_out = choose_held_out(rows(), run.config.sweep.held_out_pairs)
    file = sweep_held_out(folder, combined_hash(map(repr, held_out.places)))
    if not file.exists():
        file.write_table(_read_pairs(run, held_out))
    return SweepInputs(
        sweep=folder,
        assignments=run.assignments,
        clusters=run.clusters,
        held_out=file,
        held_out_below=held_out.below,
        pairs_n=pairs_n,
        expert=expert,
        data_hash=data_hash,
    )


def _read_pairs(run: Run, held_out: HeldOut) -> pa.Table:
    """Image and caption of every held-out pair with a decodable image.

    Raises:
        DataError: The share of undecodable images is above limits.max_bad_image_share.
    """
    from mode_ray.models.preprocess import ImageGeometry, ImageInput  # imports torch, which the driver does not need

    limits, units = run.config.limits, {unit for unit, _, _ in held_out.places}
    index = load_index(run.assignments, [work_unit for work_unit in run.work_units if work_unit.unit in units])
    columns = (index.column(name).tolist() for name in ("shard", "row", "caption_index"))
    place_of = {
        (index.work_units[work_unit].unit, row, caption): place
        for place, (work_unit, row, caption) in enumerate(zip(*columns, strict=True))
    }
    pairs = PairReader(index, run.config.captions).read([place_of[place] for place in held_out.places])
    geometry = ImageGeometry.of_model(clip_config_of(run.config.train.model))
    images = ImageInput(geometry, limits.max_image_pixels, run.config.images)
    kept, bad = [], []
    for pair in pairs:
        try:
            images.prepare(pair.encoded(), pair.place)
        except DataError as error:
            bad.append(str(error))
        else:
            kept.append(pair)
    if len(bad) > limits.max_bad_image_share * len(pairs):
        raise DataError(
            f"{len(bad)} of {len(pairs)} held-out images cannot be decoded, more than limits.max_bad_image_share="
            f"{limits.max_bad_image_share} allows; first: {bad[0]}"
        )
    return pa.table({"image": [pair.image for pair in kept], "caption": [pair.caption for pair in kept]})
