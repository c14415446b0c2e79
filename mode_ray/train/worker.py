"""One worker of one training run under Ray Train: restores, loops, checkpoints, writes the expert folder.

Ray Train restarts the workers after any exception. That mends a lost machine, never a wrong config or broken data:
such an error is left in the trial's directory, where restarted workers and the launcher find it.
"""

import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import safetensors.torch
import torch
import torch.distributed

from mode_ray.assign import FINE
from mode_ray.captions.shards import read_shards
from mode_ray.cluster.clustering import Clustering
from mode_ray.errors import ModeRayError
from mode_ray.expert_data import PairIndex, load_index, select_members
from mode_ray.train.budget import SEED
from mode_ray.train.data import PairDataset, train_loader
from mode_ray.train.loop import TrainLoop
from mode_ray.train.model import ClipModel, build_clip, load_clip, save_clip
from mode_ray.train.trackers import Trackers, open_trackers
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
    device = ray.train.torch.get_device() if placement.use_gpu else torch.device("cpu")
    loop = TrainLoop(clip.module, job.trial, train, job.config.limits.max_bad_image_share, rank, world_size, device)
    _restore(job, loop)
    members = _members(job)
    dataset = PairDataset(members, job.config, clip, job.trial.members.seed)
    reporter = _Reporter(job, loop, rank)

    def loader(first: int) -> Any:  # noqa: ANN401 - DataLoader is generic in what the sampler gives
        return train_loader(
            dataset, first, job.trial.samples, train.batch_size, rank, world_size, placement.loader_workers
        )

    loop.run(loader, reporter.log, reporter.checkpoint_when_due)
    reporter.close()
    final = loop.snapshot()
    if rank == 0:
        # The model's config comes last: whoever sees a whole folder sees all of it.
        if job.trial.name == SEED:  # its children go on with its optimizer
            (job.folder / STATE_FILE).write_bytes(final.state)
        summary = {**vars(loop.state), "pairs": len(members), "samples": job.trial.samples}
        (job.folder / METRICS_FILE).write_text(json.dumps(summary, indent=1))
        save_clip(job.folder, clip, final.weights)


def _one_line(error: ModeRayError) -> str:
    """The message alone: a loader process puts its stack trace before it."""
    return str(error).splitlines()[-1].removeprefix(f"{type(error).__module__}.{type(error).__qualname__}: ")


def _members(job: TrialJob) -> PairIndex:
    """The trial's training set."""
    index = load_index(job.assignments, read_shards(job.experts / SHARDS_FILE))
    members = job.trial.members
    clustering = Clustering.load(job.clusters)
    group_m = (
        clustering.coarse[members.experts] if members.kind != "all" else clustering.coarse[min(clustering.coarse)]
    )
    return index.take(select_members(index.table[FINE].to_numpy(), group_m, members))


def _initial_model(job: TrialJob) -> ClipModel:
    """The parent's model, or a new one."""
    if job.trial.parent is not None:
        return load_clip(job.experts / job.trial.parent)
    train = job.config.train
    return build_clip(train.model, train.seed, logit_bias=train.loss.kind == "siglip")


def _restore(job: TrialJob, loop: TrainLoop) -> None:
    """Go on from the newest checkpoint of this run, or take over the parent's optimizer."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            loop.load_weights(safetensors.torch.load_file(Path(folder) / _CHECKPOINT_WEIGHTS))
            loop.load_state((Path(folder) / STATE_FILE).read_bytes(), continues=True)
    elif job.trial.parent is not None:
        loop.load_state((job.experts / job.trial.parent / STATE_FILE).read_bytes(), continues=False)


class _Reporter:
    """Writes progress and, by wall clock, checkpoints."""

    def __init__(self, job: TrialJob, loop: TrainLoop, rank: int) -> None:
        self._job = job
        self._loop = loop
        self._rank = rank
        self._interval_seconds = job.config.train.placement.checkpoint_interval_seconds
        self._last_checkpoint = time.monotonic()
        self._last_progress = 0.0
        samples_seen = loop.state.samples_seen
        self._trackers = (
            open_trackers(job.folder, job.trial.name, job.config.train, samples_seen) if rank == 0 else Trackers([])
        )

    def log(self, point: dict[str, float]) -> None:
        """Rank 0 leaves the newest point where `mode-ray status` finds it."""
        self._trackers.log(point)
        now = time.monotonic()
        due = now - self._last_progress >= _PROGRESS_INTERVAL_SECONDS or point["samples"] >= self._job.trial.samples
        if self._rank == 0 and due:
            self._last_progress = now
            (self._job.folder / PROGRESS_FILE).write_text(json.dumps(point))

    def checkpoint_when_due(self) -> None:
        """Checkpoint if the interval is over; rank 0's clock decides for all, since reporting is a barrier."""
        due = torch.tensor([time.monotonic() - self._last_checkpoint >= self._interval_seconds], dtype=torch.uint8)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            due = due.to(self._loop.device)
            torch.distributed.broadcast(due, src=0)
        if bool(due.item()):
            self._report()
            self._last_checkpoint = time.monotonic()

    def close(self) -> None:
        """The run is at its end."""
        self._trackers.close()

    def _report(self) -> None:
        metrics = {"samples": self._loop.state.samples_seen}
        snapshot = self._loop.snapshot()
        if self._rank != 0:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory(prefix="mode-ray-checkpoint-") as name:
            folder = Path(name)
            safetensors.torch.save_file(dict(snapshot.weights), folder / _CHECKPOINT_WEIGHTS)
            (folder / STATE_FILE).write_bytes(snapshot.state)
            self._trackers.flush()
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))
