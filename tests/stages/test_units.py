"""The end of a stage: a manifest only where enough was read, a list of what was not, and what is left to do."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from mode_ray.config.captions import CaptionsConfig, LimitsConfig
from mode_ray.config.run import RunConfig
from mode_ray.config.train import TrainConfig
from mode_ray.errors import DataError, UsageError
from mode_ray.run_directory import QUARANTINE
from mode_ray.stages.actor import with_source
from mode_ray.stages.manifest import Stage, UnitRecord, record_book
from mode_ray.stages.resume import describe_refused, finish_units, plan_units, refuse_replaced_sources
from mode_ray.stages.work_unit import WorkUnit
from mode_ray.storage import Location


def config(folder: Path, *, refused: float = 0.2, quarantined: int = 0) -> RunConfig:
    """A config with these limits."""
    limits = LimitsConfig(max_refused_share=refused, max_quarantined_units=quarantined)
    captions = CaptionsConfig(paths=("/in",))
    return RunConfig(run=str(folder), captions=captions, train=TrainConfig(dense_samples=1), limits=limits)


def record(unit: str, rows_out: int = 10, error: str | None = None, **refused: int) -> UnitRecord:
    """A unit's record; refused captions stand in its row 3."""
    return UnitRecord(
        unit=unit,
        source=f"/in/{unit}.tar",
        rows_in=rows_out + sum(refused.values()),
        rows_out=rows_out,
        refused=refused,
        examples=dict.fromkeys(refused, "row 3"),
        error=error,
    )


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    begun = Stage("embed", Location(str(tmp_path / "out")), {"x": 1})
    begun.begin(3)
    return begun


def work_units(*units: str, size: int = 100, modified: float = 50.0) -> list[WorkUnit]:
    """Listed files of one size and time."""
    return [
        WorkUnit(
            unit=unit, uri=f"/in/{unit}.tar", format="webdataset", size_bytes=size, modified_unix_seconds=modified
        )
        for unit in units
    ]


def write(stage: Stage, *made: WorkUnit) -> list[UnitRecord]:
    """The outputs of shards, as a worker would write them."""
    records = [with_source(record(work_unit.unit), work_unit) for work_unit in made]
    return [stage.write_unit(pa.table({"x": [1]}), one) for one in records]


class TestPlan:
    def test_units_without_an_output_are_left(self, stage: Stage) -> None:
        write(stage, *work_units("b"))
        plan = plan_units(stage, work_units("a", "b", "c"))
        assert list(plan.finished) == ["b"]
        assert [work_unit.unit for work_unit in plan.left] == ["a", "c"]
        assert (plan.replaced, plan.vanished) == ([], [])

    def test_outputs_of_units_that_are_listed_no_more_do_not_count(self, stage: Stage) -> None:
        write(stage, *work_units("a", "a-g00000"))
        plan = plan_units(stage, work_units("a"))
        assert (list(plan.finished), plan.left, plan.vanished) == (["a"], [], ["a-g00000"])

    @pytest.mark.parametrize(("size", "modified"), [(101, 50.0), (100, 51.0), (100, 49.0), (101, 0.0)])
    def test_a_replaced_source_is_left_again(self, stage: Stage, size: int, modified: float) -> None:
        write(stage, *work_units("a", "b"))
        now = [*work_units("a", size=size, modified=modified), *work_units("b")]
        plan = plan_units(stage, now)
        assert (list(plan.finished), plan.left, plan.replaced) == (["b"], now[:1], ["a"])

    def test_a_source_of_unknown_time_is_compared_by_size(self, stage: Stage) -> None:
        write(stage, *work_units("a", modified=0.0))
        assert plan_units(stage, work_units("a", modified=9.0)).left == []

    @pytest.mark.parametrize(
        ("then", "now", "left"), [(50.7, 50.0, 0), (50.0, 50.7, 0), (50.7, 51.0, 1), (50.7, 50.2, 1)]
    )
    def test_a_copy_that_keeps_whole_seconds_is_the_same_file(
        self, stage: Stage, then: float, now: float, left: int
    ) -> None:
        write(stage, *work_units("a", modified=then))
        assert len(plan_units(stage, work_units("a", modified=now)).left) == left


