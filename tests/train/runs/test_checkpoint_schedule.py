"""When a checkpoint is due: plain numbers in, an order out."""

from mode_ray.train.runs.agreement import Order
from mode_ray.train.runs.checkpoint_schedule import PREEMPTION_INTERVAL_SECONDS, CheckpointSchedule

INTERVAL = 60.0


def schedule(samples: int = 0) -> CheckpointSchedule:
    return CheckpointSchedule(INTERVAL, now=1000.0, samples=samples)


class TestCheckpoints:
    def test_nothing_is_due_before_the_interval_is_over(self) -> None:
        assert schedule().order(1001.0, 8, is_writing=False) == Order.NOTHING

    def test_one_is_due_after_the_interval(self) -> None:
        assert schedule().order(1000.0 + INTERVAL, 8, is_writing=False) == Order.CHECKPOINT

    def test_it_is_ordered_once_although_it_begins_a_step_later(self) -> None:
        clock = schedule()
        assert clock.order(1060.0, 8, is_writing=False) == Order.CHECKPOINT
        assert clock.order(1060.1, 16, is_writing=False) != Order.CHECKPOINT
        clock.began_checkpoint(1060.2, 16)
        assert clock.order(1060.3 + INTERVAL, 24, is_writing=False) == Order.CHECKPOINT

    def test_the_next_one_is_due_an_interval_after_the_last_began(self) -> None:
        clock = schedule()
        clock.began_checkpoint(1050.0, 8)
        assert clock.order(1109.0, 16, is_writing=False) != Order.CHECKPOINT
        assert clock.order(1110.0, 16, is_writing=False) == Order.CHECKPOINT

    def test_a_requested_one_is_due_once_at_the_next_step(self) -> None:
        clock = schedule()
        clock.request()
        assert clock.order(1001.0, 8, is_writing=True) == Order.NOTHING
        assert clock.order(1001.1, 16, is_writing=False) == Order.CHECKPOINT
        assert clock.order(1001.2, 24, is_writing=False) == Order.NOTHING

    def test_none_is_due_while_one_is_written(self) -> None:
        clock = schedule()
        assert clock.order(2000.0, 8, is_writing=True) == Order.NOTHING
        assert clock.order(2000.1, 16, is_writing=False) == Order.CHECKPOINT

    def test_none_is_due_for_samples_that_have_one(self) -> None:
        resumed = schedule(samples=16)
        assert resumed.order(2000.0, 16, is_writing=False) == Order.NOTHING
        assert resumed.order(2000.0, 24, is_writing=False) == Order.CHECKPOINT


class TestPreemption:
    def test_ranks_ask_every_few_seconds(self) -> None:
        clock = schedule()
        first = 1000.0 + PREEMPTION_INTERVAL_SECONDS
        assert clock.order(first - 0.1, 8, is_writing=False) == Order.NOTHING
        assert clock.order(first, 8, is_writing=False) == Order.ASK_FOR_PREEMPTION
        assert clock.order(first + 0.1, 16, is_writing=False) == Order.NOTHING
        assert clock.order(first + PREEMPTION_INTERVAL_SECONDS, 24, is_writing=False) == Order.ASK_FOR_PREEMPTION

    def test_a_checkpoint_comes_before_the_question(self) -> None:
        assert schedule().order(2000.0, 8, is_writing=False) == Order.CHECKPOINT

    def test_they_ask_no_more_once_a_preemption_was_seen(self) -> None:
        clock = schedule()
        clock.saw_preemption()
        assert clock.order(1050.0, 8, is_writing=False) == Order.NOTHING
        assert clock.order(1060.0, 8, is_writing=False) == Order.CHECKPOINT
