"""One worker of one training run under Ray Train: restores, loops, checkpoints, writes the expert folder.

Ray Train restarts the workers after any exception. That mends a lost machine, never a wrong config or broken data:
such an error is left in the trial's directory, where restarted workers and the launcher find it.
"""

import json
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import safetensors.torch
import torch
import torch.distributed

from mode_ray.assign import FINE
from mode_ray.captions.shards import read_shards
from mode_ray.cluster.clustering import Clustering
from mode_ray.errors import ModeRayError
from mode_ray.expert_data import SHARD, PairIndex, load_index, select_members
from mode_ray.held_out import is_kept
from mode_ray.train.budget import SEED
from mode_ray.train.data import PairDataset, train_loader
from mode_ray.train.loop import TrainLoop
from mode_ray.train.measure import HeldOutMeasure
from mode_ray.train.measure_job import MeasureJob
from mode_ray.train.model import ClipModel, build_clip, load_clip, save_clip
from mode_ray.train.trial import (
    ERROR_FILE,
    METRICS_FILE,
    PROGRESS_FILE,
    SHARDS_FILE,
    STATE_FILE,
    TrialJob,
    read_error,
)

_CHECKPOINT_WEIGHTS = "model.safetensors"
_PROGRESS_INTERVAL_SECONDS = 2.0


def train_worker(settings: Mapping[str, Any]) -> None:
    """The function that Ray Train runs on every worker of a trial.

    Errors that no restart mends go into the trial's `error.txt`; while that stands, the trial is not trained.

    Args:
        settings: `job`: the TrialJob.
    """
    job: TrialJob = settings["job"]
    if read_error(job.folder) is not None:
        return
    context = ray.train.get_context()
    try:
        _train(job, context.get_world_rank(), context.get_world_size())
    except ModeRayError as error:
        (job.folder / ERROR_FILE).write_text(_one_line(error))
        if context.get_world_size() > 1:
            raise  # the other ranks wait in a collective, and Ray ends them only for a failed worker


def _train(job: TrialJob, rank: int, world_size: int) -> None:
    train, placement = job.config.train, job.config.train.placement
    torch.set_num_threads(placement.threads_per_worker)
    clip = _initial_model(job)
    module = ray.train.torch.prepare_model(clip.module) if world_size > 1 or placement.use_gpu else clip.module
    loop = TrainLoop(module, job.trial, train, job.config.limits.max_bad_image_share, rank, world_size)
    _restore(job, clip, loop)
    members = _members(job)
    dataset = PairDataset(members, job.config, clip, job.trial.members.seed)
    reporter = _Reporter(job, clip, loop, rank)

    def loader(first: int) -> Any:  # noqa: ANN401 - DataLoader is generic in what the sampler gives
        return train_loader(
            dataset, first, job.trial.samples, train.batch_size, rank, world_size, placement.loader_workers
        )

    after_step = reporter.checkpoint_when_due
    if job.measure is not None:
        after_step = _also_measuring(job, job.measure, clip, loop, rank, after_step)
    loop.run(loader, reporter.log, after_step)
    if rank == 0:
        # The model's config comes last: whoever sees a whole folder sees all of it.
        if job.trial.name == SEED:  # its children go on with its optimizer
            (job.folder / STATE_FILE).write_bytes(loop.optimizer_state())
        summary = {**vars(loop.state), "pairs": len(members), "samples": job.trial.samples}
        (job.folder / METRICS_FILE).write_text(json.dumps(summary, indent=1))
        save_clip(job.folder, clip)


def _also_measuring(
    job: TrialJob, measure: MeasureJob, clip: ClipModel, loop: TrainLoop, rank: int, after_step: Callable[[], None]
) -> Callable[[], None]:
    """After every step, and before it is checkpointed, measure on the held-out pairs if that is due."""
    device = next(clip.module.parameters()).device
    max_pixels = job.config.limits.max_image_pixels
    held_out = HeldOutMeasure(measure, job.folder, lambda: _initial_model(job), max_pixels, device)

    def step_and_measure() -> None:
        seen = loop.state.samples_seen
        number = measure.due(seen - job.config.train.batch_size, seen)
        if number is not None and rank == 0:
            held_out.measure(number, clip.module.state_dict())
        after_step()

    return step_and_measure


