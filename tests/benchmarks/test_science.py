"""The science benchmark: which images are held out, which runs share a seed model, what the result line contains."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from mode_ray.config.run import RunConfig
from mode_ray.study.plan import plan_study
from mode_ray.study.results import Measured, StudyResults

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


class TestTheStudy:
    @pytest.fixture
    def plan(self, science: ModuleType, data: ModuleType, tmp_path: Path) -> Callable[[str], dict[str, RunConfig]]:
        tasks = {split: [tmp_path / f"{split}.yaml"] for split in ("development", "test")}
        found = data.ScienceData(work_units=[tmp_path / "a.parquet"], tasks=tasks, counts={})

        def planned(options: str) -> dict[str, RunConfig]:
            given = science.options_of(f"--directory {tmp_path} {options}".split())
            return {point.name: point.config for point in plan_study(science.study_of(given, found))}

        return planned

    def test_settings_that_differ_in_the_experts_alone_share_seed_and_dense(self, plan: Any) -> None:  # noqa: ANN401
        runs = plan("--explore --seeds 0 1")
        assert runs["base, seed 1"].train.reuse is None
        for title in ("m 64", "n 8", "full budget", "word vectors"):
            assert runs[f"{title}, seed 1"].train.reuse == runs["base, seed 1"].run

    def test_a_setting_of_the_seed_has_its_own(self, plan: Any) -> None:  # noqa: ANN401
        own = plan("--explore --seeds 1")["seed share 0.3, seed 1"]
        assert (own.train.seed_share, own.train.experts, own.train.reuse) == (0.3, 4, None)
        assert own.cluster.seed == own.train.seed == 1

    def test_all_runs_of_a_seed_continue_from_the_first_ones_seed_model(self, plan: Any) -> None:  # noqa: ANN401
        runs = plan("--seeds 10")
        first, *others = runs.values()
        assert first.train.controls == ("dense", "full", "random")
        assert {config.train.reuse for config in others} == {first.run}
        assert runs["mode4-full, seed 10"].train.controls == ("dense", "dense_equal_total")
        assert [config.train.experts for config in runs.values()] == [4, 4, 2, 8]

    @pytest.mark.parametrize(
        ("options", "split", "seeds"),
        [
            ("", "development", {0, 1, 2}),
            ("--explore", "development", {0, 1, 2}),
            ("--quick", "development", {0}),
            ("--final --emoji e --photos p", "test", {10, 11, 12}),
        ],
    )
    def test_only_the_final_report_reads_the_test_split(
        self,
        plan: Any,  # noqa: ANN401
        options: str,
        split: str,
        seeds: set[int],
    ) -> None:
        runs = plan(options).values()
        assert {Path(task).stem for config in runs for task in config.evaluate.tasks} == {split}
        assert {config.train.seed for config in runs} == seeds

    def test_heads_have_a_study_of_their_own(self, plan: Any) -> None:  # noqa: ANN401
        runs = plan("--heads --seeds 3")
        assert {Path(config.run).parts[-3] for config in runs.values()} == {"heads-development"}
        assert {config.uses_features for config in runs.values()} == {True}
        first = runs["mode4, seed 3"]
        assert set(first.train.controls) == {"dense", "wide", "clustered", "full", "random"}
        assert runs["mode16, seed 3"].train.reuse == first.run
        assert {config.train.model for config in runs.values()} == {first.train.model}

    def test_heads_are_reported_for_eight_seeds_of_their_own(self, plan: Any) -> None:  # noqa: ANN401
        development, final = plan("--heads"), plan("--heads --final --emoji e --photos p")
        seeds = [{config.train.seed for config in runs.values()} for runs in (development, final)]
        assert seeds == [set(range(8)), set(range(10, 18))]

    @pytest.mark.parametrize("more", ["--seeds 0", "--explore", "--quick"])
    def test_the_final_report_takes_no_other_setting(self, science: ModuleType, more: str) -> None:
        with pytest.raises(SystemExit):
            science.options_of(["--final", "--emoji", "e", "--photos", "p", *more.split()])


class TestTheResultLine:
    def test_differences_are_paired_by_seed(self, science: ModuleType) -> None:
        def ahead(label: str, seed: int, line: str, points: float) -> Measured:
            return Measured(label=label, seed=seed, line=line, mean=points / 100, samples=None, tasks={})

        differences = [
            one
            for seed, gain in enumerate((1.0, 2.0, 3.0))
            for one in (
                ahead("mode4", seed, "dense", gain),
                ahead("mode4", seed, "Random-n", gain + 1.0),
                ahead("mode4", seed, "MoDE-n (uniform)", gain + 0.5),
                ahead("mode4-full", seed, "dense, equal total", -1.0),
            )
        ]
        results = science.results_of(StudyResults(tasks=tuple("abcdefg"), differences=differences))
        recorded = json.loads((BENCHMARKS / "results" / "science.json").read_text())["results"]
        assert set(results) == set(recorded)
        assert results == {
            "mode4_minus_dense_mean": pytest.approx(2.0),
            "mode4_minus_dense_std": pytest.approx(1.0),
            "mode4_minus_dense_equal_total_mean": pytest.approx(-1.0),
            "mode4_minus_random4_mean": pytest.approx(3.0),
            "calibrated_minus_uniform_mean": pytest.approx(2.5),
            "tasks": 7.0,
        }
