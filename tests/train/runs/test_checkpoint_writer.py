"""Checkpoints are written one at a time in the background, older ones are deleted, and errors are raised."""

import threading
from pathlib import Path

import pytest
import torch

from mode_ray.storage import Location
from mode_ray.train.runs.checkpoint_folders import checkpoint_name, whole_checkpoints
from mode_ray.train.runs.checkpoint_writer import CheckpointWriter
from mode_ray.train.runs.checkpoints import read_checkpoint
from mode_ray.train.step.loop import Snapshot

SNAPSHOT = Snapshot({"weight": torch.ones(2)}, lambda: b"state")
DEADLINE_SECONDS = 30.0


@pytest.fixture
def folder(tmp_path: Path) -> Location:
    return Location.parse(str(tmp_path / "checkpoints"))


@pytest.fixture
def writer(folder: Location) -> CheckpointWriter:
    return CheckpointWriter(folder, under_ray=False)


def nothing() -> None:
    pass


def test_what_follows_is_called_once_the_checkpoint_is_whole(writer: CheckpointWriter, folder: Location) -> None:
    seen: list[list[Location]] = []
    writer.write(SNAPSHOT, 8, lambda: seen.append(whole_checkpoints(folder)))
    writer.wait()
    assert [one.name for (one,) in seen] == [checkpoint_name(8)]
    assert read_checkpoint(folder / checkpoint_name(8)).state == b"state"


def test_it_is_writing_until_what_follows_is_over_and_the_next_waits_for_that(writer: CheckpointWriter) -> None:
    go_on, order = threading.Event(), []

    def first() -> None:
        assert go_on.wait(DEADLINE_SECONDS)
        order.append("first")

    writer.write(SNAPSHOT, 8, first)
    assert writer.is_writing()
    threading.Timer(0.1, go_on.set).start()
    writer.write(SNAPSHOT, 16, lambda: order.append("second"))
    writer.wait()
    assert order == ["first", "second"]
    assert not writer.is_writing()


def test_only_the_newest_is_kept_and_known(writer: CheckpointWriter, folder: Location) -> None:
    assert not whole_checkpoints(folder)
    for samples in (8, 16, 24):
        writer.write(SNAPSHOT, samples, nothing)
    writer.wait()
    assert [one.name for one in whole_checkpoints(folder)] == [checkpoint_name(24)]
    assert writer.newest is not None
    assert writer.newest.samples == 24


def test_an_error_is_raised_by_the_next_question(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    writer = CheckpointWriter(Location.parse(str(tmp_path / "file")), under_ray=False)
    writer.write(SNAPSHOT, 8, nothing)
    with pytest.raises(OSError, match="file"):
        writer.wait()
    assert not writer.is_writing()
    assert writer.newest is None
