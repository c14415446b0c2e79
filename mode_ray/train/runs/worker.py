"""One worker of one training run under Ray Train: it restores, trains, rolls back and writes the expert folder.

Ray Train restarts the workers after any exception. A restart fixes a lost machine, but not a wrong config or
broken data: such an error is written to the trial's directory, where restarted workers and the launcher find it.
"""

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ray.train
import ray.train.torch
import torch

from mode_ray.errors import ModeRayError, TrainingError
from mode_ray.models.clip import ClipModel, build_clip, load_clip, save_clip
from mode_ray.models.crops import transform_of
from mode_ray.models.locking import lock_towers
from mode_ray.models.preprocess import ImageGeometry, ImageInput
from mode_ray.models.widening import build_wide_clip
from mode_ray.pairs.feature_rows import FeatureRows, require_same_input
from mode_ray.pairs.index import PairIndex
from mode_ray.run_directory import ERROR_FILE, METRICS_FILE, STATE_FILE
from mode_ray.storage import Location
from mode_ray.train.data import PairDataset, train_loader
from mode_ray.train.feature_data import FeatureDataset
from mode_ray.train.plan import SEED, WIDE
from mode_ray.train.runs.checkpoints import read_checkpoint
from mode_ray.train.runs.measure import HeldOutMeasure
from mode_ray.train.runs.measure_job import MeasureJob
from mode_ray.train.runs.reporter import (
    Reporter,
    broadcast_newest_checkpoint,
    open_reporter_on_all_ranks,
)
from mode_ray.train.runs.trial import TrialJob, read_error
from mode_ray.train.runs.trial_data import TrialData
from mode_ray.train.step.batch import TrainBatch
from mode_ray.train.step.loop import NonFiniteError, Snapshot, TrainLoop
from mode_ray.train.step.rank import Rank
from mode_ray.util.devices import require_cuda

_logger = logging.getLogger(__name__)


def train_worker(settings: Mapping[str, Any]) -> None:
    """The function that Ray Train runs on every worker of a trial.

    Args:
        settings: `job`: the TrialJob; `checkpoints`: the Location of this run's checkpoints.
    """
    context = ray.train.get_context()
    train_on_all_ranks(
        settings["job"], settings["checkpoints"], Rank(context.get_world_rank(), context.get_world_size())
    )


def train_on_all_ranks(job: TrialJob, checkpoints: Location, rank: Rank) -> None:
    """Train a trial as one of its ranks.

    A permanent error is written to the trial's `error.txt`. While that file exists, the trial is not trained.
    """
    if read_error(job.folder) is not None:
        return
    try:
        _train(job, checkpoints, rank)
    except ModeRayError as error:
        (job.folder / ERROR_FILE).write_text(_one_line(error))
        if rank.world_size > 1:
            raise  # the other ranks wait in a collective, and Ray ends them only if a worker fails


def _train(job: TrialJob, checkpoints: Location, rank: Rank) -> None:
    train, placement = job.config.train, job.config.train.placement
    torch.set_num_threads(placement.threads_per_worker)
    clip = _initial_model(job)
    max_bad_share = job.config.limits.max_bad_image_share
    loop = TrainLoop(clip.module, job.trial, train, max_bad_share, rank, _device(job))
    newest = broadcast_newest_checkpoint(checkpoints, rank)
    if newest is not None:
        _restore_on_all_ranks(loop, newest)
    elif job.trial.parent is not None:
        loop.load_state_on_all_ranks((job.experts / job.trial.parent / STATE_FILE).read_bytes(), continues=False)
    data = TrialData(job)
    members = data.open()
    dataset = _dataset(data, members, clip, loop)

    def loader(first: int) -> Iterable[TrainBatch]:
        batches = range(first, job.trial.samples, train.batch_size)
        return train_loader(dataset, batches, rank, placement, pin_memory=loop.device.type == "cuda")

    with open_reporter_on_all_ranks(job, loop, checkpoints, rank) as reporter:
        after_step = reporter.after_step_on_all_ranks
        if job.measure is not None:
            after_step = _measured_on_all_ranks(job, job.measure, loop, rank, after_step)

        def run() -> None:
            loop.run(loader, reporter.log, after_step)

        if placement.nonfinite == "rollback":
            if newest is None:
                reporter.checkpoint_on_all_ranks()  # so that there is always one to roll back to
            _run_with_rollbacks(job, loop, run, lambda: _roll_back_on_all_ranks(loop, reporter, checkpoints, rank))
        else:
            run()
        reporter.finish_on_all_ranks()
        final = loop.gather_snapshot()
        if rank.number == 0:
            _write_model(job, loop, clip, final, pairs=len(members))