def _one_line(error: ModeRayError) -> str:
    """The message alone: a loader process puts its stack trace before it."""
    return str(error).splitlines()[-1].removeprefix(f"{type(error).__module__}.{type(error).__qualname__}: ")


def _members(job: TrialJob) -> PairIndex:
    """The trial's training set."""
    index = load_index(job.assignments, read_shards(job.experts / SHARDS_FILE))
    members = job.trial.members
    if members.held_out_below:
        index = _without_held_out(index, members.held_out_below)
    clustering = Clustering.load(job.clusters)
    group_m = (
        clustering.coarse[members.experts] if members.kind != "all" else clustering.coarse[min(clustering.coarse)]
    )
    return index.take(select_members(index.table[FINE].to_numpy(), group_m, members))


def _without_held_out(index: PairIndex, below: int) -> PairIndex:
    number_p, row_p = index.table[SHARD].to_numpy(), index.table["row"].to_numpy()
    kept_p = np.zeros(len(index), np.bool_)
    for number in np.unique(number_p).tolist():
        own = np.flatnonzero(number_p == number)
        kept_p[own] = is_kept(index.shards[number].unit, row_p[own], below)
    return index.take(np.flatnonzero(kept_p))


def _initial_model(job: TrialJob) -> ClipModel:
    """The parent's model, or a new one."""
    if job.trial.parent is not None:
        return load_clip(job.experts / job.trial.parent)
    return build_clip(job.config.train.model, job.config.train.seed)


def _restore(job: TrialJob, clip: ClipModel, loop: TrainLoop) -> None:
    """Go on from the newest checkpoint of this run, or take over the parent's optimizer."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            clip.module.load_state_dict(safetensors.torch.load_file(Path(folder) / _CHECKPOINT_WEIGHTS))
            loop.load_state((Path(folder) / STATE_FILE).read_bytes(), continues=True)
    elif job.trial.parent is not None:
        loop.load_state((job.experts / job.trial.parent / STATE_FILE).read_bytes(), continues=False)


class _Reporter:
    """Writes progress and, by wall clock, checkpoints."""

    def __init__(self, job: TrialJob, clip: ClipModel, loop: TrainLoop, rank: int) -> None:
        self._job = job
        self._clip = clip
        self._loop = loop
        self._rank = rank
        self._interval_seconds = job.config.train.placement.checkpoint_interval_seconds
        self._last_checkpoint = time.monotonic()
        self._last_progress = 0.0

    def log(self, point: dict[str, float]) -> None:
        """Rank 0 leaves the newest point where `mode-ray status` finds it."""
        now = time.monotonic()
        due = now - self._last_progress >= _PROGRESS_INTERVAL_SECONDS or point["samples"] >= self._job.trial.samples
        if self._rank == 0 and due:
            self._last_progress = now
            (self._job.folder / PROGRESS_FILE).write_text(json.dumps(point))

    def checkpoint_when_due(self) -> None:
        """Checkpoint if the interval is over; rank 0's clock decides for all, since reporting is a barrier."""
        due = torch.tensor([time.monotonic() - self._last_checkpoint >= self._interval_seconds], dtype=torch.uint8)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            due = due.to(next(self._clip.module.parameters()).device)
            torch.distributed.broadcast(due, src=0)
        if bool(due.item()):
            self._report()
            self._last_checkpoint = time.monotonic()

    def _report(self) -> None:
        metrics = {"samples": self._loop.state.samples_seen}
        if self._rank != 0:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory(prefix="mode-ray-checkpoint-") as name:
            folder = Path(name)
            safetensors.torch.save_model(self._clip.module, str(folder / _CHECKPOINT_WEIGHTS))
            (folder / STATE_FILE).write_bytes(self._loop.optimizer_state())
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))
