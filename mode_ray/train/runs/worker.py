"""One worker of one training run under Ray Train: restores, loops, rolls back, writes the expert folder.

Ray Train restarts the workers after any exception. That mends a lost machine, never a wrong config or broken data:
such an error is left in the trial's directory, where restarted workers and the launcher find it.
"""

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

import ray.train
import ray.train.torch
import torch

from mode_ray.errors import ModeRayError, TrainingError
from mode_ray.models.clip import ClipModel, build_clip, load_clip, save_clip
from mode_ray.run_directory import ERROR_FILE, METRICS_FILE, STATE_FILE
from mode_ray.storage import Location
from mode_ray.train.data import PairDataset, train_loader
from mode_ray.train.plan import SEED
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
from mode_ray.train.step.loop import NonFiniteError, Snapshot, TrainLoop

_logger = logging.getLogger(__name__)


def train_worker(settings: Mapping[str, Any]) -> None:
    """The function that Ray Train runs on every worker of a trial.

    Errors that no restart mends go into the trial's `error.txt`; while that stands, the trial is not trained.

    Args:
        settings: `job`: the TrialJob; `checkpoints`: the Location of this run's checkpoints.
    """
    job: TrialJob = settings["job"]
    if read_error(job.folder) is not None:
        return
    context = ray.train.get_context()
    try:
        _train(job, settings["checkpoints"], context.get_world_rank(), context.get_world_size())
    except ModeRayError as error:
        (job.folder / ERROR_FILE).write_text(_one_line(error))
        if context.get_world_size() > 1:
            raise  # the other ranks wait in a collective, and Ray ends them only for a failed worker


def _train(job: TrialJob, checkpoints: Location, rank: int, world_size: int) -> None:
    train, placement = job.config.train, job.config.train.placement
    torch.set_num_threads(placement.threads_per_worker)
    clip = _initial_model(job)
    max_bad_share = job.config.limits.max_bad_image_share
    loop = TrainLoop(clip.module, job.trial, train, max_bad_share, rank, world_size, _device(job))
    newest = broadcast_newest_checkpoint(checkpoints, rank)
    if newest is not None:
        _restore(loop, newest)
    elif job.trial.parent is not None:
        loop.load_state((job.experts / job.trial.parent / STATE_FILE).read_bytes(), continues=False)
    data = TrialData(job)
    members = data.open()
    dataset = PairDataset(members, job.config, clip, job.trial.members.seed, data.captions)

    def loader(first: int) -> Any:  # noqa: ANN401 - DataLoader is generic in what the sampler gives
        return train_loader(
            dataset, first, job.trial.samples, train.batch_size, rank, world_size, placement.loader_workers
        )

    with open_reporter_on_all_ranks(job, loop, checkpoints, rank, world_size) as reporter:
        after_step = reporter.after_step_on_all_ranks
        if job.measure is not None:
            after_step = _also_measuring(job, job.measure, loop, rank, after_step)

        def run() -> None:
            loop.run(loader, reporter.log, after_step)

        if placement.nonfinite == "rollback":
            if newest is None:
                reporter.checkpoint_on_all_ranks()  # so that there is always one to go back to
            _run_with_rollbacks(job, loop, run, lambda: _roll_back_on_all_ranks(loop, reporter, checkpoints, rank))
        else:
            run()
        reporter.finish_on_all_ranks()
        final = loop.gather_snapshot()
        if rank == 0:
            _write_model(job, loop, clip, final, pairs=len(members))


def _write_model(job: TrialJob, loop: TrainLoop, clip: ClipModel, final: Snapshot, pairs: int) -> None:
    """Write the trained model with its metrics; for rank 0."""
    if job.trial.name == SEED:  # its children continue with its optimizer
        (job.folder / STATE_FILE).write_bytes(final.state)
    summary = {**vars(loop.state), "pairs": pairs, "samples": job.trial.samples}
    (job.folder / METRICS_FILE).write_text(json.dumps(summary, indent=1))
    # The model's config comes last: a folder that has it is whole.
    save_clip(job.folder, clip, final.weights)


def _run_with_rollbacks(
    job: TrialJob, loop: TrainLoop, run: Callable[[], None], roll_back: Callable[[], Location | None]
) -> None:
    """Train to the end, leaving out batches without a finite loss or gradient.

    Args:
        job: What is trained.
        loop: The loop.
        run: Runs the loop from its state to its end.
        roll_back: Restores the newest checkpoint and returns it, or None where there is none.

    Raises:
        TrainingError: There are more of them than rollbacks allowed.
    """
    skipped, max_rollbacks = set(loop.state.skipped), job.config.train.placement.max_rollbacks
    while True:
        try:
            run()
        except NonFiniteError as error:
            if len(skipped) >= max_rollbacks:
                raise TrainingError(
                    f"{error} (train.placement.max_rollbacks={max_rollbacks} batches were left out before)"
                ) from None
            skipped.add(error.samples_seen)
            loop.leave_out(error.samples_seen)
            checkpoint = roll_back()
            if checkpoint is None:
                raise TrainingError(f"{error} (there is no checkpoint to go back to)") from None
            _logger.warning(
                "%s: that batch is left out; resuming from %s",
                error,
                checkpoint,
                extra={"run": job.config.run, "stage": "train", "expert": job.trial.name},
            )
        else:
            return


def _roll_back_on_all_ranks(loop: TrainLoop, reporter: Reporter, checkpoints: Location, rank: int) -> Location | None:
    """Restore the newest checkpoint, after the one that is being written. Collective."""
    reporter.wait_on_all_ranks()
    newest = broadcast_newest_checkpoint(checkpoints, rank)
    if newest is not None:
        _restore(loop, newest)
    return newest


def _device(job: TrialJob) -> torch.device:
    """The device that Ray gave to this worker."""
    if not job.config.train.placement.use_gpu:
        return torch.device("cpu")
    device = ray.train.torch.get_device()
    torch.cuda.set_device(device)
    return device


def _also_measuring(
    job: TrialJob, measure: MeasureJob, loop: TrainLoop, rank: int, after_step: Callable[[], None]
) -> Callable[[], None]:
    """After every step, and before it is checkpointed, measure on the held-out pairs if that is due."""
    max_pixels = job.config.limits.max_image_pixels
    held_out = HeldOutMeasure(measure, job.folder, lambda: _initial_model(job), max_pixels, loop.device)

    def step_and_measure() -> None:
        seen = loop.state.samples_seen
        number = measure.due(seen - job.config.train.batch_size, seen)
        if number is not None:
            weights = loop.gather_snapshot().weights
            if rank == 0:
                held_out.measure(number, weights)
        after_step()

    return step_and_measure


def _one_line(error: ModeRayError) -> str:
    """The message alone: a loader process puts its stack trace before it."""
    return str(error).splitlines()[-1].removeprefix(f"{type(error).__module__}.{type(error).__qualname__}: ")


def _initial_model(job: TrialJob) -> ClipModel:
    """The parent's model, or a new one."""
    if job.trial.parent is not None:
        return load_clip(job.experts / job.trial.parent)
    train = job.config.train
    return build_clip(train.model, train.seed, logit_bias=train.loss.kind == "siglip")


def _restore(loop: TrainLoop, checkpoint: Location) -> None:
    """Go on from a checkpoint of this run."""
    snapshot = read_checkpoint(checkpoint)
    loop.load_weights(snapshot.weights)
    loop.load_state(snapshot.state, continues=True)
