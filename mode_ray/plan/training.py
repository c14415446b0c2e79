"""The number of models that a config trains and evaluates, and their samples, computed without the data."""

from mode_ray.config.train import TrainConfig
from mode_ray.train.plan import DENSE_RUNS


def training_samples(config: TrainConfig) -> float:
    """Samples that all training runs see together.

    With D = `dense_samples` and s = `seed_share`: the seed model sees s D. The n experts see (1 - s) D together
    (`expert_budget: shared`) or each (`full`). `TrainConfig.controls` describes the controls. This is the sum over the
    runs of `train.plan.plan_trials`, without rounding to whole batches.
    """
    first = config.seed_share if config.has_seed else 0.0
    dense = config.budget_samples
    seed, rest = dense * first, dense * (1.0 - first)
    experts = rest if config.expert_budget == "shared" else rest * config.experts
    control = {name: float(dense) for name in DENSE_RUNS}
    control |= {"dense_equal_total": seed + experts, "full": experts, "random": experts}
    return seed + experts + sum(control[name] for name in config.controls)


def evaluated_models(config: TrainConfig) -> int:
    """Number of evaluated models: n experts, one per dense control, n per other control."""
    dense = sum(name in DENSE_RUNS for name in config.controls)
    return config.experts * (1 + len(config.controls) - dense) + dense


def training_runs(config: TrainConfig) -> int:
    """Number of training runs: one per evaluated model, and the seed model."""
    return evaluated_models(config) + int(config.has_seed)
