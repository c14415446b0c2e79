"""The position of a training run on its schedule, and the share of the schedule that is warm-up."""

from mode_ray.train.plan import Trial


def progress(trial: Trial, samples_seen: int) -> float:
    """The trial's position on the schedule, 0 to 1. An expert continues where the seed stopped, or begins at 0."""
    done = samples_seen / trial.samples if trial.samples else 1.0
    return trial.first_progress + (trial.last_progress - trial.first_progress) * done


def warmup_share(trial: Trial, warmup_samples: int, dense_samples: int) -> float:
    """The share of the whole schedule that is warm-up.

    A trial without a parent warms up for `warmup_samples` of its own samples, or for all of them if it has fewer. A
    trial that continues a parent's optimizer uses the share of the dense run, as its parent did.
    """
    span = trial.last_progress - trial.first_progress
    whole = dense_samples if trial.parent is not None else trial.samples / span
    return min(1.0, warmup_samples / whole) if whole else 1.0
