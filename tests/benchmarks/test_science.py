"""The science benchmark's own arithmetic: who is held out, who shares a seed, what the result line is made of."""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def path() -> Any:  # noqa: ANN401
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield patch


@pytest.fixture(scope="module")
def data(path: Any) -> ModuleType:  # noqa: ANN401
    return importlib.import_module("science_data")


@pytest.fixture(scope="module")
def science(path: Any) -> ModuleType:  # noqa: ANN401
    return importlib.import_module("science")


def items(data: ModuleType, domain: str, count: int, label: str, classes: int) -> list[Any]:
    return [
        data.Item(
            domain=domain,
            key=f"k{number}",
            group=f"g{number}",
            image=b"image",
            captions=(f"caption {number}", "another"),
            labels={label: f"class-{number % classes}"},
        )
        for number in range(count)
    ]


class TestSplits:
    @pytest.mark.parametrize(("domain", "held_out"), [("photo", 0.1), ("icon", 0.2), ("emoji", 0.2)])
    def test_a_share_is_held_out_half_of_it_for_the_final_report(
        self, data: ModuleType, domain: str, held_out: float
    ) -> None:
        splits = [item.split for item in items(data, domain, 4000, "class", 4)]
        shares = {split: splits.count(split) / len(splits) for split in ("train", "development", "test")}
        assert shares["train"] == pytest.approx(1 - held_out, abs=0.02)
        assert shares["development"] == pytest.approx(held_out / 2, abs=0.02)
        assert shares["test"] == pytest.approx(held_out / 2, abs=0.02)

    def test_a_group_is_never_parted(self, data: ModuleType) -> None:
        alike = [
            data.Item(domain="emoji", key=key, group="grinning", image=b"", captions=("x",), labels={})
            for key in ("google", "openmoji", "fluent")
        ]
        assert len({item.split for item in alike}) == 1

    def test_tasks_hold_the_images_of_their_split_alone(self, data: ModuleType, tmp_path: Path) -> None:
        photos = [
            data.Item(**{**vars(item), "labels": {**item.labels, "kind": "food" if number % 5 < 2 else "animal"}})
            for number, item in enumerate(items(data, "photo", 2000, "class", 5))
        ]
        icons = [
            data.Item(**{**vars(item), "labels": {"provider": "aws", "category": f"c{number % 3}"}})
            for number, item in enumerate(items(data, "icon", 400, "category", 3))
        ]
        for split in ("development", "test"):
            data._write_tasks(tmp_path / split, [*photos, *icons], split)
            names = sorted(file.stem for file in (tmp_path / split).glob("*.yaml"))
            # One provider makes no task, and photos are not retrieved by sentences of their class.
            assert names == ["icon-category", "icon-retrieval", "photo-animal", "photo-class", "photo-food"]
            captions = pq.read_table(tmp_path / split / "photo.parquet")["caption"].to_pylist()
            assert set(captions) == {item.captions[0] for item in photos if item.split == split}
        task = yaml.safe_load((tmp_path / "test" / "photo-class.yaml").read_text())
        assert task["class_names"]["class-0"] == "class 0"
        food = yaml.safe_load((tmp_path / "test" / "photo-food.yaml").read_text())
        assert food["classes"] == ["class-0", "class-1"]

    @pytest.mark.parametrize(
        ("wnid", "kind"),
        [
            ("n01443537", "animal"),
            ("n02509815", "animal"),
            ("n02666196", "artifact"),
            ("n04597913", "artifact"),
            ("n07747607", "food"),
            ("n09193705", "other"),
        ],
    )
    def test_wordnet_tells_what_kind_of_thing_a_photo_shows(self, data: ModuleType, wnid: str, kind: str) -> None:
        assert data._wordnet_kind(wnid) == kind


class TestSettings:
    @pytest.fixture
    def series(self, science: ModuleType, data: ModuleType, tmp_path: Path) -> Any:  # noqa: ANN401
        found = data.ScienceData(work_units=[tmp_path / "a.parquet"], tasks={"development": []}, counts={})
        return science.Series(directory=tmp_path, data=found, split="development")

    def test_settings_that_differ_in_the_experts_alone_share_seed_and_dense(self, series: Any) -> None:  # noqa: ANN401
        base = series.lean({}, 0)
        wide = series.lean({"cluster.fine.centers": 64}, 0)
        assert len(base) == 1
        assert next(iter(wide)) == next(iter(base))
        assert list(wide.values())[1].train.standing == next(iter(base.values())).run

    def test_a_setting_of_the_seed_has_its_own(self, series: Any) -> None:  # noqa: ANN401
        both = series.lean({"train.seed_share": 0.3, "train.experts": 8}, 1)
        core, own = both.values()
        assert (core.train.seed_share, core.train.experts, core.train.standing) == (0.3, 4, None)
        assert (own.train.seed_share, own.train.experts, own.train.standing) == (0.3, 8, core.run)
        assert own.cluster.seed == own.train.seed == 1

    def test_all_runs_of_a_seed_go_on_from_the_first_ones_seed_model(
        self,
        series: Any,  # noqa: ANN401
        science: ModuleType,
    ) -> None:
        runs = series.whole({}, 10, tuple(science.ALL_RUNS))
        first, *others = runs.values()
        assert first.train.controls == ("dense", "full", "random")
        assert {config.train.standing for config in others} == {first.run}
        assert runs["mode4-full"].train.controls == ("dense_equal_total",)

    def test_every_explored_setting_is_a_valid_config(self, series: Any, science: ModuleType) -> None:  # noqa: ANN401
        for setting in science.EXPLORED.values():
            assert series.lean(setting, 0)


class TestTheResultLine:
    def test_differences_are_paired_by_seed(self, science: ModuleType) -> None:
        def seed(gain: float) -> dict[str, dict[str, float]]:
            mode4 = {"mode (calibrated)": 10.0 + gain, "mode (uniform)": 9.5, "dense": 10.0, "random": 9.0}
            return {"mode4": mode4, "mode4-full": {"mode (calibrated)": 15.0, "dense_equal_total": 16.0}}

        results = science.results_of([seed(1.0), seed(2.0), seed(3.0)], 7)
        assert results == {
            "mode4_minus_dense_mean": pytest.approx(2.0),
            "mode4_minus_dense_std": pytest.approx(1.0),
            "mode4_minus_dense_equal_total_mean": pytest.approx(-1.0),
            "mode4_minus_random4_mean": pytest.approx(3.0),
            "calibrated_minus_uniform_mean": pytest.approx(2.5),
            "tasks": 7.0,
        }
