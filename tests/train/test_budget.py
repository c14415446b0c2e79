"""Who is trained for how many samples: the paper's budgets, counted exactly."""

from typing import Any

import numpy as np
import pytest

from mode_ray.config.train import TrainConfig
from mode_ray.pairs.members import TrainingSet
from mode_ray.train.learning_rate import learning_rate
from mode_ray.train.plan import (
    CLUSTERED,
    DENSE,
    DENSE_EQUAL_TOTAL,
    SEED,
    WIDE,
    Trial,
    budget_statement,
    expert_name,
    plan_trials,
    role_of,
    small_trials,
)
from mode_ray.train.step.schedule import progress

PAPER_SAMPLES = 32 * 400_000_000
PAPER_BATCH = 32_768


def config(**fields: Any) -> TrainConfig:  # noqa: ANN401
    return TrainConfig.model_validate({"dense_samples": PAPER_SAMPLES, "batch_size": PAPER_BATCH, **fields})


def plan(train: TrainConfig, pairs_n: list[int] | None = None, order: list[int] | None = None) -> dict[str, Trial]:
    pairs = np.array(pairs_n or [100_000_000] * train.experts)
    return {trial.name: trial for trial in plan_trials(train, pairs, order or list(range(train.experts)))}


def total_without_dense(trials: dict[str, Trial]) -> int:
    return sum(trial.samples for name, trial in trials.items() if name != DENSE)


@pytest.mark.parametrize("n", [2, 4, 16])
def test_shared_budget_costs_what_the_dense_run_costs(n: int) -> None:
    pairs = np.random.default_rng(n).integers(10**6, 10**8, n).tolist()
    trials = plan(config(experts=n, expert_budget="shared"), pairs)
    # Each trial rounds to the nearest whole batch, so n + 1 of them are off by half a batch each at most.
    assert abs(total_without_dense(trials) - PAPER_SAMPLES) <= (n + 2) / 2 * PAPER_BATCH


@pytest.mark.parametrize("n", [1, 2, 4, 8, 16])
def test_full_budget_costs_27_plus_5n_over_32_of_the_dense_run(n: int) -> None:
    trials = plan(config(experts=n, expert_budget="full"))
    wanted = PAPER_SAMPLES * (27 + 5 * n) / 32
    assert abs(total_without_dense(trials) - wanted) <= (n + 1) / 2 * PAPER_BATCH


def test_the_shared_budget_is_distributed_in_proportion_to_the_data() -> None:
    trials = plan(config(experts=2), [300, 100])
    big, small = trials["n2/00"].samples, trials["n2/01"].samples
    assert big == pytest.approx(3 * small, abs=2 * PAPER_BATCH)


def test_full_budget_does_not_look_at_the_sizes() -> None:
    trials = plan(config(experts=2, expert_budget="full"), [300, 100])
    assert trials["n2/00"].samples == trials["n2/01"].samples


@pytest.mark.parametrize("budget", ["shared", "full"])
def test_every_trial_sees_whole_batches_and_at_least_one(budget: str) -> None:
    trials = plan(config(experts=3, expert_budget=budget), [1, 10**9, 10**9])
    for trial in trials.values():
        assert trial.samples % PAPER_BATCH == 0
        assert trial.samples >= PAPER_BATCH


def test_the_seed_takes_its_share_and_experts_continue_where_it_stops() -> None:
    trials = plan(config(experts=2))
    seed, dense = trials[SEED], trials[DENSE]
    assert seed.samples == pytest.approx(PAPER_SAMPLES * 27 / 32, abs=PAPER_BATCH)
    assert (seed.first_progress, seed.last_progress, seed.parent) == (0.0, 27 / 32, None)
    assert (dense.first_progress, dense.last_progress, dense.parent) == (0.0, 1.0, None)
    assert dense.samples == pytest.approx(PAPER_SAMPLES, abs=PAPER_BATCH)
    for expert in range(2):
        trial = trials[expert_name(2, expert)]
        assert (trial.first_progress, trial.last_progress, trial.parent) == (27 / 32, 1.0, SEED)
        assert (trial.members.kind, trial.members.experts, trial.members.expert) == ("expert", 2, expert)


def test_seed_and_dense_see_the_same_pairs_in_different_orders() -> None:
    trials = plan(config())
    assert trials[SEED].members.kind == trials[DENSE].members.kind == "all"
    assert trials[SEED].members.seed != trials[DENSE].members.seed


def test_experts_keep_the_given_order_behind_the_seed() -> None:
    train = config(experts=4)
    names = [trial.name for trial in plan_trials(train, np.full(4, 100), [2, 0, 3, 1])]
    assert names[0] == SEED
    assert [name for name in names if name.startswith("n4/")] == ["n4/02", "n4/00", "n4/03", "n4/01"]


