"""The arithmetic of the plan compared with manual results, and its errors."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from planned import HOUR, config_of, inventory_of, plan_of, rates_of

from mode_ray.config.run import RunConfig
from mode_ray.errors import UsageError
from mode_ray.plan.estimate import Plan, PlanOptions, make_plan
from mode_ray.plan.machines import ClusterShape, Prices
from mode_ray.plan.rates import ClusterRates, EvaluateRates, Rates, ShardRates, TrainRates, require_fit
from mode_ray.plan.stages import fit_seconds, row_seconds
from mode_ray.train.plan import plan_trials

EXACT = PlanOptions(efficiency=1.0)


STAGES = ("embed", "cluster", "assign")


def cluster_rates() -> ClusterRates:
    """Rates of the fit, of 5,000 rows."""
    rates = rates_of(config_of()).cluster
    assert rates is not None
    return rates


def shard_rates() -> ShardRates:
    """Rates of embed: 25 microseconds a row, one of them for reading."""
    rates = rates_of(config_of()).embed
    assert rates is not None
    return rates


class TestRows:
    def test_only_reading_is_due_for_rows_that_are_not_kept(self) -> None:
        rates = shard_rates()
        assert row_seconds(rates, 1.0) == pytest.approx(25e-6)
        assert row_seconds(rates, 0.25) == pytest.approx(1e-6 + 24e-6 / 4)
        assert row_seconds(rates, 0.0, readings=2) == pytest.approx(2e-6)

    def test_a_run_that_kept_a_share_of_its_rows_spent_all_its_computing_on_them(self) -> None:
        assert row_seconds(replace(shard_rates(), kept_share=0.5), 1.0) == pytest.approx(1e-6 + 48e-6)


class TestShardStages:
    def test_two_actors_of_a_core_share_the_work(self) -> None:
        stages = plan_of(config_of())
        # keep=all: embed reads, encodes, writes; assign reads back, searches, writes.
        assert stages["embed"].wall_hours * HOUR == pytest.approx(1e6 * 25e-6 / 2)
        assert stages["assign"].wall_hours * HOUR == pytest.approx(1e6 * 10e-6 / 2)
        assert stages["embed"].core_hours * HOUR == pytest.approx(1e6 * 25e-6)

    def test_the_fused_pass_encodes_in_assign_and_only_the_sample_in_embed(self) -> None:
        stages = plan_of(config_of(embed={"keep": "sample"}))
        assert stages["embed"].wall_hours * HOUR == pytest.approx((1e6 * 1e-6 + 10_000 * 24e-6) / 2)
        assert stages["assign"].wall_hours * HOUR == pytest.approx(1e6 * 29e-6 / 2)
        assert stages["assign"].read_bytes == 0.0

    def test_counting_rows_of_tars_is_another_pass_over_the_sources(self) -> None:
        config = config_of(embed={"keep": "sample"})
        inventory = inventory_of(1e6, counts_by_reading=True)
        embed = make_plan(config, rates_of(config), inventory, EXACT).stages[0]
        assert embed.wall_hours * HOUR == pytest.approx((1e6 * 2e-6 + 10_000 * 24e-6) / 2)

    def test_the_last_round_of_units_is_as_long_as_the_others(self) -> None:
        config = config_of()
        three, four = (
            make_plan(config, rates_of(config), inventory_of(units * 1e5, units), EXACT).stages[0].wall_hours
            for units in (3, 4)
        )
        assert three == pytest.approx(four)

    def test_a_stage_has_a_fixed_cost(self) -> None:
        config = config_of()
        rates = replace(rates_of(config), embed=replace(shard_rates(), fixed_seconds=11.0))
        embed = make_plan(config, rates, inventory_of(1e6, 1000), EXACT).stages[0]
        assert embed.wall_hours * HOUR == pytest.approx(11.0 + 1e6 * 25e-6 / 2)

    def test_efficiency_stretches_the_work(self) -> None:
        config = config_of()
        embed = make_plan(config, rates_of(config), inventory_of(1e6), PlanOptions(efficiency=0.5)).stages[0]
        assert embed.wall_hours * HOUR == pytest.approx(1e6 * 25e-6)

    def test_refused_captions_are_read_and_no_more(self) -> None:
        config = config_of()
        rates = rates_of(config)
        rates = replace(rates, embed=replace(shard_rates(), refused_share=0.25, kept_share=0.75))
        embed = make_plan(config, rates, inventory_of(1e6), EXACT).stages[0]
        assert embed.wall_hours * HOUR == pytest.approx(1e6 * 25e-6 / 2)
        assert embed.written_bytes == pytest.approx(750_000 * 500, rel=1e-3)

    @pytest.mark.parametrize("keep", ["all", "sample"])
    def test_hours_and_bytes_are_linear_in_rows(self, keep: str) -> None:
        one, ten = (plan_of(config_of(embed={"keep": keep}), rows)["assign"] for rows in (1e8, 1e9))
        assert ten.wall_hours == pytest.approx(10 * one.wall_hours)
        assert ten.written_bytes == pytest.approx(10 * one.written_bytes, rel=1e-3)


class TestFeatures:
    CONFIG = config_of(
        features={"views": 3, "pool": {"max_actors": 2}},
        train={
            "model": {"lock": {"image": "all", "text": "all"}},
            "data": {"mode": "features"},
            "dense_samples": 32_000,
            "batch_size": 100,
        },
    )

    def rates(self, config: RunConfig) -> Rates:
        rates = rates_of(config)
        assert rates.embed is not None
        return replace(rates, features=replace(rates.embed, row_seconds=1e-3, row_bytes=10_000.0))

    def plan(self, config: RunConfig, rates: Rates) -> Plan:
        return make_plan(config, rates, inventory_of(1e6), PlanOptions(efficiency=1.0))

    def test_the_trunks_see_every_pair_once(self) -> None:
        (features,) = [s for s in self.plan(self.CONFIG, self.rates(self.CONFIG)).stages if s.stage == "features"]
        assert features.actors == 2
        assert features.written_bytes == pytest.approx(1e6 * 10_000 + 100 * 400)
        assert features.wall_hours == pytest.approx(1e6 * 1e-3 / 2 / HOUR)

    def test_only_training_on_features_needs_them(self) -> None:
        config = config_of()
        plan = self.plan(config, self.rates(config))
        assert "features" not in [stage.stage for stage in plan.stages]
        assert not any("left out: features" in line for line in plan.assumptions)
        assert any("left out: features" in line for line in self.plan(self.CONFIG, rates_of(self.CONFIG)).assumptions)

    def test_speeds_of_training_on_images_do_not_hold(self) -> None:
        images = self.CONFIG.model_copy(
            update={"train": self.CONFIG.train.model_copy(update={"data": config_of().train.data})}
        )
        trained = TrainRates(trials=1, samples=100, samples_per_second=1.0, launch_seconds=0.0)
        with pytest.raises(UsageError, match=r"ran with train.data.mode='images' \(the config has 'features'\)"):
            self.plan(self.CONFIG, replace(self.rates(images), train=trained))


class TestClusterShape:
    def test_all_actors_that_have_room_work_and_the_settings_for_that_are_named(self) -> None:
        config = config_of()
        shape = ClusterShape(machines=10, cores=8, gpus=0.0, capped=False)
        plan = make_plan(config, rates_of(config), inventory_of(1e9, 8000), PlanOptions(shape=shape, efficiency=1.0))
        assert plan.stages[0].actors == 80
        assert plan.stages[0].wall_hours * HOUR == pytest.approx(1e9 * 25e-6 / 80)
        assert list(plan.settings) == ["embed.pool.max_actors=80", "assign.pool.max_actors=80"]

    def test_no_more_actors_than_units(self) -> None:
        config = config_of()
        shape = ClusterShape(machines=10, cores=8, gpus=0.0, capped=False)
        plan = make_plan(config, rates_of(config), inventory_of(1e9, 5), PlanOptions(shape=shape))
        assert plan.stages[0].actors == 5

    def test_without_a_shape_the_measured_machine_and_the_pools_of_the_config(self) -> None:
        assert plan_of(config_of(embed={"pool": {"max_actors": 64}}))["embed"].actors == 2
        assert plan_of(config_of(embed={"pool": {"max_actors": 1}}))["embed"].actors == 1

    def test_the_whole_cluster_is_paid_while_a_stage_runs(self) -> None:
        shape = ClusterShape(machines=10, cores=8, gpus=0.0, capped=False)
        stages = plan_of(config_of(), rows=1e9, shape=shape, prices=Prices(cpu_hour=0.05))
        for name in ("embed", "cluster", "assign"):
            assert stages[name].cost == pytest.approx(80 * 0.05 * stages[name].wall_hours)

    def test_storage_is_paid_by_the_gigabyte_and_month(self) -> None:
        config = config_of()
        plan = make_plan(config, rates_of(config), inventory_of(1e9), PlanOptions(prices=Prices(storage_month=0.02)))
        assert plan.stored_bytes == pytest.approx(512e9, rel=1e-3)
        assert plan.storage_cost_month == pytest.approx(512 * 0.02, rel=1e-3)

    def test_gpus_bound_the_actors_and_are_paid_in_the_stages_that_encode(self) -> None:
        config = config_of(embed={"pool": {"gpus_per_actor": 0.5}})
        shape = ClusterShape(machines=0, cores=0, gpus=4.0, capped=False)
        options = PlanOptions(shape=shape, prices=Prices(gpu_hour=2.0), efficiency=1.0)
        plan = make_plan(config, rates_of(config, on_gpu=True), inventory_of(1e9, 800), options)
        embed, _, assign = plan.stages
        assert embed.actors == 8
        assert embed.gpu_hours == pytest.approx(4 * embed.wall_hours)
        assert embed.cost == pytest.approx(2.0 * embed.gpu_hours)
        assert (assign.gpu_hours, assign.cost) == (0.0, 0.0)


class TestClustering:
    def test_seeding_stops_growing_where_its_sub_sample_is_full(self) -> None:
        rates = cluster_rates()
        # 16 rows a center, 16,384 at least; 5,000 rows took 2 s.
        assert fit_seconds(rates, 6_400, 400, 0) == pytest.approx(2.0 * 6_400 / 5_000 + 6_400 * 100e-6 + 3.0)
        assert fit_seconds(rates, 1e6, 400, 0) == pytest.approx(2.0 * 16_384 / 5_000 + 1e6 * 100e-6 + 3.0)
        assert fit_seconds(rates, 1e6, 2_000, 0) == pytest.approx(2.0 * 32_000 / 5_000 + 1e6 * 100e-6 + 3.0)

    def test_workers_share_the_rows_but_not_the_seeding_nor_the_coarse_maps(self) -> None:
        seeding = 2.0 * 16_384 / 5_000
        assert fit_seconds(cluster_rates(), 1e6, 400, 10, workers=4) == pytest.approx(seeding + 1e6 / 4 * 500e-6 + 3.0)
        cluster = {**config_of().cluster.model_dump(), "placement": {"workers": 4, "threads": 2}}
        shape = ClusterShape(machines=3, cores=4, gpus=0.0, capped=False)
        config = config_of(cluster=cluster)
        plan = make_plan(config, rates_of(config), inventory_of(1e6), PlanOptions(shape=shape))
        assert plan.stages[1].actors == 4
        assert plan.stages[1].core_hours == pytest.approx(9 * plan.stages[1].wall_hours)
        alone = make_plan(config_of(), rates_of(config_of()), inventory_of(1e6), PlanOptions(shape=shape))
        assert plan.clustering_memory_bytes == alone.clustering_memory_bytes / 4

    def test_more_workers_than_the_machines_hold_are_refused(self) -> None:
        config = config_of(cluster={**config_of().cluster.model_dump(), "placement": {"workers": 12}})
        shape = ClusterShape(machines=3, cores=4, gpus=0.0, capped=False)
        with pytest.raises(UsageError, match=r"cluster\.placement\.workers=12: no room for 13 CPUs .* 3 x 4 cores"):
            make_plan(config, rates_of(config), inventory_of(1e6), PlanOptions(shape=shape))

    def test_every_row_is_visited_once_and_once_an_iteration(self) -> None:
        seconds = plan_of(config_of(), rows=1e6)["cluster"].wall_hours * HOUR
        reading = 1e6 * 0.5e-6  # all that is stored
        assert seconds == pytest.approx(7.0 + reading + 2 * 2.0 + 10_000 * (100e-6 + 10 * 40e-6) + 3.0)

    def test_only_the_sample_is_read_where_only_that_is_stored(self) -> None:
        assert plan_of(config_of(embed={"keep": "sample"}))["cluster"].read_bytes == 10_000 * 500
        assert plan_of(config_of())["cluster"].read_bytes == 1e6 * 500

    def test_memory_grows_with_sample_and_dimension(self) -> None:
        config = config_of()
        plan = make_plan(config, rates_of(config), inventory_of(1e6))
        row = 2 * 256 + 4 * (0.65 * 256 + 1) + 8
        assert plan.clustering_memory_bytes == pytest.approx(10_000 * (row + 16 * 8))
        plain = config_of(cluster={"sample_rows": 10_000, "fine": {"centers": 100, "balanced": False}})
        plan = make_plan(plain, rates_of(plain), inventory_of(1e6))
        assert plan.clustering_memory_bytes == pytest.approx(10_000 * row)

    def test_with_a_reused_clustering_nothing_is_fitted_nor_embedded_for_it(self) -> None:
        config = config_of(embed={"keep": "sample"}, cluster={"reuse": "/other/clusters"})
        plan = make_plan(config, rates_of(config), inventory_of(1e6))
        embed, cluster, _ = plan.stages
        assert embed.written_bytes == 0.0
        assert cluster.wall_hours * HOUR == pytest.approx(7.0)
        assert any("the clustering of another run is reused" in assumption for assumption in plan.assumptions)


class TestTraining:
    def test_seed_dense_run_and_experts_by_samples(self) -> None:
        # 27,000 for the seed, 32,000 dense, 5,000 for the experts together.
        config = config_of()
        train = plan_of(config, train_samples_per_second=10.0)["train"]
        assert train.core_hours * HOUR == pytest.approx(64_000 / 10)

    def test_with_the_full_budget_every_expert_takes_the_rest(self) -> None:
        config = config_of(train={"dense_samples": 32_000, "batch_size": 100, "expert_budget": "full", "controls": []})
        train = plan_of(config, train_samples_per_second=10.0)["train"]
        assert train.core_hours * HOUR == pytest.approx((27_000 + 4 * 5_000) / 10)

    @pytest.mark.parametrize("budget", ["shared", "full"])
    def test_controls_are_counted_as_training_deals_them_out(self, budget: str) -> None:
        controls = ["dense", "dense_equal_total", "clustered", "full", "random"]
        train = {"dense_samples": 32_000, "batch_size": 100, "expert_budget": budget, "controls": controls}
        config = config_of(train=train)
        trials = plan_trials(config.train, np.full(4, 1000), range(4))
        planned = plan_of(config, train_samples_per_second=10.0)["train"]
        assert planned.core_hours * HOUR == pytest.approx(sum(trial.samples for trial in trials) / 10, rel=0.02)

    def test_without_a_given_speed_the_run_s_own_and_the_time_of_its_launches(self) -> None:
        config = config_of()
        train = TrainRates(trials=6, samples=64_000, samples_per_second=10.0, launch_seconds=5.0)
        plan = make_plan(config, replace(rates_of(config), train=train), inventory_of(1e6), EXACT)
        # The seed, the dense run and four experts.
        assert plan.stages[3].wall_hours * HOUR == pytest.approx(64_000 / 10 + 6 * 5.0)
        assert any("10.0 a second and worker, as in the run" in assumption for assumption in plan.assumptions)

    def test_rates_of_another_architecture_are_refused_unless_a_speed_is_given(self) -> None:
        train = TrainRates(trials=6, samples=64_000, samples_per_second=10.0, launch_seconds=5.0)
        rates = replace(rates_of(config_of()), train=train)
        other = config_of(train={"dense_samples": 32_000, "batch_size": 100, "model": {"architecture": "ViT-L-14"}})
        with pytest.raises(UsageError, match=r"train\.model\.architecture='ViT-S-32' \(the config has 'ViT-L-14'\)"):
            make_plan(other, rates, inventory_of(1e6))
        plan = make_plan(other, rates, inventory_of(1e6), PlanOptions(train_samples_per_second=3.0))
        assert plan.stages[3].stage == "train"

    def test_left_out_of_a_config_without_a_budget(self) -> None:
        train = TrainRates(trials=6, samples=64_000, samples_per_second=10.0, launch_seconds=5.0)
        plan = make_plan(config_of(train={}), replace(rates_of(config_of()), train=train), inventory_of(1e6))
        assert [stage.stage for stage in plan.stages] == ["embed", "cluster", "assign"]
        assert "training is left out: train.dense_samples is not set" in plan.assumptions

    def test_left_out_without_a_rate_and_that_is_said(self) -> None:
        config = config_of()
        plan = make_plan(config, rates_of(config), inventory_of(1e6))
        assert [stage.stage for stage in plan.stages] == ["embed", "cluster", "assign"]
        assert any("training is left out" in assumption for assumption in plan.assumptions)


class TestEvaluation:
    def test_it_grows_with_tasks_and_models(self) -> None:
        config = config_of(evaluate={"tasks": ["a.yaml", "b.yaml"]})
        # Four experts and the dense model, where the run had two experts and the dense model.
        rates = EvaluateRates(seconds=30.0, tasks=1, images=500, models=3, written_bytes=1e6)
        plan = make_plan(config, replace(rates_of(config), evaluate=rates), inventory_of(1e6), EXACT)
        assert plan.stages[3].stage == "evaluate"
        assert plan.stages[3].wall_hours * HOUR == pytest.approx(30.0 * 2 * 5 / 3)
        assert plan.stages[3].written_bytes == pytest.approx(1e6 * 2 * 5 / 3)

    def test_left_out_where_the_config_has_no_tasks(self) -> None:
        rates = EvaluateRates(seconds=30.0, tasks=1, images=500, models=3, written_bytes=1e6)
        plan = make_plan(config_of(), replace(rates_of(config_of()), evaluate=rates), inventory_of(1e6))
        assert any(assumption.startswith("left out: evaluate") for assumption in plan.assumptions)


class TestMistakes:
    @pytest.mark.parametrize(
        ("more", "said"),
        [
            ({"efficiency": 0.0}, "efficiency must be above 0"),
            ({"shape": ClusterShape(machines=4, cores=0, gpus=0.0, capped=False)}, "give both"),
            ({"prices": Prices(cpu_hour=-1.0)}, "prices cannot be negative"),
            ({"train_samples_per_second": 0.0}, "training samples a second must be above 0"),
            ({"shape": ClusterShape(machines=0, cores=0, gpus=8.0, capped=False)}, "ran it without GPUs"),
        ],
    )
    def test_numbers_that_cannot_be(self, more: Mapping[str, Any], said: str) -> None:
        config = config_of()
        with pytest.raises(UsageError, match=said):
            make_plan(config, rates_of(config), inventory_of(1e6), PlanOptions(**more))

    def test_a_config_that_wants_gpus_needs_a_gpu_rate(self) -> None:
        config = config_of(embed={"pool": {"gpus_per_actor": 1.0}})
        with pytest.raises(UsageError, match=r"embed\.pool\.gpus_per_actor=0"):
            make_plan(config, rates_of(config), inventory_of(1e6))

    def test_an_actor_larger_than_a_machine(self) -> None:
        config = config_of(assign={"pool": {"cpus_per_actor": 16.0}})
        shape = ClusterShape(machines=4, cores=8, gpus=0.0, capped=False)
        with pytest.raises(UsageError, match=r"assign\.pool\.cpus_per_actor=16"):
            make_plan(config, rates_of(config), inventory_of(1e6), PlanOptions(shape=shape))

    def test_rates_of_another_encoder_or_number_of_centers_are_refused_by_name(self) -> None:
        rates = rates_of(config_of())
        other = config_of(encoder={"kind": "static", "model": "package:other"})
        with pytest.raises(UsageError, match=r"small: ran with encoder\.model='package:wordllama' \(the config"):
            require_fit(rates, other, STAGES)
        other = config_of(cluster={"sample_rows": 10_000, "fine": {"centers": 64}})
        with pytest.raises(UsageError, match=r"cluster\.fine\.centers=100 \(the config has 64\)"):
            require_fit(rates, other, STAGES)
        require_fit(rates, config_of(embed={"pool": {"max_actors": 64}}), STAGES)
