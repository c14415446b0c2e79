"""The training runs of the train stage: their pairs, samples and parts of the schedule."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from mode_ray.config.train import Control, TrainConfig
from mode_ray.pairs.members import TrainingSet
from mode_ray.train.learning_rate import learning_rate

SEED: Final = "seed"
DENSE: Final = "dense"
DENSE_EQUAL_TOTAL: Final = "dense-equal-total"
WIDE: Final = "wide"
CLUSTERED: Final = "clustered"

Role = Literal["seed", "expert"] | Control
DENSE_RUNS: Mapping[Control, str] = {
    "dense": DENSE,
    "dense_equal_total": DENSE_EQUAL_TOTAL,
    "wide": WIDE,
    "clustered": CLUSTERED,
}
"""The controls that are one model, and the names of their trials."""
_ROLES: Mapping[str, Role] = {SEED: "seed", **{name: control for control, name in DENSE_RUNS.items()}}
# After the dense runs' seeds, so that no two models trained on all data see it in the same order.
_FULL_SEEDS_FROM = 3
_SLOW_RATE = 0.1  # of the peak


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training run.

    Attributes:
        name: Also its directory below `experts/`, for example `seed`, `dense`, `n4/00`, `random-n4/00`.
        members: Its pairs.
        samples: Samples it sees itself, a multiple of the batch size.
        first_progress: Position on the schedule (0 to 1) at which it begins.
        last_progress: Position at which it ends.
        parent: The trial whose weights and optimizer it continues, or None.
    """

    name: str
    members: TrainingSet
    samples: int
    first_progress: float = 0.0
    last_progress: float = 1.0
    parent: str | None = None

    @property
    def role(self) -> Role:
        """Its role in the ensemble or the comparison."""
        return role_of(self.name)


def expert_name(experts: int, expert: int, control: Literal["full", "random"] | None = None) -> str:
    """Name of an expert's trial and directory, or of the model that replaces it in a control."""
    return f"{'' if control is None else f'{control}-'}n{experts}/{expert:02d}"


def role_of(name: str) -> Role:
    """The role of the trial with this name.

    Raises:
        ValueError: It is not the name of a trial.
    """
    if name in _ROLES:
        return _ROLES[name]
    match = re.fullmatch(r"(?:(full|random)-)?n\d+/\d+", name)
    if match is None:
        raise ValueError(f"{name!r} is not the name of a trial")
    return "expert" if match[1] is None else "full" if match[1] == "full" else "random"


def plan_trials(config: TrainConfig, pairs_n: np.ndarray, order: Sequence[int]) -> list[Trial]:
    """All runs of the train stage, in the order in which they start.

    The paper trains the seed for 27 of 32 epochs and every expert for the rest. With the `shared` budget the experts
    together see as many samples as the dense run sees in that rest, in proportion to their data: the total is 1.0 x
    dense. With `full` each expert sees that many: the total is (27 + 5n)/32 x dense.

    Args:
        config: Budgets and controls.
        pairs_n: Pairs of each expert, without those of other clusters.
        order: Experts in the order of training (the paper: the widest cluster first).
    """
    n = config.experts
    seed_samples = _whole_batches(config.budget_samples * config.seed_share, config.batch_size)
    has_seed = config.has_seed and seed_samples > 0
    first = config.seed_share if has_seed else 0.0
    begins = 0.0 if config.expert_schedule == "restart" else first
    seed = Trial(name=SEED, members=_everything(config, 0), samples=seed_samples, last_progress=first)
    seeds = [seed] if has_seed else []
    rest = config.budget_samples * (1 - first)
    by_size_n = pairs_n / pairs_n.sum() if config.expert_budget == "shared" else np.ones(n)
    evenly_n = np.full(n, 1 / n if config.expert_budget == "shared" else 1.0)
    dense_samples = _whole_batches(config.budget_samples, config.batch_size)

    def continued(name: str, members: TrainingSet, share: float) -> Trial:
        """A trial that continues from the seed."""
        return Trial(
            name=name,
            members=members,
            samples=_whole_batches(rest * share, config.batch_size),
            first_progress=begins,
            parent=SEED if has_seed else None,
        )

    def subset(kind: Literal["expert", "random"], expert: int) -> TrainingSet:
        foreign = config.out_of_cluster_share if kind == "expert" else 0.0
        return TrainingSet(kind=kind, experts=n, expert=expert, out_of_cluster_share=foreign, seed=config.seed)

    experts = [continued(expert_name(n, expert), subset("expert", expert), by_size_n[expert]) for expert in order]
    total = sum(trial.samples for trial in (*seeds, *experts))
    clustered = TrainingSet(kind="clustered", experts=n, seed=config.seed + 1)
    controls: dict[Control, list[Trial]] = {
        "dense": [Trial(name=DENSE, members=_everything(config, 1), samples=dense_samples)],
        "dense_equal_total": [Trial(name=DENSE_EQUAL_TOTAL, members=_everything(config, 2), samples=total)],
        # In the dense run's order: they differ from it in one respect only.
        "wide": [Trial(name=WIDE, members=_everything(config, 1), samples=dense_samples)],
        "clustered": [Trial(name=CLUSTERED, members=clustered, samples=dense_samples)],
        "full": [
            continued(expert_name(n, expert, "full"), _everything(config, _FULL_SEEDS_FROM + expert), evenly_n[expert])
            for expert in range(n)
        ],
        "random": [
            continued(expert_name(n, expert, "random"), subset("random", expert), by_size_n[expert])
            for expert in order
        ],
    }
    # The dense runs follow the seed: they do not depend on it, so they can use the other slots while it is trained.
    dense = [trial for name in DENSE_RUNS if name in config.controls for trial in controls[name]]
    ensembles = [trial for name in ("full", "random") if name in config.controls for trial in controls[name]]
    return [*seeds, *dense, *experts, *ensembles]


