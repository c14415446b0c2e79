"""Why Ray lost a worker: read from Ray's own errors, and noted where the scheduler finds it."""

from pathlib import Path

import pytest
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from mode_ray.storage import Location
from mode_ray.train.runs.interruptions import InterruptionNotes, ray_reason, read_interruptions

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


def test_each_loss_is_one_note_of_the_first_rank(tmp_path: Path) -> None:
    folder = Location(str(tmp_path / "seed"))
    notes = InterruptionNotes(folder)
    assert read_interruptions(folder) == []
    notes.after_exception(None, {1: ValueError("late"), 0: ValueError("first")})
    notes.after_exception(None, {1: ValueError("again")})
    assert read_interruptions(folder) == ["worker 0: first", "worker 1: again"]
