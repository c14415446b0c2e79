"""Decides when a training run has failed too often without progress, without Ray and files.

The launcher's controller, the scheduler's queue and the simulated fleet of `benchmarks/fleet.py` apply it.
"""


class FailureBudget:
    """Counts the failures of one run since its newest checkpoint.

    Args:
        allowed: Failures without a newer checkpoint that are repaired; -1 for any number.
        checkpoint_samples: Samples of the newest checkpoint at the start; 0 without one.
    """

    def __init__(self, allowed: int, checkpoint_samples: int = 0) -> None:
        self._allowed = allowed
        self._checkpoint_samples = checkpoint_samples
        self.failures = 0
        """Failures since the newest checkpoint."""

    def failed(self, checkpoint_samples: int) -> bool:
        """Count one failure; returns whether the run may continue.

        Args:
            checkpoint_samples: Samples of the newest checkpoint now. A newer one than before resets the count.
        """
        if checkpoint_samples > self._checkpoint_samples:
            self._checkpoint_samples, self.failures = checkpoint_samples, 0
        self.failures += 1
        return self._allowed < 0 or self.failures <= self._allowed
