"""When to write a checkpoint: a decision from times and counts, without clocks, storage or Ray."""

from mode_ray.train.runs.agreement import Order

# Ray Train itself looks for nodes that are about to be preempted at this interval.
PREEMPTION_INTERVAL_SECONDS = 5.0


class CheckpointSchedule:
    """Decides after every step what all ranks should do. Only rank 0 has one.

    Times are seconds of a monotonic clock.

    Args:
        interval_seconds: Time between checkpoints.
        now: The time at which training begins.
        samples: Samples seen before training begins; the newest checkpoint, if any, is of this state.
        preemption_interval_seconds: Time between two questions to Ray about preempted nodes.
    """

    def __init__(
        self,
        interval_seconds: float,
        now: float,
        samples: int,
        preemption_interval_seconds: float = PREEMPTION_INTERVAL_SECONDS,
    ) -> None:
        self._interval_seconds = interval_seconds
        self._preemption_interval_seconds = preemption_interval_seconds
        self._checkpoint_at = now
        self._asked_at = now
        self._checkpointed_samples = samples
        self._asks = True

    def order(self, now: float, samples: int, *, is_writing: bool) -> Order:
        """What is due after a step; nothing while the last checkpoint is still being written."""
        if is_writing or samples == self._checkpointed_samples:
            return Order.NOTHING
        if now - self._checkpoint_at >= self._interval_seconds:
            # With several ranks the checkpoint begins one step later. It must not be ordered twice.
            self._checkpoint_at = now
            return Order.CHECKPOINT
        if self._asks and now - self._asked_at >= self._preemption_interval_seconds:
            self._asked_at = now
            return Order.ASK_FOR_PREEMPTION
        return Order.NOTHING

    def began_checkpoint(self, now: float, samples: int) -> None:
        """Note that a checkpoint of this state is being written: the next one is due an interval later."""
        self._checkpoint_at = now
        self._checkpointed_samples = samples

    def request(self) -> None:
        """Make a checkpoint due after the next step."""
        self._checkpoint_at = -float("inf")

    def saw_preemption(self) -> None:
        """Stop asking for preempted nodes: one was found, and its checkpoint is being written."""
        self._asks = False
