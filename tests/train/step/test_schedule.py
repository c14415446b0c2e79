"""One learning-rate schedule for the whole training: warm-up, cosine, and no jump from seed to expert."""

import itertools

import numpy as np
import pytest

from mode_ray.config.train import TrainConfig
from mode_ray.pairs.members import TrainingSet
from mode_ray.train.learning_rate import learning_rate
from mode_ray.train.plan import Trial, plan_trials, slow_experts
from mode_ray.train.step.schedule import progress, warmup_share

ALL = TrainingSet(kind="all")
SEED = Trial(name="seed", members=ALL, samples=27_000, last_progress=27 / 32)
EXPERT = Trial(name="n4/00", members=ALL, samples=1_300, first_progress=27 / 32, parent="seed")
DENSE = Trial(name="dense", members=ALL, samples=32_000)


def test_warm_up_is_linear_from_zero_and_meets_the_cosine_at_its_peak() -> None:
    assert learning_rate(1e-3, 0.0, 0.1) == 0.0
    assert learning_rate(1e-3, 0.025, 0.1) == pytest.approx(0.25e-3)
    assert learning_rate(1e-3, 0.1, 0.1) == pytest.approx(1e-3)
    assert learning_rate(1e-3, 0.1 - 1e-9, 0.1) == pytest.approx(1e-3)


def test_the_cosine_is_half_way_down_in_the_middle_and_zero_at_the_end() -> None:
    assert learning_rate(1e-3, 0.55, 0.1) == pytest.approx(0.5e-3)
    assert learning_rate(1e-3, 1.0, 0.1) == pytest.approx(0.0, abs=1e-12)


def test_no_warm_up_begins_at_the_peak() -> None:
    assert learning_rate(1e-3, 0.0, 0.0) == pytest.approx(1e-3)


def test_a_schedule_that_is_all_warm_up_ends_at_the_peak() -> None:
    assert learning_rate(1e-3, 0.5, 1.0) == pytest.approx(0.5e-3)
    assert learning_rate(1e-3, 1.0, 1.0) == pytest.approx(1e-3)


def test_after_the_warm_up_the_rate_never_rises() -> None:
    rates = [learning_rate(1.0, at / 1000, 0.1) for at in range(100, 1001)]
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates))


def test_the_expert_begins_where_the_seed_ends() -> None:
    assert progress(SEED, SEED.samples) == progress(EXPERT, 0) == 27 / 32
    rates = [learning_rate(1e-3, progress(trial, at), 0.01) for trial, at in ((SEED, 27_000), (EXPERT, 0))]
    assert rates[0] == rates[1] > 0


def test_seed_and_dense_agree_over_the_samples_of_the_seed() -> None:
    for samples in (0, 1_000, 13_500, 27_000):
        assert progress(SEED, samples) == pytest.approx(progress(DENSE, samples))


def test_every_expert_ends_at_the_end_of_the_schedule_with_any_number_of_samples() -> None:
    assert progress(EXPERT, EXPERT.samples) == pytest.approx(1.0)
    assert progress(Trial(name="n4/01", members=ALL, samples=0), 0) == 1.0


class TestWarmUp:
    def test_seed_and_dense_warm_up_over_the_same_samples(self) -> None:
        assert warmup_share(SEED, 1_600, 32_000) == pytest.approx(warmup_share(DENSE, 1_600, 32_000)) == 0.05

    def test_an_expert_is_on_the_dense_runs_schedule(self) -> None:
        assert warmup_share(EXPERT, 1_600, 32_000) == 0.05

    def test_an_expert_that_starts_from_other_weights_counts_its_own_samples(self) -> None:
        orphan = Trial(name="n4/00", members=ALL, samples=8_000)
        share = warmup_share(orphan, 1_600, 32_000)
        assert progress(orphan, 1_600) == pytest.approx(share)
        assert learning_rate(1e-3, progress(orphan, 800), share) == pytest.approx(0.5e-3)

    def test_it_never_takes_more_than_the_whole_run(self) -> None:
        assert warmup_share(Trial(name="n4/00", members=ALL, samples=1_000), 1_600, 32_000) == 1.0


class TestRestart:
    @staticmethod
    def planned(**fields: object) -> dict[str, Trial]:
        config = TrainConfig.model_validate(
            {"dense_samples": 32_000, "batch_size": 10, "experts": 2, "seed_share": 0.5, **fields}
        )
        return {trial.name: trial for trial in plan_trials(config, np.array([1, 1]), [0, 1])}

    def test_the_rate_is_warmed_up_and_decayed_over_the_experts_own_samples(self) -> None:
        expert = self.planned(expert_schedule="restart")["n2/00"]
        share = warmup_share(expert, 1_600, 32_000)
        assert (expert.parent, expert.samples, share) == ("seed", 8_000, 0.05)
        rates = [learning_rate(1.0, progress(expert, at), share) for at in (0, 200, 400, 8_000)]
        assert rates == pytest.approx([0.0, 0.5, 1.0, 0.0])

    def test_seed_and_dense_stay_as_they_are(self) -> None:
        restarted, continued = self.planned(expert_schedule="restart"), self.planned()
        assert [restarted[name] for name in ("seed", "dense")] == [continued[name] for name in ("seed", "dense")]
        assert continued["n2/00"].first_progress == 0.5

    @pytest.mark.parametrize(
        ("fields", "slow"),
        [
            ({}, False),
            ({"seed_share": 27 / 32}, True),
            ({"seed_share": 27 / 32, "expert_schedule": "restart"}, False),
            ({"seed_share": 27 / 32, "model": {"pretrained": "openai"}}, False),
            ({"seed_share": 0.02, "optimizer": {"warmup_samples": 16_000}}, False),
        ],
    )
    def test_experts_that_begin_below_a_tenth_of_the_peak_are_warned_of(
        self, fields: dict[str, object], slow: bool
    ) -> None:
        config = TrainConfig.model_validate({"dense_samples": 32_000, "seed_share": 0.5, **fields})
        found = slow_experts(config)
        assert (found is not None) == slow
        assert found is None or "begin at 7 % of the peak learning rate" in found


class TestSeedFromPretrained:
    def test_the_seed_begins_with_the_weights_instead_of_being_replaced(self) -> None:
        model = {"model": {"pretrained": "openai"}}
        assert set(TestRestart.planned(**model)) == {"n2/00", "n2/01", "dense"}
        assert set(TestRestart.planned(**model, seed_from_pretrained=True)) == {"seed", "n2/00", "n2/01", "dense"}

    def test_without_weights_it_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"seed_from_pretrained needs model\.pretrained"):
            TrainConfig.model_validate({"seed_from_pretrained": True})
