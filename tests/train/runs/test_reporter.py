"""The reporter of a run with one rank, around a real training loop."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from trials import BATCH, DENSE_TRIAL

from mode_ray.config.run import RunConfig
from mode_ray.config.train import TrainPlacement
from mode_ray.models.clip import ClipModel
from mode_ray.pairs.index import PairIndex
from mode_ray.train.data import PairDataset, train_loader
from mode_ray.train.runs.checkpoint_folders import checkpoint_name, whole_checkpoints
from mode_ray.train.runs.checkpoint_schedule import CheckpointSchedule
from mode_ray.train.runs.checkpoint_writer import CheckpointWriter
from mode_ray.train.runs.progress_writer import ProgressWriter
from mode_ray.train.runs.rank_zero import RankZero
from mode_ray.train.runs.reporter import Reporter
from mode_ray.train.runs.trackers import Trackers
from mode_ray.train.step.loop import TrainLoop
from mode_ray.train.step.rank import ONLY_RANK

NEVER = 1e6
ALWAYS = 1e-9


class NotingTracker:
    """Notes its calls. With an event, a flush waits until it is set."""

    def __init__(self, may_flush: threading.Event | None = None) -> None:
        self.calls: list[str] = []
        self._may_flush = may_flush

    def log(self, point: object) -> None:
        pass

    def flush(self) -> None:
        if self._may_flush is not None:
            assert self._may_flush.wait(30)
        self.calls.append("flush")

    def preempted(self) -> None:
        self.calls.append("preempted")

    def close(self, *, failed: bool) -> None:
        self.calls.append(f"close failed={failed}")


class Run:
    """The dense trial with a reporter."""

    def __init__(self, clip: ClipModel, pairs: PairIndex, config: RunConfig) -> None:
        self.checkpoints = config.directory / "checkpoints"
        self.loop = TrainLoop(clip.module, DENSE_TRIAL, config.train, config.limits.max_bad_image_share)
        self._dataset = PairDataset(pairs, config, clip, seed=7)
        self._progress = config.directory / "progress.json"

    def train(
        self,
        tracker: NotingTracker,
        schedule: CheckpointSchedule,
        find_preemption: Callable[[], object] = lambda: None,
        at_end: Callable[[], None] = lambda: None,
    ) -> None:
        def loader(first: int) -> Any:  # noqa: ANN401
            return train_loader(self._dataset, range(first, DENSE_TRIAL.samples, BATCH), ONLY_RANK, TrainPlacement())

        writer = CheckpointWriter(self.checkpoints, under_ray=False)
        progress = ProgressWriter(self._progress, time.monotonic())
        rank_zero = RankZero(schedule, writer, progress, Trackers([tracker]), workers=1)
        with Reporter(self.loop, DENSE_TRIAL.samples, rank_zero, None, find_preemption) as reporter:
            self.loop.run(loader, reporter.log, reporter.after_step_on_all_ranks)
            at_end()
            reporter.finish_on_all_ranks()

    def checkpoint_names(self) -> list[str]:
        return [one.name for one in whole_checkpoints(self.checkpoints)]


@pytest.fixture
def run(new_clip: Callable[[], ClipModel], all_pairs: PairIndex, make_config: Callable[..., RunConfig]) -> Run:
    return Run(new_clip(), all_pairs, make_config())


def test_training_continues_while_a_checkpoint_is_written(run: Run) -> None:
    ended = threading.Event()
    tracker = NotingTracker(ended)
    run.train(tracker, CheckpointSchedule(ALWAYS, time.monotonic(), 0, NEVER), at_end=ended.set)
    # The first checkpoint was not complete before training ended, so there is no second one.
    assert tracker.calls == ["flush", "close failed=False"]
    assert run.checkpoint_names() == [checkpoint_name(BATCH)]


def test_a_node_that_will_be_preempted_causes_exactly_one_more_checkpoint(run: Run) -> None:
    found = iter([None, None, object()])  # a fourth question would raise StopIteration
    tracker = NotingTracker()
    run.train(tracker, CheckpointSchedule(NEVER, time.monotonic(), 0, ALWAYS), lambda: next(found))
    assert run.checkpoint_names() == [checkpoint_name(3 * BATCH)]
    assert tracker.calls == ["preempted", "close failed=False"]


def test_an_error_closes_the_trackers_as_failed(run: Run) -> None:
    tracker = NotingTracker()

    def fail() -> object:
        raise ConnectionError("controller lost")

    with pytest.raises(ConnectionError, match="controller lost"):
        run.train(tracker, CheckpointSchedule(NEVER, time.monotonic(), 0, ALWAYS), fail)
    assert tracker.calls == ["close failed=True"]
    assert not run.checkpoints.files()