def test_the_dense_baseline_can_be_left_out() -> None:
    assert DENSE not in plan(config(controls=[]))


@pytest.mark.parametrize("fields", [{"model": {"pretrained": "openai"}}, {"seed_share": 0.0}])
def test_without_a_seed_experts_take_the_whole_schedule(fields: dict[str, Any]) -> None:
    trials = plan(config(experts=2, controls=[], **fields))
    assert set(trials) == {"n2/00", "n2/01"}
    assert {trial.parent for trial in trials.values()} == {None}
    assert {trial.first_progress for trial in trials.values()} == {0.0}
    assert total_without_dense(trials) == pytest.approx(PAPER_SAMPLES, abs=2 * PAPER_BATCH)


def test_the_random_control_has_the_experts_budgets_and_no_foreign_pairs() -> None:
    trials = plan(config(experts=2, controls=["dense", "random"]), [300, 100])
    for expert in range(2):
        own, control = trials[expert_name(2, expert)], trials[expert_name(2, expert, "random")]
        assert control.name == f"random-n2/{expert:02d}"
        assert (control.samples, control.first_progress, control.parent) == (own.samples, own.first_progress, SEED)
        assert control.members.kind == "random"
        assert (own.members.out_of_cluster_share, control.members.out_of_cluster_share) == (0.02, 0.0)


@pytest.mark.parametrize("fields", [{}, {"seed_share": 0.4}, {"seed_share": 0.0}, {"experts": 8}])
@pytest.mark.parametrize("budget", ["shared", "full"])
def test_the_dense_control_of_equal_total_sees_what_seed_and_experts_see(budget: str, fields: dict[str, Any]) -> None:
    train = config(expert_budget=budget, controls=["dense_equal_total"], **fields)
    trials = plan(train)
    control = trials[DENSE_EQUAL_TOTAL]
    assert control.samples == sum(trial.samples for trial in trials.values() if trial.role in ("seed", "expert"))
    assert (control.parent, control.first_progress, control.last_progress) == (None, 0.0, 1.0)
    share, n = train.seed_share, train.experts
    times = share + (n * (1 - share) if budget == "full" else 1 - share)
    assert control.samples == pytest.approx(times * PAPER_SAMPLES, rel=1e-4)


def test_at_the_papers_seed_share_equal_total_is_27_plus_5n_over_32() -> None:
    trials = plan(config(expert_budget="full", controls=["dense_equal_total"], dense_samples=3200, batch_size=1))
    assert trials[DENSE_EQUAL_TOTAL].samples == 3200 * (27 + 5 * 4) / 32


@pytest.mark.parametrize("budget", ["shared", "full"])
def test_full_n_continues_from_the_seed_on_all_data_each_in_its_own_order(budget: str) -> None:
    trials = plan(config(controls=["dense", "full"], expert_budget=budget), [400, 300, 200, 100])
    control = [trial for trial in trials.values() if trial.role == "full"]
    assert [trial.name for trial in control] == [f"full-n4/{expert:02d}" for expert in range(4)]
    assert {(trial.members.kind, trial.parent, trial.first_progress) for trial in control} == {("all", SEED, 27 / 32)}
    orders = [trial.members.seed for trial in (trials[SEED], trials[DENSE], *control)]
    assert len(set(orders)) == len(orders)
    experts = sum(trial.samples for trial in trials.values() if trial.role == "expert")
    assert sum(trial.samples for trial in control) == pytest.approx(experts, abs=4 * PAPER_BATCH)


def test_dense_runs_start_with_the_seed_and_control_ensembles_after_the_experts() -> None:
    train = config(experts=2, controls=["random", "full", "dense_equal_total", "dense"])
    roles = [trial.role for trial in plan_trials(train, np.full(2, 100), [0, 1])]
    assert roles == ["seed", "dense", "dense_equal_total", *["expert"] * 2, *["full"] * 2, *["random"] * 2]


def test_the_wide_and_the_clustered_control_see_what_the_dense_run_sees() -> None:
    locked = {"lock": {"image": "all", "text": "all"}}
    trials = plan(config(experts=4, controls=["clustered", "wide", "dense"], model=locked))
    assert {trials[name].samples for name in (DENSE, WIDE, CLUSTERED)} == {PAPER_SAMPLES}
    assert {(trials[name].first_progress, trials[name].parent) for name in (DENSE, WIDE, CLUSTERED)} == {(0.0, None)}
    assert trials[WIDE].members == trials[DENSE].members  # in the same order
    assert trials[CLUSTERED].members == TrainingSet(kind="clustered", experts=4, seed=1)
    assert [role_of(name) for name in (WIDE, CLUSTERED)] == ["wide", "clustered"]


