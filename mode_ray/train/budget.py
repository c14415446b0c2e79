"""Who is trained on what, for how many samples, on which part of the schedule."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mode_ray.expert_data import TrainingSet
from mode_ray.train_config import TrainConfig

SEED = "seed"
DENSE = "dense"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training run.

    Attributes:
        name: Also its directory below `experts/`, for example `seed`, `dense`, `n4/00`, `random-n4/00`.
        members: Its pairs.
        samples: Samples it sees itself, a multiple of the batch size.
        first_progress: Where on the schedule (0 to 1) it begins.
        last_progress: Where it ends.
        parent: The trial whose weights and optimizer it continues, or None.
    """

    name: str
    members: TrainingSet
    samples: int
    first_progress: float = 0.0
    last_progress: float = 1.0
    parent: str | None = None


def expert_name(experts: int, expert: int, *, random: bool = False) -> str:
    """Name of an expert's trial and directory."""
    return f"{'random-' if random else ''}n{experts}/{expert:02d}"


def plan_trials(config: TrainConfig, pairs_n: np.ndarray, order: Sequence[int]) -> list[Trial]:
    """All runs of the train stage, in the order in which they are to start.

    The paper trains the seed for 27 of 32 epochs and every expert for the rest. With the `shared` budget the experts
    together see what the dense run sees in that rest, in proportion to their data, so the total is 1.0 x dense; with
    `full` each of them sees as much, and the total is (27 + 5n)/32 x dense.

    Args:
        config: Budgets.
        pairs_n: Pairs of each expert, out-of-cluster ones excluded.
        order: Experts, the one to train first in front (the paper: the widest cluster first).
    """
    n = config.experts
    seed_samples = _whole_batches(config.dense_samples * config.seed_share, config.batch_size)
    has_seed = config.model.pretrained is None and seed_samples > 0
    first = config.seed_share if has_seed else 0.0
    trials = []
    if has_seed:
        everything = TrainingSet(kind="all", seed=config.seed)
        trials.append(Trial(name=SEED, members=everything, samples=seed_samples, last_progress=config.seed_share))
    # Next to the seed: the dense run waits for nothing, so no slot stands idle while the seed is trained.
    if config.dense:
        everything = TrainingSet(kind="all", seed=config.seed + 1)
        trials.append(
            Trial(
                name=DENSE,
                members=everything,
                samples=_whole_batches(config.dense_samples, config.batch_size),
            )
        )
    rest = config.dense_samples * (1 - first)
    shares_n = pairs_n / pairs_n.sum() if config.expert_budget == "shared" else np.ones(n)
    for random in (False, True) if config.random_control else (False,):
        for expert in order:
            members = TrainingSet(
                kind="random" if random else "expert",
                experts=n,
                expert=expert,
                out_of_cluster_share=0.0 if random else config.out_of_cluster_share,
                seed=config.seed,
            )
            trials.append(
                Trial(
                    name=expert_name(n, expert, random=random),
                    members=members,
                    samples=_whole_batches(rest * shares_n[expert], config.batch_size),
                    first_progress=first,
                    parent=SEED if has_seed else None,
                )
            )
    return trials


def _whole_batches(samples: float, batch_size: int) -> int:
    """The nearest multiple of the batch size; at least one batch where any sample is asked for."""
    if samples <= 0:
        return 0
    return max(1, round(samples / batch_size)) * batch_size


@dataclass(frozen=True, kw_only=True)
class BudgetStatement:
    """What the models cost in samples seen.

    Attributes:
        seed: The seed's; 0 where the experts begin with a pretrained model.
        experts: Each expert's, by trial name, in the order of their starts.
        total: Seed and experts together.
        dense: The dense baseline's, whether it is trained or not.
        total_to_dense: Their ratio.
    """

    seed: int
    experts: Mapping[str, int]
    total: int
    dense: int
    total_to_dense: float

    def line(self) -> str:
        """For people."""
        experts = ", ".join(f"{name} {samples:,}" for name, samples in self.experts.items())
        return (
            f"budget in samples: seed {self.seed:,}; experts {experts}; "
            f"total {self.total:,} = {self.total_to_dense:.3f} x the dense run's {self.dense:,}"
        )


def budget_statement(config: TrainConfig, trials: Sequence[Trial]) -> BudgetStatement:
    """Add up the samples of planned trials; controls do not count."""
    samples = {trial.name: trial.samples for trial in trials}
    experts = {trial.name: trial.samples for trial in trials if trial.members.kind == "expert"}
    seed, dense = samples.get(SEED, 0), _whole_batches(config.dense_samples, config.batch_size)
    total = seed + sum(experts.values())
    return BudgetStatement(seed=seed, experts=experts, total=total, dense=dense, total_to_dense=total / dense)
