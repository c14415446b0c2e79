"""How long a launch waits for machines. The states are those of Ray Train's controller; the clock is the test's."""

import pickle

import pytest
from ray.train.v2._internal.execution.controller.state import (
    InitializingState,
    ReschedulingState,
    RestartingState,
    RunningState,
    SchedulingState,
    TrainControllerState,
)
from ray.train.v2._internal.execution.scaling_policy import ResizeDecision
from ray.train.v2.api.exceptions import ControllerError

from mode_ray.train.runs.waiting import MachinesMissingError, WaitForMachines

LIMIT_SECONDS = 600.0
INITIALIZING, RUNNING = InitializingState(), RunningState()  # type: ignore[no-untyped-call]
SCHEDULING = SchedulingState(ResizeDecision(1, {"CPU": 1.0}))
RESCHEDULING = ReschedulingState(ControllerError(RuntimeError("start timed out")))
RESTARTING = RestartingState(ControllerError(RuntimeError("lost")))


class Controller:
    """Changes its state at given times."""

    def __init__(self) -> None:
        self.now = 100.0
        self._state: TrainControllerState = INITIALIZING
        self._wait = WaitForMachines(LIMIT_SECONDS, lambda: self.now)

    def enter(self, state: TrainControllerState, after_seconds: float = 0.0) -> None:
        self.now += after_seconds
        self._wait.after_controller_state_update(self._state, state)
        self._state = state


@pytest.fixture
def controller() -> Controller:
    return Controller()


def test_a_launch_without_workers_ends_at_the_limit(controller: Controller) -> None:
    controller.enter(SCHEDULING)
    controller.enter(RESCHEDULING, LIMIT_SECONDS - 1)
    with pytest.raises(MachinesMissingError, match="no machine for its workers within 600 s"):
        controller.enter(SCHEDULING, 1)


def test_an_elastic_run_waits_in_one_state_whose_updates_repeat(controller: Controller) -> None:
    for _ in range(11):
        controller.enter(INITIALIZING, 59)
    with pytest.raises(MachinesMissingError):
        controller.enter(INITIALIZING, 59)


def test_training_for_any_time_is_not_waiting_and_a_loss_begins_a_new_wait(controller: Controller) -> None:
    controller.enter(SCHEDULING)
    controller.enter(RUNNING, LIMIT_SECONDS - 1)
    controller.enter(RUNNING, 10 * LIMIT_SECONDS)
    controller.enter(RESTARTING)
    controller.enter(SCHEDULING, LIMIT_SECONDS - 1)
    with pytest.raises(MachinesMissingError):
        controller.enter(RESCHEDULING, 1)


def test_the_error_survives_the_way_to_the_launcher() -> None:
    arrived = pickle.loads(pickle.dumps(ControllerError(MachinesMissingError(LIMIT_SECONDS))))  # noqa: S301
    assert isinstance(arrived.controller_failure, MachinesMissingError)
    assert str(arrived.controller_failure) == "no machine for its workers within 600 s"
