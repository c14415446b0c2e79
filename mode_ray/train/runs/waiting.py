"""Ends a launch whose machines do not come in time, so that the scheduler launches the run on on-demand machines.

If the cloud refuses a spot machine at once, Ray's autoscaler requests the same kind again, without end. This module
limits the wait, also of a run that lost its spot machines.
"""

import time
from collections.abc import Callable

from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller.state import (
    InitializingState,
    ReschedulingState,
    RestartingState,
    SchedulingState,
    TrainControllerState,
)

_WITHOUT_WORKERS = (InitializingState, SchedulingState, ReschedulingState, RestartingState)


class MachinesMissingError(Exception):
    """No machine came in time for the workers of a run."""

    def __init__(self, limit_seconds: float) -> None:
        super().__init__(limit_seconds)
        self.limit_seconds = limit_seconds

    def __str__(self) -> str:
        return f"no machine for its workers within {self.limit_seconds:g} s"


class WaitForMachines(ControllerCallback):
    """Ends the launch if the run has no workers for too long; called in Ray Train's controller.

    Ray Train calls it between two attempts to start workers. An attempt lasts up to
    RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S.

    Args:
        limit_seconds: The longest time without workers.
        clock: A monotonic clock.
    """

    def __init__(self, limit_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit_seconds = limit_seconds
        self._clock = clock
        self._since: float | None = None

    def after_controller_state_update(
        self,
        previous_state: TrainControllerState,  # noqa: ARG002 - Ray's signature
        current_state: TrainControllerState,
    ) -> None:
        """Measure the time without workers.

        Raises:
            MachinesMissingError: It is over the limit. Ray Train then ends the launch.
        """
        if not isinstance(current_state, _WITHOUT_WORKERS):
            self._since = None
            return
        now = self._clock()
        self._since = now if self._since is None else self._since
        if now - self._since >= self._limit_seconds:
            raise MachinesMissingError(self._limit_seconds)
