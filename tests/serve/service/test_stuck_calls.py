"""When an expert is held to be stuck: unanswered calls for long, not one that was given up."""

import contextlib
from collections.abc import Callable

import pytest

from mode_ray.serve.service.stuck_calls import StuckCalls

LIMIT = 120.0


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def calls(clock: Clock) -> StuckCalls:
    return StuckCalls(LIMIT, clock)


@pytest.fixture
def given_up(clock: Clock, calls: StuckCalls) -> Callable[[float], None]:
    """A call that its caller gives up after some seconds."""

    def call(seconds: float) -> None:
        with contextlib.suppress(TimeoutError), calls.call():
            clock.now += seconds
            raise TimeoutError

    return call


class TestStuck:
    def test_one_call_that_never_ends(self, clock: Clock, calls: StuckCalls) -> None:
        with calls.call():
            clock.now += LIMIT - 1
            assert not calls.stuck
            clock.now += 2
            assert calls.stuck

    def test_calls_that_are_given_up_one_after_the_other(
        self, calls: StuckCalls, given_up: Callable[[float], None]
    ) -> None:
        for _ in range(14):
            given_up(9.0)
        assert calls.stuck


class TestNotStuck:
    def test_no_calls(self, clock: Clock, calls: StuckCalls) -> None:
        clock.now += 10 * LIMIT
        assert not calls.stuck

    def test_slow_calls_that_are_answered(self, clock: Clock, calls: StuckCalls) -> None:
        for _ in range(14):
            with calls.call():
                clock.now += LIMIT - 1
                assert not calls.stuck

    def test_an_answer_among_many_in_flight(self, clock: Clock, calls: StuckCalls) -> None:
        with calls.call():
            clock.now += LIMIT - 1
            with calls.call():
                pass
            clock.now += 2
            assert not calls.stuck

    def test_single_calls_given_up_long_apart(
        self, clock: Clock, calls: StuckCalls, given_up: Callable[[float], None]
    ) -> None:
        for _ in range(14):
            given_up(9.0)
            clock.now += 60.0
        assert not calls.stuck
