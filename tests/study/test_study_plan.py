"""The runs of a study: one per point and seed, which share equal seed models."""

from typing import Any

import pytest

from mode_ray.config.load import load_config, with_values
from mode_ray.config.run import RunConfig
from mode_ray.config.study import StudyConfig
from mode_ray.errors import UsageError
from mode_ray.study.plan import StudyPoint, plan_study
from mode_ray.study.reuse import seed_fields, with_shared_seeds

CHANGES = {"captions.paths": ["/data"]}


def plan(**fields: Any) -> list[StudyPoint]:  # noqa: ANN401
    values = {"study": "/studies/n", "base": "demo", "changes": CHANGES, **fields}
    return plan_study(StudyConfig.model_validate(values))


def demo(**changes: Any) -> RunConfig:  # noqa: ANN401
    config = load_config("demo", ["run=/runs/a", "captions.paths=[/data]"])
    return with_values(config, {name.replace("__", "."): value for name, value in changes.items()})


class TestPlanning:
    def test_every_value_and_seed_is_a_run_of_its_own(self) -> None:
        points = plan(field="train.experts", values=[2, 4], seeds=[0, 5])
        assert [(point.label, point.seed, point.config.run) for point in points] == [
            ("2", 0, "/studies/n/points/2-seed0"),
            ("4", 0, "/studies/n/points/4-seed0"),
            ("2", 5, "/studies/n/points/2-seed5"),
            ("4", 5, "/studies/n/points/4-seed5"),
        ]
        assert [(point.config.train.experts, point.config.train.seed) for point in points] == [
            (2, 0),
            (4, 0),
            (2, 5),
            (4, 5),
        ]

    def test_points_of_one_seed_share_the_seed_model(self) -> None:
        points = plan(field="train.experts", values=[2, 4, 8], seeds=[0, 1])
        assert [point.config.train.reuse for point in points] == [
            None,
            *["/studies/n/points/2-seed0"] * 2,
            None,
            *["/studies/n/points/2-seed1"] * 2,
        ]
        assert points[1].config.train.reuse_models == ("seed", "dense")

    def test_a_study_of_the_seeds_share_trains_each_of_them(self) -> None:
        points = plan(field="train.seed_share", values=[0.3, 0.5])
        assert [point.config.train.reuse for point in points] == [None, None]

    @pytest.mark.parametrize(("seed_clustering", "clusterings"), [(False, [0, 0]), (True, [3, 4])])
    def test_the_clustering_can_take_the_seed_too(self, seed_clustering: bool, clusterings: list[int]) -> None:
        points = plan(field="train.experts", values=[2], seeds=[3, 4], seed_clustering=seed_clustering)
        assert [point.config.train.seed for point in points] == [3, 4]
        assert [point.config.cluster.seed for point in points] == clusterings

    def test_labels_become_folders(self) -> None:
        points = plan(points={"a/b c": {"train.experts": 2}})
        assert points[0].config.run == "/studies/n/points/a-b-c-seed0"
        with pytest.raises(UsageError, match="two labels differ only in punctuation"):
            plan(points={"a b": {}, "a/b": {"train.experts": 2}})

    def test_a_value_that_does_not_fit_names_its_field(self) -> None:
        with pytest.raises(UsageError, match=r"train\.experts=3 has no coarse map"):
            plan(field="train.experts", values=[2, 3])


class TestSharedSeeds:
    @pytest.mark.parametrize(
        "change",
        [
            {"train__experts": 2},
            {"train__expert_budget": "full"},
            {"train__out_of_cluster_share": 0.5},
            {"train__controls": ["dense", "random"]},
            {"cluster__fine__centers": 8},
            {"encoder__model": "other"},
            {"train__placement__concurrent_runs": 1},
        ],
    )
    def test_what_shapes_only_the_experts_leaves_the_seed(self, change: dict[str, Any]) -> None:
        assert seed_fields(demo(**change)) == seed_fields(demo())

    @pytest.mark.parametrize(
        "change",
        [
            {"train__seed": 1},
            {"train__seed_share": 0.4},
            {"train__dense_samples": 99},
            {"train__batch_size": 64},
            {"train__optimizer__learning_rate": 1e-4},
            {"train__loss__mask_equal_captions": True},
            {"captions__select": "all"},
        ],
    )
    def test_all_else_makes_another_seed(self, change: dict[str, Any]) -> None:
        assert seed_fields(demo(**change)) != seed_fields(demo())

    def test_a_run_that_names_another_is_left_alone(self) -> None:
        first, second = demo(), demo(run="/runs/b", train__reuse="/runs/mine")
        assert with_shared_seeds([first, second]) == [first, second]