@pytest.mark.parametrize(
    "model", [{}, {"lock": {"image": "all"}}, {"pretrained": "x.pt", "lock": {"image": "all", "text": "all"}}]
)
def test_the_wide_control_needs_locked_towers_and_new_projections(model: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"the control wide needs model\.lock\.image and model\.lock\.text"):
        config(controls=["wide"], model=model)


def test_features_need_a_lock_of_both_towers() -> None:
    with pytest.raises(ValueError, match=r"data\.mode=features needs model\.lock\.image and model\.lock\.text"):
        config(data={"mode": "features"}, model={"lock": {"image": "all"}})


@pytest.mark.parametrize("name", ["n4", "other-n4/00", "n4/00/x", ""])
def test_other_names_have_no_role(name: str) -> None:
    with pytest.raises(ValueError, match="is not the name of a trial"):
        role_of(name)


class TestTheStatement:
    def test_controls_are_listed_with_all_that_is_behind_them(self) -> None:
        train = config(
            experts=2,
            expert_budget="full",
            dense_samples=3200,
            batch_size=10,
            controls=["dense", "dense_equal_total", "full", "random"],
        )
        statement = budget_statement(train, list(plan(train).values()))
        assert statement.controls == {"dense": 3200, "dense_equal_total": 3700, "full": 3700, "random": 3700}
        assert statement.line().endswith(
            "controls in all: dense 3,200, dense_equal_total 3,700, full 3,700, random 3,700"
        )

    def test_a_shared_budget_is_the_dense_runs(self) -> None:
        train = config(experts=2, controls=["dense", "random"])
        trials = plan(train, [300, 100], [1, 0])
        statement = budget_statement(train, list(trials.values()))
        assert list(statement.experts) == ["n2/01", "n2/00"]
        assert statement.seed == trials[SEED].samples
        assert statement.total == statement.seed + trials["n2/00"].samples + trials["n2/01"].samples
        assert statement.dense == trials[DENSE].samples
        assert statement.total_to_dense == pytest.approx(1.0, abs=1e-4)

    def test_it_says_in_one_line_what_a_full_budget_costs(self) -> None:
        train = config(experts=4, expert_budget="full", dense_samples=3200, batch_size=10, controls=[])
        statement = budget_statement(train, list(plan(train).values()))
        assert statement.line() == (
            "budget in samples: seed 2,700; experts n4/00 500, n4/01 500, n4/02 500, n4/03 500; "
            "total 4,700 = 1.469 x the dense run's 3,200"
        )

    def test_a_pretrained_seed_costs_nothing_here(self) -> None:
        train = config(experts=2, model={"pretrained": "openai"}, dense_samples=3200, batch_size=10)
        assert budget_statement(train, list(plan(train).values())).seed == 0


def test_pretrained_runs_warm_up_to_the_peak_and_end_at_zero() -> None:
    train = config(experts=2, model={"pretrained": "hf-hub:some-lab/some-clip"})
    trials = plan(train, [300, 100])
    assert SEED not in trials
    warmup = train.warmup_samples / PAPER_SAMPLES
    for trial in trials.values():
        assert (trial.first_progress, trial.last_progress, trial.parent) == (0.0, 1.0, None)
        rates = [
            learning_rate(1.0, progress(trial, samples), warmup)
            for samples in range(PAPER_BATCH, trial.samples + 1, PAPER_BATCH)
        ]
        assert rates[0] < 0.01
        assert max(rates) == pytest.approx(1.0, abs=1e-3)
        assert rates[-1] == pytest.approx(0.0, abs=1e-6)


class TestSmallTrials:
    """Batches that the pairs or the budget do not fill are said with the numbers."""

    def said(self, pairs: list[int], **fields: Any) -> list[str]:  # noqa: ANN401
        train = config(experts=len(pairs), **fields)
        trials = plan_trials(train, np.array(pairs), range(len(pairs)))
        return small_trials(train, trials, np.array(pairs))

    def test_enough_of_both_is_not_mentioned(self) -> None:
        assert self.said([100, 200], dense_samples=8192, batch_size=64) == []

    def test_fewer_pairs_than_a_batch(self) -> None:
        [line] = self.said([30, 90], dense_samples=81920, batch_size=64, controls=["random"])
        assert line.startswith(
            "fewer pairs than train.batch_size=64: n2/00 (30), random-n2/00 (30); their batches repeat"
        )
        [line] = self.said([30, 20], dense_samples=81920, batch_size=64)
        assert "seed (50), dense (50), n2/00 (30), n2/01 (20);" in line

    def test_a_share_of_the_budget_below_a_batch(self) -> None:
        [line] = self.said([100, 900], dense_samples=3200, batch_size=64)
        assert line.startswith(
            "1 of 2 experts get one batch of 64 samples, because their share of train.dense_samples=3,200"
        )
        assert "(the smallest is 50)" in line
        assert self.said([100, 900], dense_samples=3200, batch_size=64, expert_budget="full") == []
