"""When to write a checkpoint: a decision from times and counts, without clocks, storage or Ray."""

from mode_ray.train.runs.agreement import Order

# Ray Train itself asks as often which nodes are about to be taken away.
PREEMPTION_INTERVAL_SECONDS = 5.0


class CheckpointSchedule:
    """Decides after every step what all ranks should do. Only rank 0 needs one.

    Times are seconds of any clock that does not go back.

    Args:
        interval_seconds: Time between checkpoints.
        now: The time at which training begins.
        samples: Samples seen before it begins; its newest checkpoint, if any, is of this state.
    """

    def __init__(self, interval_seconds: float, now: float, samples: int) -> None:
        self._interval_seconds = interval_seconds
        self._checkpoint_at = now
        self._asked_at = now
        self._checkpointed_samples = samples
        self._asks = True

    def order(self, now: float, samples: int, *, is_writing: bool) -> Order:
        """What is due after a step.

        Args:
            now: The time.
            samples: Samples seen so far.
            is_writing: Whether the last checkpoint is still being written.
        """
        if is_writing or samples == self._checkpointed_samples:
            return Order.NOTHING
        if now - self._checkpoint_at >= self._interval_seconds:
            # Several ranks carry out an order one step later. It must not be given twice.
            self._checkpoint_at = now
            return Order.CHECKPOINT
        if self._asks and now - self._asked_at >= PREEMPTION_INTERVAL_SECONDS:
            self._asked_at = now
            return Order.ASK_FOR_PREEMPTION
        return Order.NOTHING

    def began_checkpoint(self, now: float, samples: int) -> None:
        """A checkpoint of this state is being written: the next one is due an interval later."""
        self._checkpoint_at = now
        self._checkpointed_samples = samples

    def saw_preemption(self) -> None:
        """A node is about to be taken away: it costs one more checkpoint, and no further questions."""
        self._asks = False
