"""Cancelling tasks: those that are at work end, those with a result keep it, and the driver survives."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from mode_ray.util.ray_tasks import cancel_unfinished, task_result

pytestmark = pytest.mark.usefixtures("ray_session")
ROUNDS = 200
STARTS = 10
START_DEADLINE_SECONDS = 60.0


def sleeping() -> Any:  # noqa: ANN401
    """A remote function that returns its seconds after sleeping; nested, so that Ray's workers need not import it."""

    def sleep(seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    return ray.remote(sleep)


def test_tasks_at_work_end_and_finished_ones_keep_their_results() -> None:
    """Several rounds: Ray loses one of eight requests to cancel a task that is just being started."""
    remote = sleeping()
    for _ in range(STARTS):
        finished, working = remote.remote(0.0), remote.remote(60.0)
        assert task_result(finished) == 0.0
        cancel_unfinished([finished, working])
        assert task_result(finished) == 0.0
        with pytest.raises((ray.exceptions.TaskCancelledError, ray.exceptions.WorkerCrashedError)):
            task_result(working)


def test_a_task_whose_result_has_just_arrived_is_left_alone() -> None:
    """Ray aborts the driver where such a task is cancelled, in about one of several tries."""
    remote = sleeping()
    for _ in range(ROUNDS):
        reference = remote.remote(0.0)
        assert task_result(reference) == 0.0
        cancel_unfinished([reference])


def test_a_process_that_does_not_answer_is_left_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mode_ray.util.ray_tasks._CANCEL_TRIES", 2)
    file = tmp_path / "pid"

    def stop_process() -> None:
        file.write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGSTOP)

    reference = ray.remote(stop_process).remote()
    deadline = time.monotonic() + START_DEADLINE_SECONDS
    while not (file.exists() and file.read_text() and is_stopped(int(file.read_text()))):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with pytest.warns(UserWarning, match="^1 cancelled Ray tasks have not ended yet$"):
        cancel_unfinished([reference])
    os.kill(int(file.read_text()), signal.SIGKILL)
    with pytest.raises((ray.exceptions.TaskCancelledError, ray.exceptions.WorkerCrashedError)):
        task_result(reference)


def is_stopped(pid: int) -> bool:
    return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)


def test_nothing_to_cancel() -> None:
    cancel_unfinished([])