def _everything(config: TrainConfig, number: int) -> TrainingSet:
    """All pairs, in a different order for each number."""
    return TrainingSet(kind="all", seed=config.seed + number)


def _whole_batches(samples: float, batch_size: int) -> int:
    """The nearest multiple of the batch size; at least one batch if there is any sample."""
    if samples <= 0:
        return 0
    return max(1, round(samples / batch_size)) * batch_size


def slow_experts(config: TrainConfig) -> str | None:
    """A sentence if the experts begin at less than a tenth of the peak rate; they then hardly differ from the seed."""
    if not config.has_seed or config.expert_schedule == "restart":
        return None
    warmup = config.warmup_samples / config.budget_samples
    at_begin = learning_rate(1.0, config.seed_share, min(1.0, warmup))
    if config.seed_share < warmup or at_begin >= _SLOW_RATE:
        return None
    return (
        f"with train.seed_share={config.seed_share:g} the experts begin at {100 * at_begin:.0f} % of the peak "
        "learning rate: on short schedules they hardly differ from the seed; set train.expert_schedule: restart, or a "
        "smaller seed share"
    )


def small_trials(config: TrainConfig, trials: Sequence[Trial], pairs_n: np.ndarray) -> list[str]:
    """Sentences on trials whose pairs or samples do not fill a batch, with the numbers.

    Args:
        config: The batch size and the budget.
        trials: The planned runs.
        pairs_n: Pairs of each expert, without those of other clusters.
    """
    batch, lines = config.batch_size, []
    pairs = {
        trial.name: int(pairs_n[trial.members.expert] if trial.members.kind in ("expert", "random") else pairs_n.sum())
        for trial in trials
    }
    few = [f"{name} ({count:,})" for name, count in pairs.items() if count < batch]
    if few:
        lines.append(
            f"fewer pairs than train.batch_size={batch:,}: {', '.join(few)}; their batches repeat pairs, and a pair "
            "and its repetition count as negatives of each other; set a smaller batch"
        )
    rest = config.budget_samples * (1 - (config.seed_share if any(trial.name == SEED for trial in trials) else 0.0))
    if config.expert_budget == "shared":
        shares_n = rest * pairs_n / pairs_n.sum()
        short = int((shares_n < batch).sum())
        if short:
            lines.append(
                f"{short} of {len(pairs_n)} experts get one batch of {batch:,} samples, because their share of "
                f"train.dense_samples={config.budget_samples:,} is smaller (the smallest is {shares_n.min():,.0f}); "
                "raise the budget or set a smaller batch"
            )
    return lines


@dataclass(frozen=True, kw_only=True)
class BudgetStatement:
    """The cost of the models in samples seen.

    Attributes:
        seed: Samples of the seed; 0 if the experts start from a pretrained model.
        experts: Samples of each expert by trial name, in the order of their starts.
        total: Samples of seed and experts together.
        dense: Samples of the dense baseline, trained or not.
        total_to_dense: Ratio of `total` to `dense`.
        controls: Total samples of each control, including the seed's if it continues the seed.
    """

    seed: int
    experts: Mapping[str, int]
    total: int
    dense: int
    total_to_dense: float
    controls: Mapping[str, int]

    def line(self) -> str:
        """The statement as one line of text."""
        experts = ", ".join(f"{name} {samples:,}" for name, samples in self.experts.items())
        controls = ", ".join(f"{name} {samples:,}" for name, samples in self.controls.items())
        return (
            f"budget in samples: seed {self.seed:,}; experts {experts}; "
            f"total {self.total:,} = {self.total_to_dense:.3f} x the dense run's {self.dense:,}"
            f"{f'; controls in all: {controls}' if controls else ''}"
        )


def budget_statement(config: TrainConfig, trials: Sequence[Trial]) -> BudgetStatement:
    """Add up the samples of planned trials; the total does not include controls."""
    samples = {trial.name: trial.samples for trial in trials}
    experts = {trial.name: trial.samples for trial in trials if trial.role == "expert"}
    seed, dense = samples.get(SEED, 0), _whole_batches(config.budget_samples, config.batch_size)
    total = seed + sum(experts.values())
    controls: dict[str, int] = {}
    for trial in trials:
        if trial.role not in ("seed", "expert"):
            behind = seed if trial.parent == SEED else 0
            controls[trial.role] = controls.get(trial.role, behind) + trial.samples
    return BudgetStatement(
        seed=seed, experts=experts, total=total, dense=dense, total_to_dense=total / dense, controls=controls
    )
