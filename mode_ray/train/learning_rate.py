"""Learning rate: linear warm-up, then a cosine to zero, over the progress of a schedule."""

import math


def learning_rate(peak: float, at: float, warmup: float) -> float:
    """The rate at progress `at`; `at` and `warmup` are shares of the whole schedule."""
    if at < warmup:
        return peak * at / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (at - warmup) / (1 - warmup))) if warmup < 1 else peak