class TestReplacedSourcesOfAFinishedStage:
    def test_the_file_and_the_mend_are_named(self, stage: Stage) -> None:
        stage.finish(write(stage, *work_units("a", "b")), {})
        refuse_replaced_sources(stage, work_units("a", "b"))
        with pytest.raises(UsageError) as caught:
            refuse_replaced_sources(stage, [*work_units("a"), *work_units("b", size=7)])
        for part in ("/in/b.tar: changed since the embed stage read it", "100 bytes", "now 7 bytes", "manifest.json"):
            assert part in str(caught.value)

    def test_a_quarantined_file_that_was_mended_is_one_too(self, stage: Stage) -> None:
        stage.finish([with_source(record("a", 0, "/in/a.tar: truncated"), work_units("a")[0])], {})
        with pytest.raises(UsageError, match=r"/in/a\.tar: changed"):
            refuse_replaced_sources(stage, work_units("a", size=200))


class TestFinish:
    def test_a_manifest_with_the_sums(self, stage: Stage, tmp_path: Path) -> None:
        manifest = finish_units(
            stage, record_book([record("a"), record("b", empty=1)]), config(tmp_path).limits, {"speed": 2}
        )
        assert stage.state() == "done"
        assert (manifest.rows_in, manifest.rows_out, manifest.refused) == (21, 20, {"empty": 1})
        assert not (stage.directory / QUARANTINE).exists()

    def test_too_many_unreadable_shards_are_named_with_the_mend(self, stage: Stage, tmp_path: Path) -> None:
        records = [record("a"), record("b", 0, "/in/b.tar: truncated"), record("c", 0, "/in/c.tar: no tar")]
        with pytest.raises(DataError) as caught:
            finish_units(stage, record_book(records), config(tmp_path, quarantined=1).limits, {})
        for part in ("2 of 3 shards", "/in/b.tar: truncated", "/in/c.tar: no tar", "limits.max_quarantined_units=2"):
            assert part in str(caught.value)
        assert stage.state() == "started"
        listing = json.loads((stage.directory / QUARANTINE).read_text())
        assert listing == {"/in/b.tar": "/in/b.tar: truncated", "/in/c.tar": "/in/c.tar: no tar"}

    def test_as_many_as_are_allowed_are_left_out_and_recorded(self, stage: Stage, tmp_path: Path) -> None:
        records = [record("a"), record("b", 0, "/in/b.tar: truncated")]
        manifest = finish_units(stage, record_book(records), config(tmp_path, quarantined=1).limits, {})
        assert manifest.quarantined == {"/in/b.tar": "/in/b.tar: truncated"}

    def test_after_the_mend_the_list_is_gone(self, stage: Stage, tmp_path: Path) -> None:
        with pytest.raises(DataError):
            finish_units(stage, record_book([record("a", 0, "/in/a.tar: truncated")]), config(tmp_path).limits, {})
        finish_units(stage, record_book([record("a")]), config(tmp_path).limits, {})
        assert not (stage.directory / QUARANTINE).exists()

    def test_too_many_refused_captions_are_described(self, stage: Stage, tmp_path: Path) -> None:
        records = [record("a", 8), record("b", 7, empty=4, long=1)]
        assert finish_units(stage, record_book(records), config(tmp_path, refused=0.25).limits, {}).rows_out == 15
        with pytest.raises(DataError) as caught:
            finish_units(stage, record_book(records), config(tmp_path, refused=0.24).limits, {})
        assert "5 of 20 captions were refused, more than limits.max_refused_share=0.24" in str(caught.value)
        with pytest.raises(DataError, match="5 of 20 images were refused"):
            finish_units(stage, record_book(records), config(tmp_path, refused=0.24).limits, {}, "images")
        assert "4 empty (first: /in/b.tar, row 3); 1 long (first: /in/b.tar, row 3)" in str(caught.value)

    def test_no_caption_at_all(self, stage: Stage, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"the input holds no captions: /in/a\.tar"):
            finish_units(stage, record_book([record("a", 0)]), config(tmp_path).limits, {})
        assert stage.manifest() is None


def test_the_first_place_of_a_reason_is_in_the_first_shard_that_has_it() -> None:
    records = [record("a"), record("b", empty=1), record("c", empty=2)]
    assert describe_refused(records) == "3 empty (first: /in/b.tar, row 3)"
