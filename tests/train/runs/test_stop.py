"""A driver that ends by SIGTERM asks its runs for a checkpoint, and waits for it a limited time."""

import json
import signal
from pathlib import Path

import pytest
import torch

from mode_ray.run_directory import PROGRESS_FILE, STOP_FILE
from mode_ray.storage import Location
from mode_ray.train.runs.agreement import Order
from mode_ray.train.runs.checkpoint_folders import checkpoint_name, whole_checkpoints
from mode_ray.train.runs.checkpoint_schedule import CheckpointSchedule
from mode_ray.train.runs.checkpoint_writer import CheckpointWriter
from mode_ray.train.runs.progress_writer import ProgressWriter
from mode_ray.train.runs.rank_zero import RankZero
from mode_ray.train.runs.stop import STOPPED_SAMPLES, sigterm_as_exit, write_last_checkpoints
from mode_ray.train.runs.trackers import Trackers
from mode_ray.train.step.loop import Snapshot

LONG_AGO = -1e9
NEVER = 1e12


@pytest.fixture
def folder(tmp_path: Path) -> Location:
    return Location(str(tmp_path / "seed"))


@pytest.fixture
def rank_zero(folder: Location) -> RankZero:
    return RankZero(
        CheckpointSchedule(NEVER, 0.0, 0, NEVER),
        CheckpointWriter(folder / "checkpoints", under_ray=False),
        ProgressWriter(folder / PROGRESS_FILE, LONG_AGO),
        Trackers([]),
        workers=1,
    )


def progress(folder: Location) -> dict[str, float]:
    figures: dict[str, float] = json.loads((folder / PROGRESS_FILE).read_text())
    return figures


def test_sigterm_is_an_exit_and_the_handler_before_it_comes_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended, sigterm_as_exit():
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before


class TestWorker:
    def test_it_writes_one_checkpoint_and_reports_its_samples(self, rank_zero: RankZero, folder: Location) -> None:
        (folder / STOP_FILE).write_text("{}")
        rank_zero.write_last_progress(8)  # the thread that writes it finds the request
        assert rank_zero.after_step(16) == Order.CHECKPOINT
        assert STOPPED_SAMPLES not in progress(folder)
        rank_zero.write_checkpoint(Snapshot({"w": torch.zeros(2)}, lambda: b"state"), 16, preempted=False)
        rank_zero.checkpoints.wait()
        assert rank_zero.after_step(24) == Order.NOTHING
        rank_zero.write_last_progress(24)
        assert progress(folder)[STOPPED_SAMPLES] == 16
        assert [one.name for one in whole_checkpoints(folder / "checkpoints")] == [checkpoint_name(16)]

    def test_without_a_request_none_is_written(self, rank_zero: RankZero, folder: Location) -> None:
        for samples in (8, 16):
            assert rank_zero.after_step(samples) == Order.NOTHING
            rank_zero.write_last_progress(samples)
        assert STOPPED_SAMPLES not in progress(folder)


class TestDriver:
    def test_it_waits_for_all_runs_at_work(self, folder: Location) -> None:
        folders = {name: folder / name for name in ("n2/00", "n2/01", "not begun")}
        for name in ("n2/00", "n2/01"):
            (folders[name] / PROGRESS_FILE).write_text("{}")
        answers = iter([("n2/01", 320.0), ("n2/00", 640.0)])

        def sleep(_: float) -> None:
            assert (folders["n2/00"] / STOP_FILE).exists()
            name, samples = next(answers)
            (folders[name] / PROGRESS_FILE).write_text(json.dumps({STOPPED_SAMPLES: samples}))

        assert write_last_checkpoints(folders, 60.0, sleep) == {"n2/01": 320, "n2/00": 640}
        assert not any((one / STOP_FILE).exists() for one in folders.values())

    def test_its_patience_has_an_end(self, folder: Location) -> None:
        (folder / PROGRESS_FILE).write_text("{}")
        assert write_last_checkpoints({"seed": folder}, 0.0) == {}
        assert not (folder / STOP_FILE).exists()
