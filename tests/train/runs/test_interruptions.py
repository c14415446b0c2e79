"""Why Ray lost a worker: read from Ray's own errors, and noted where the scheduler finds it."""

import itertools
from pathlib import Path

import pytest
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from mode_ray.errors import TrainingError
from mode_ray.run_directory import ERROR_FILE
from mode_ray.storage import Location
from mode_ray.train.runs.interruptions import PREEMPTED, InterruptionNotes, ray_reason, read_interruptions
from mode_ray.train.runs.trial import read_error

# Of Ray 2.60, shortened.
OUT_OF_MEMORY = """1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.0.0.2, \
ID: cd08) was 8.21GB used / 23.54GB limit (0.348913)
OOM kill reason: Memory usage 8631488512B exceeded threshold of 8594013184B (34.0% of 25276510208B limit)
Refer to the documentation on how to address the out of memory issue: https://docs.ray.io/x. Consider provisioning"""
CRASH = """The actor died unexpectedly before finishing this task.
\tclass_name: RayTrainWorker
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker \
unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the OOM killer"""


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_kill_for_memory_names_the_amounts_and_the_settings(wrapped: bool) -> None:
    error: Exception = OutOfMemoryError(OUT_OF_MEMORY)  # type: ignore[no-untyped-call]
    if wrapped:
        error = WorkerHealthCheckFailedError("A worker health check failed.", failure=error)
    reason = ray_reason(error)
    assert reason.startswith("killed by Ray because its machine ran low on memory (8.21GB of 23.54GB used); lower")
    assert "train.batch_size" in reason
    assert "\n" not in reason


def test_a_crash_is_given_in_rays_words() -> None:
    error = RayActorError(error_msg=CRASH)
    assert ray_reason(error).startswith("Worker unexpectedly exits with a connection error code 2. End of file.")


def test_an_exception_is_its_last_line() -> None:
    assert ray_reason(RuntimeError("Traceback:\n  File x\nValueError: bad")) == "ValueError: bad"
    assert ray_reason(ValueError()) == "ValueError"


class TestNotes:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Location:
        return Location(str(tmp_path / "seed"))

    def test_each_loss_is_one_note_of_the_first_rank(self, folder: Location) -> None:
        notes = InterruptionNotes(folder, lambda: 0, 3)
        assert read_interruptions(folder) == []
        notes.after_exception(None, {1: ValueError("late"), 0: ValueError("first")})
        notes.after_exception(None, {1: ValueError("again")})
        assert read_interruptions(folder) == ["worker 0: first", "worker 1: again"]

    def test_thirty_losses_with_progress_between_them_end_nothing(self, folder: Location) -> None:
        samples = itertools.count(100, 100)
        notes = InterruptionNotes(folder, lambda: next(samples), 1)
        for _ in range(30):
            notes.after_exception(None, {0: RayActorError(error_msg=CRASH)})
        assert len(read_interruptions(folder)) == 30
        assert read_error(folder) is None

    def test_the_fourth_failure_without_progress_ends_the_run_with_its_reason(self, folder: Location) -> None:
        notes = InterruptionNotes(folder, lambda: 100, 3)
        for _ in range(3):
            notes.after_exception(None, {0: ValueError("bad")})
        with pytest.raises(TrainingError, match="4 failures without a newer checkpoint"):
            notes.after_exception(None, {0: ValueError("bad")})
        assert read_error(folder) == (
            "4 failures without a newer checkpoint, more than train.placement.max_failures=3; the last: worker 0: bad"
        )

    def test_minus_one_allows_any_number(self, folder: Location) -> None:
        notes = InterruptionNotes(folder, lambda: 0, -1)
        for _ in range(30):
            notes.after_exception(None, {0: ValueError("bad")})
        assert read_error(folder) is None

    def test_a_preempted_machine_is_noted_once_and_not_counted(self, folder: Location) -> None:
        notes = InterruptionNotes(folder, lambda: 0, 0)
        lost = RayActorError(actor_id="a1", preempted=True)
        collateral = ValueError("connection reset by peer")
        for _ in range(3):  # Ray Train polls until the machine is gone
            notes.after_exception(None, {0: collateral, 1: WorkerHealthCheckFailedError("", failure=lost)})
        assert read_interruptions(folder) == ["worker 1: its machine was preempted"]
        assert read_error(folder) is None

    def test_an_announced_preemption_is_noted_with_its_checkpoint_and_once(self, folder: Location) -> None:
        notes = InterruptionNotes(folder, lambda: 0, 0)
        notes.after_report(None, [{"samples": 2000, PREEMPTED: False}], None)
        notes.after_report(None, [{"samples": 4000, PREEMPTED: True}, {"samples": 4000}], None)
        notes.after_exception(None, {0: RayActorError(actor_id="a1", preempted=True)})
        assert read_interruptions(folder) == ["a machine is preempted; checkpoint at 4,000 samples"]
        notes.after_exception(None, {0: RayActorError(actor_id="a2", preempted=True)})
        assert read_interruptions(folder)[1:] == ["worker 0: its machine was preempted"]

    def test_a_permanent_error_of_a_worker_ends_the_run_without_another_start(self, folder: Location) -> None:
        (folder / ERROR_FILE).write_text("a.tar: sample 3: damaged")
        with pytest.raises(TrainingError, match="sample 3: damaged"):
            InterruptionNotes(folder, lambda: 0, 3).after_exception(None, {0: ValueError("bad")})
