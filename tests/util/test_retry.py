"""A step is called again after an error that may pass, with pauses that double."""

from collections.abc import Callable

import pytest

from mode_ray.util.retry import retry


def failing(*errors: Exception) -> Callable[[], str]:
    """A step that raises these, one a call, and then returns."""
    left = list(errors)

    def step() -> str:
        if left:
            raise left.pop(0)
        return "done"

    return step


def no_pause(seconds: float) -> None:
    pytest.fail(f"paused for {seconds} s")


def test_pauses_double_until_the_step_returns() -> None:
    pauses: list[float] = []
    assert retry(failing(OSError(), TimeoutError()), 5, sleep=pauses.append) == "done"
    assert pauses == [0.5, 1.0]


def test_a_step_that_returns_at_once_waits_for_nothing() -> None:
    assert retry(failing(), 0, sleep=no_pause) == "done"


def test_the_last_error_is_raised() -> None:
    pauses: list[float] = []
    with pytest.raises(OSError, match="third"):
        retry(
            failing(OSError("first"), OSError("second"), OSError("third")),
            2,
            first_pause_seconds=3.0,
            sleep=pauses.append,
        )
    assert pauses == [3.0, 6.0]


@pytest.mark.parametrize("error", [ValueError("a defect"), FileNotFoundError("a defect")])
def test_other_errors_are_raised_at_once(error: Exception) -> None:
    with pytest.raises(type(error), match="a defect"):
        retry(failing(error), 3, never_on=(FileNotFoundError,), sleep=no_pause)