def _dataset(data: TrialData, members: PairIndex, clip: ClipModel, loop: TrainLoop) -> PairDataset | FeatureDataset:
    """The samples of a trial: images and captions, or their features.

    Raises:
        UsageError: The features were computed with other weights or another transform.
        DataError: A pair has no features.
    """
    job = data.job
    order, seed = data.order(len(members)), job.trial.members.seed
    if loop.trunk_hash is None:
        return PairDataset(members, job.config, clip, seed, data.captions, loop.prepare_texts).in_order(order)
    rows = FeatureRows.open(job.features)
    require_same_input(rows, loop.trunk_hash, transform_of(clip), job.features)
    return FeatureDataset(rows, members, order, seed)


def _write_model(job: TrialJob, loop: TrainLoop, clip: ClipModel, final: Snapshot, pairs: int) -> None:
    """Write the trained model and its metrics, on rank 0."""
    if job.trial.name == SEED:  # its children continue its optimizer
        (job.folder / STATE_FILE).write_bytes(final.state)
    summary = {**vars(loop.state), "pairs": pairs, "samples": job.trial.samples}
    (job.folder / METRICS_FILE).write_text(json.dumps(summary, indent=1))
    # `save_clip` writes the model's config last: a folder that has it is complete.
    save_clip(job.folder, clip, final.weights)


def _run_with_rollbacks(
    job: TrialJob, loop: TrainLoop, run: Callable[[], None], roll_back: Callable[[], Location | None]
) -> None:
    """Train to the end, and skip batches whose loss or gradient is not finite.

    `roll_back` restores the newest checkpoint and returns it, or None if there is none.

    Raises:
        TrainingError: There are more such batches than allowed rollbacks.
    """
    skipped, max_rollbacks = set(loop.state.skipped), job.config.train.placement.max_rollbacks
    while True:
        try:
            run()
        except NonFiniteError as error:
            if len(skipped) >= max_rollbacks:
                raise TrainingError(
                    f"{error} (train.placement.max_rollbacks={max_rollbacks} batches were skipped before)"
                ) from None
            skipped.add(error.samples_seen)
            loop.skip(error.samples_seen)
            checkpoint = roll_back()
            if checkpoint is None:
                raise TrainingError(f"{error} (there is no checkpoint to roll back to)") from None
            _logger.warning(
                "%s: skipping that batch and resuming from %s",
                error,
                checkpoint,
                extra={"run": job.config.run, "stage": "train", "expert": job.trial.name},
            )
        else:
            return


def _roll_back_on_all_ranks(loop: TrainLoop, reporter: Reporter, checkpoints: Location, rank: Rank) -> Location | None:
    """Wait until no checkpoint is being written, and restore the newest one. Collective."""
    reporter.wait_on_all_ranks()
    newest = broadcast_newest_checkpoint(checkpoints, rank)
    if newest is not None:
        _restore_on_all_ranks(loop, newest)
    return newest


def _device(job: TrialJob) -> torch.device:
    """The device that Ray assigned to this worker.

    Raises:
        UsageError: `use_gpu` is set, and the worker cannot use a GPU; Ray Train would then return the CPU.
    """
    if not job.config.train.placement.use_gpu:
        return torch.device("cpu")
    require_cuda("train.placement.use_gpu")
    device = ray.train.torch.get_device()
    torch.cuda.set_device(device)
    return device


def _measured_on_all_ranks(
    job: TrialJob, measure: MeasureJob, loop: TrainLoop, rank: Rank, after_step: Callable[[], None]
) -> Callable[[], None]:
    """`after_step`, preceded by a measurement on the held-out pairs if one is due. Collective."""
    config = job.config

    def images(geometry: ImageGeometry) -> ImageInput:
        return ImageInput(geometry, config.limits.max_image_pixels, config.images)

    held_out = HeldOutMeasure(measure, job.folder, lambda: _initial_model(job), images, loop.device)

    def step_and_measure() -> None:
        seen = loop.state.samples_seen
        number = measure.due(seen - job.config.train.batch_size, seen)
        if number is not None:
            weights = loop.gather_snapshot().weights
            if rank.number == 0:
                held_out.measure(number, weights)
        after_step()

    return step_and_measure


def _one_line(error: ModeRayError) -> str:
    """The message without the stack trace that a loader process puts before it."""
    return str(error).splitlines()[-1].removeprefix(f"{type(error).__module__}.{type(error).__qualname__}: ")


def _initial_model(job: TrialJob) -> ClipModel:
    """The parent's model, or a new one, with its towers locked."""
    train = job.config.train
    if job.trial.name == WIDE:
        return build_wide_clip(train, train.experts)
    if job.trial.parent is not None:
        clip = load_clip(job.experts / job.trial.parent)
    else:
        clip = build_clip(train.model, train.seed, logit_bias=train.loss.kind == "siglip")
    lock_towers(clip.module, train.model.lock)
    return clip


def _restore_on_all_ranks(loop: TrainLoop, checkpoint: Location) -> None:
    """Resume from a checkpoint of this run."""
    snapshot = read_checkpoint(checkpoint)
    loop.load_weights_on_all_ranks(snapshot.weights)
    loop.load_state_on_all_ranks(snapshot.state, continues=True)
