"""A model that is untrained, missing or incomplete is reported before anything is measured."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import safetensors.torch
import torch

from mode_ray.errors import DataError, UsageError
from mode_ray.evaluate.measure.models import check_models, find_trained
from mode_ray.models.architecture import CONFIG_FILE, WEIGHTS_FILE
from mode_ray.models.files import find_problem
from mode_ray.pairs.members import TrainingSet
from mode_ray.run_directory import PLAN_FILE
from mode_ray.storage import Location
from mode_ray.train.plan import Trial
from mode_ray.train.runs.status import TrialState, TrialStatus, write_status


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a config and weights."""
    (tmp_path / CONFIG_FILE).write_text(json.dumps({"model_cfg": {}}))
    safetensors.torch.save_file({"a": torch.ones(50), "b": torch.ones(3, 4)}, tmp_path / WEIGHTS_FILE, {"about": "x"})
    return tmp_path


def problem(folder: Path) -> str | None:
    return find_problem(Location.parse(str(folder)))


def test_a_whole_model_has_no_problem(folder: Path) -> None:
    assert problem(folder) is None


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert problem(folder) == f"{folder / name}: missing"


def test_half_a_file_is_told_from_a_whole_one(folder: Path) -> None:
    data = (folder / WEIGHTS_FILE).read_bytes()
    (folder / WEIGHTS_FILE).write_bytes(data[:-100])
    assert problem(folder) == (
        f"{folder / WEIGHTS_FILE}: {len(data) - 100} bytes, but its header says {len(data)}: half-written, or cut off "
        "while copied"
    )


@pytest.mark.parametrize("data", [b"", b"short", bytes(64), b"\xff" * 64, (8).to_bytes(8, "little") + b"not json"])
def test_what_is_no_safetensors_file_is_said(folder: Path, data: bytes) -> None:
    (folder / WEIGHTS_FILE).write_bytes(data)
    assert problem(folder) == f"{folder / WEIGHTS_FILE}: not a readable safetensors file"


def test_the_error_says_how_to_go_on_without_an_expert(folder: Path) -> None:
    location = Location.parse(str(folder))
    check_models(2, {"n2/01": location})
    (folder / WEIGHTS_FILE).unlink()
    with pytest.raises(DataError, match=r"missing: .*evaluate.leave_out_experts=\[1\]"):
        check_models(2, {"n2/01": location})
    with pytest.raises(DataError) as raised:
        check_models(2, {"dense": location})
    assert "leave_out" not in str(raised.value)


class TestAnUnfinishedTraining:
    """A train stage of a dense model and three experts that ended without a manifest."""

    def leave(self, directory: Location, **states: TrialState) -> Location:
        """Write the stage; `e0` to `e2` are the states of the experts, by default finished."""
        names = {"dense": "dense", **{f"e{expert}": f"n3/{expert:02d}" for expert in range(3)}}
        trials = [Trial(name=name, members=TrainingSet(kind="all"), samples=8) for name in names.values()]
        plan = {"trials": [asdict(trial) for trial in trials], "pairs_by_expert": [5, 4, 3]}
        (directory / PLAN_FILE).write_text(json.dumps(plan))
        for key, name in names.items():
            state = states.get(key, "finished")
            reason = "its loss is not finite" if state == "failed" else None
            write_status(directory / name, TrialStatus(trial=name, state=state, samples=8, reason=reason))
        return directory

    @pytest.fixture
    def directory(self, tmp_path: Path) -> Location:
        return Location.parse(str(tmp_path / "experts"))

    def test_a_failed_expert_is_named_with_the_reason_and_both_ways_to_go_on(self, directory: Location) -> None:
        self.leave(directory, e2="failed")
        with pytest.raises(
            UsageError,
            match=rf"{directory}/n3/02: failed \(its loss is not finite\): .* run `mode-ray train`, or evaluate "
            r"without the failed experts: evaluate.leave_out_experts=\[2\]",
        ):
            find_trained(3, (), directory)

    def test_without_it_the_others_are_evaluated(self, directory: Location) -> None:
        trained = find_trained(3, (2,), self.leave(directory, e2="failed"))
        assert [trial.name for trial in trained.trials] == ["dense", "n3/00", "n3/01"]
        assert trained.pairs_n.tolist() == [5, 4, 3]

    def test_a_second_failure_is_added_to_what_is_left_out(self, directory: Location) -> None:
        self.leave(directory, e0="failed", e2="failed")
        with pytest.raises(UsageError, match=r"n3/00: failed .*leave_out_experts=\[0, 2\]"):
            find_trained(3, (2,), directory)

    @pytest.mark.parametrize("states", [{"dense": "failed"}, {"e1": "running"}, {"e0": "failed", "e1": "waiting"}])
    def test_what_cannot_be_left_out_is_to_be_trained_first(
        self, directory: Location, states: dict[str, TrialState]
    ) -> None:
        with pytest.raises(UsageError, match="run `mode-ray train` first"):
            find_trained(3, (), self.leave(directory, **states))

    def test_before_training_there_is_nothing_to_evaluate(self, directory: Location) -> None:
        with pytest.raises(UsageError, match="the train stage is not done: run `mode-ray train` first"):
            find_trained(3, (2,), directory)
