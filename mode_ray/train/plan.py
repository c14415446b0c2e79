"""Who is trained on what, for how many samples, on which part of the schedule."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from mode_ray.config.train import Control, TrainConfig
from mode_ray.pairs.members import TrainingSet

SEED: Final = "seed"
DENSE: Final = "dense"
DENSE_EQUAL_TOTAL: Final = "dense-equal-total"

Role = Literal["seed", "expert"] | Control
_ROLES: Mapping[str, Role] = {SEED: "seed", DENSE: "dense", DENSE_EQUAL_TOTAL: "dense_equal_total"}
# Behind the dense runs' seeds, so that no two models on all data see it in the same order.
_FULL_SEEDS_FROM = 3


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

    @property
    def role(self) -> Role:
        """What it is trained for."""
        return role_of(self.name)


def expert_name(experts: int, expert: int, control: Literal["full", "random"] | None = None) -> str:
    """Name of an expert's trial and directory, or of the model that takes its place in a control."""
    return f"{'' if control is None else f'{control}-'}n{experts}/{expert:02d}"


def role_of(name: str) -> Role:
    """What a trial of this name is trained for.

    Raises:
        ValueError: No trial is called so.
    """
    if name in _ROLES:
        return _ROLES[name]
    match = re.fullmatch(r"(?:(full|random)-)?n\d+/\d+", name)
    if match is None:
        raise ValueError(f"{name!r} is no name of a trial")
    return "expert" if match[1] is None else "full" if match[1] == "full" else "random"


def plan_trials(config: TrainConfig, pairs_n: np.ndarray, order: Sequence[int]) -> list[Trial]:
    """All runs of the train stage, in the order in which they are to start.

    The paper trains the seed for 27 of 32 epochs and every expert for the rest. With the `shared` budget the experts
    together see what the dense run sees in that rest, in proportion to their data, so the total is 1.0 x dense; with
    `full` each of them sees as much, and the total is (27 + 5n)/32 x dense.

    Args:
        config: Budgets and controls.
        pairs_n: Pairs of each expert, out-of-cluster ones excluded.
        order: Experts, the one to train first in front (the paper: the widest cluster first).
    """
    n = config.experts
    has_seed = config.model.pretrained is None and _whole_batches(_seed_samples(config), config.batch_size) > 0
    first = config.seed_share if has_seed else 0.0
    seeds = []
    if has_seed:
        samples = _whole_batches(_seed_samples(config), config.batch_size)
        seeds.append(Trial(name=SEED, members=_everything(config, 0), samples=samples, last_progress=first))
    rest = config.dense_samples * (1 - first)
    by_size_n = pairs_n / pairs_n.sum() if config.expert_budget == "shared" else np.ones(n)
    evenly_n = np.full(n, 1 / n if config.expert_budget == "shared" else 1.0)

    def continued(name: str, members: TrainingSet, share: float) -> Trial:
        """One that goes on from the seed."""
        return Trial(
            name=name,
            members=members,
            samples=_whole_batches(rest * share, config.batch_size),
            first_progress=first,
            parent=SEED if has_seed else None,
        )

    def subset(kind: Literal["expert", "random"], expert: int) -> TrainingSet:
        foreign = config.out_of_cluster_share if kind == "expert" else 0.0
        return TrainingSet(kind=kind, experts=n, expert=expert, out_of_cluster_share=foreign, seed=config.seed)

    experts = [continued(expert_name(n, expert), subset("expert", expert), by_size_n[expert]) for expert in order]
    total = sum(trial.samples for trial in (*seeds, *experts))
    controls: dict[Control, list[Trial]] = {
        "dense": [
            Trial(
                name=DENSE,
                members=_everything(config, 1),
                samples=_whole_batches(config.dense_samples, config.batch_size),
            )
        ],
        "dense_equal_total": [Trial(name=DENSE_EQUAL_TOTAL, members=_everything(config, 2), samples=total)],
        "full": [
            continued(expert_name(n, expert, "full"), _everything(config, _FULL_SEEDS_FROM + expert), evenly_n[expert])
            for expert in range(n)
        ],
        "random": [
            continued(expert_name(n, expert, "random"), subset("random", expert), by_size_n[expert])
            for expert in order
        ],
    }
    # The dense runs come next to the seed: they wait for nothing, so no slot stands idle while the seed is trained.
    dense = [trial for name in ("dense", "dense_equal_total") if name in config.controls for trial in controls[name]]
    dealt = [trial for name in ("full", "random") if name in config.controls for trial in controls[name]]
    return [*seeds, *dense, *experts, *dealt]


def _everything(config: TrainConfig, number: int) -> TrainingSet:
    """All pairs, in an order of its own for each number."""
    return TrainingSet(kind="all", seed=config.seed + number)


def _seed_samples(config: TrainConfig) -> float:
    return config.dense_samples * config.seed_share


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
        controls: All that is behind each control that is trained, the seed's included where it goes on from it.
    """

    seed: int
    experts: Mapping[str, int]
    total: int
    dense: int
    total_to_dense: float
    controls: Mapping[str, int]

    def line(self) -> str:
        """For people."""
        experts = ", ".join(f"{name} {samples:,}" for name, samples in self.experts.items())
        controls = ", ".join(f"{name} {samples:,}" for name, samples in self.controls.items())
        return (
            f"budget in samples: seed {self.seed:,}; experts {experts}; "
            f"total {self.total:,} = {self.total_to_dense:.3f} x the dense run's {self.dense:,}"
            f"{f'; controls in all: {controls}' if controls else ''}"
        )


def budget_statement(config: TrainConfig, trials: Sequence[Trial]) -> BudgetStatement:
    """Add up the samples of planned trials; controls do not count in the total."""
    samples = {trial.name: trial.samples for trial in trials}
    experts = {trial.name: trial.samples for trial in trials if trial.role == "expert"}
    seed, dense = samples.get(SEED, 0), _whole_batches(config.dense_samples, config.batch_size)
    total = seed + sum(experts.values())
    controls: dict[str, int] = {}
    for trial in trials:
        if trial.role not in ("seed", "expert"):
            behind = seed if trial.parent == SEED else 0
            controls[trial.role] = controls.get(trial.role, behind) + trial.samples
    return BudgetStatement(
        seed=seed, experts=experts, total=total, dense=dense, total_to_dense=total / dense, controls=controls
    )
