"""A checkpoint is whole or does not count."""

from pathlib import Path

import pytest
import torch

from mode_ray.run_directory import CHECKPOINT_WEIGHTS, STATE_FILE
from mode_ray.storage import Location
from mode_ray.train.runs.checkpoint_folders import checkpoint_name, whole_checkpoints
from mode_ray.train.runs.checkpoints import read_checkpoint, write_checkpoint
from mode_ray.train.step.loop import Snapshot

SNAPSHOT = Snapshot({"a.weight": torch.arange(6.0).reshape(2, 3), "logit_scale": torch.tensor(2.5)}, lambda: b"state")


@pytest.fixture
def folder(tmp_path: Path) -> Location:
    return Location.parse(str(tmp_path / "checkpoints"))


def test_it_comes_back_as_it_was(folder: Location) -> None:
    write_checkpoint(folder / checkpoint_name(64), SNAPSHOT)
    again = read_checkpoint(folder / checkpoint_name(64))
    assert again.state == b"state"
    assert again.weights.keys() == SNAPSHOT.weights.keys()
    assert all(torch.equal(again.weights[name], SNAPSHOT.weights[name]) for name in SNAPSHOT.weights)


def test_it_comes_back_from_an_object_store(bucket: str) -> None:
    folder = Location.parse(f"{bucket}/run/checkpoints")
    write_checkpoint(folder / checkpoint_name(64), SNAPSHOT)
    (newest,) = whole_checkpoints(folder)
    assert newest == folder / checkpoint_name(64)
    assert read_checkpoint(newest).state == b"state"


def test_there_is_none_before_the_first(folder: Location) -> None:
    assert whole_checkpoints(folder) == []


def test_the_newest_is_the_one_with_the_most_samples(folder: Location) -> None:
    samples = (900, 12_800_000_000, 1_000)
    for number in samples:
        write_checkpoint(folder / checkpoint_name(number), SNAPSHOT)
    assert [one.name for one in whole_checkpoints(folder)] == [checkpoint_name(number) for number in sorted(samples)]


@pytest.mark.parametrize("missing", [CHECKPOINT_WEIGHTS, STATE_FILE])
def test_one_that_a_kill_cut_off_does_not_count(folder: Location, missing: str) -> None:
    for number in (1, 2):
        write_checkpoint(folder / checkpoint_name(number), SNAPSHOT)
    (folder / checkpoint_name(2) / missing).delete()
    assert whole_checkpoints(folder) == [folder / checkpoint_name(1)]
