"""Cancelling tasks: those that are at work end, those with a result keep it, and the driver survives."""

import time
from typing import Any

import pytest
import ray

from mode_ray.util.ray_tasks import cancel_unfinished, task_result

pytestmark = pytest.mark.usefixtures("ray_session")
ROUNDS = 200
STARTS = 10


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


def test_nothing_to_cancel() -> None:
    cancel_unfinished([])
