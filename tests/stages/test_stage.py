"""The stage contract on a local directory and on S3: begin, resume, finish, and refuse another config."""

import itertools
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mode_ray.errors import DataError, UsageError
from mode_ray.run_directory import CAPTION_COUNTS, MANIFEST, STARTED, UNITS
from mode_ray.stages.journal import finished_units
from mode_ray.stages.manifest import (
    FOOTER_KEY,
    Stage,
    UnitRecord,
    combined_hash,
    count_refused,
    read_manifest,
    read_output,
    read_units,
    table_hash,
)
from mode_ray.storage import Location
from mode_ray.util.versions import package_versions

FIELDS: dict[str, object] = {"encoder.model": "minilm", "cluster.seed": 0, "captions.paths": ["a", "b"]}


@pytest.fixture(params=["local", "s3"])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """An empty stage directory of each kind."""
    if request.param == "local":
        return Location.parse(str(tmp_path)) / "run/embeddings"
    return Location.parse(request.getfixturevalue("bucket")) / "run/embeddings"


def test_a_free_field_may_change_and_the_stage_is_done_for_the_last_value_alone(directory: Location) -> None:
    def stage(left_out: list[int], seed: int = 0) -> Stage:
        return Stage("evaluate", directory, {"leave_out": left_out, "seed": seed}, free=("leave_out",))

    first = stage([])
    first.begin(0)
    first.finish([], {})
    assert (stage([]).state(), stage([2]).state()) == ("done", "started")
    other = stage([2])
    other.begin(0)
    other.finish([], {})
    assert (stage([]).state(), stage([2]).state()) == ("started", "done")
    with pytest.raises(UsageError, match=r"another config: seed was 0, is 1\. "):
        stage([3], seed=1).state()


def rows(*keys: str) -> pa.Table:
    """A small output table."""
    return pa.table({"key": list(keys), "distance": pa.array([0.5] * len(keys), pa.float32())})


def write(stage: Stage, unit: str, *keys: str, refused: dict[str, int] | None = None) -> UnitRecord:
    """Write one unit's output as a worker would."""
    refused = refused or {}
    record = UnitRecord(
        unit=unit,
        source=f"/data/{unit}.tar",
        rows_in=len(keys) + sum(refused.values()),
        rows_out=len(keys),
        refused=refused,
        examples={reason: f"{unit}.tar, {reason} row" for reason in refused},
        seconds=0.25,
        attempt=stage.attempt,
    )
    return stage.write_unit(rows(*keys), record)


class TestLifeOfAStage:
    def test_it_is_absent_then_started_then_done(self, directory: Location) -> None:
        stage = Stage("embed", directory, FIELDS)
        assert stage.state() == "absent"
        assert stage.manifest() is None
        stage.begin(units=1)
        assert stage.state() == "started"
        stage.finish([write(stage, "0000", "a")], {})
        assert stage.state() == "done"

    def test_what_was_begun_is_on_disk_before_the_first_output(self, directory: Location) -> None:
        Stage("embed", directory, FIELDS).begin(units=7)
        note = json.loads((directory / STARTED).read_text())
        assert (note["stage"], note["units"], note["fields"]) == ("embed", 7, FIELDS)
        assert [file.name for file in directory.files(recursive=True)] == [STARTED]

    def test_the_manifest_is_written_last(self, directory: Location) -> None:
        stage = Stage("embed", directory, FIELDS)
        stage.begin(units=1)
        record = write(stage, "0000", "a")
        with pytest.raises(TypeError, match="not JSON serializable"):
            stage.finish([record], {"cannot be JSON": object()})
        assert (directory / UNITS).exists()
        assert not (directory / MANIFEST).exists()
        assert stage.state() == "started"

    def test_at_its_end_nothing_half_written_is_left(self, tmp_path: Path) -> None:
        stage = Stage("embed", Location(str(tmp_path)), FIELDS)
        stage.begin(units=1)
        left = tmp_path / ".0000.parquet.0123456789ab.tmp"
        left.touch()
        stage.finish([write(stage, "0000", "a")], {})
        assert not left.exists()
        assert (tmp_path / "0000.parquet").exists()

    def test_beginning_again_keeps_the_first_note(self, directory: Location) -> None:
        Stage("embed", directory, FIELDS).begin(units=7)
        first = (directory / STARTED).read_bytes()
        Stage("embed", directory, FIELDS).begin(units=7)
        assert (directory / STARTED).read_bytes() == first

    def test_another_number_of_units_is_noted_and_nothing_else_changes(self, directory: Location) -> None:
        Stage("embed", directory, FIELDS).begin(units=7)
        first = json.loads((directory / STARTED).read_text())
        Stage("embed", directory, FIELDS).begin(units=9)
        assert json.loads((directory / STARTED).read_text()) == {**first, "units": 9}


class TestAnotherConfig:
    def test_the_changed_field_is_named_with_both_values(self, directory: Location) -> None:
        Stage("embed", directory, FIELDS).begin(units=1)
        changed = Stage("embed", directory, FIELDS | {"encoder.model": "simcse"})
        with pytest.raises(UsageError, match=r"encoder\.model was 'minilm', is 'simcse'") as caught:
            changed.begin(units=1)
        assert str(directory) in str(caught.value)
        assert "seed" not in str(caught.value), "only what changed is named"

    def test_every_changed_added_and_removed_field_is_named(self, directory: Location) -> None:
        Stage("embed", directory, FIELDS).begin(units=1)
        other = {"encoder.model": "minilm", "cluster.seed": 1, "inputs.embed": "ff00"}
        with pytest.raises(UsageError) as caught:
            Stage("embed", directory, other).state()
        for part in ("cluster.seed was 0, is 1", "inputs.embed was None, is 'ff00'", "captions.paths was"):
            assert part in str(caught.value)

    def test_it_is_refused_after_the_end_too_and_nothing_is_touched(self, directory: Location) -> None:
        stage = Stage("embed", directory, FIELDS)
        stage.begin(units=1)
        stage.finish([write(stage, "0000", "a")], {})
        before = {file.name: file.read_bytes() for file in directory.files()}
        with pytest.raises(UsageError):
            Stage("embed", directory, FIELDS | {"cluster.seed": 5}).begin(units=1)
        assert {file.name: file.read_bytes() for file in directory.files()} == before

    def test_the_order_of_the_fields_does_not_matter(self, directory: Location) -> None:
        Stage("embed", directory, FIELDS).begin(units=1)
        assert Stage("embed", directory, dict(reversed(FIELDS.items()))).state() == "started"


class TestResume:
    def test_finished_units_are_read_from_the_outputs_themselves(self, directory: Location) -> None:
        killed = Stage("embed", directory, FIELDS)
        killed.begin(units=3)
        written = [
            write(killed, "0000", "a", "b", refused={"empty": 2}),
            write(killed, "sub/0001", "c"),
        ]
        assert written[0].bytes_out > 0
        resumed = Stage("embed", directory, FIELDS)
        assert finished_units(resumed.directory) == {record.unit: record for record in written}

    def test_nothing_finished_yet(self, directory: Location) -> None:
        stage = Stage("embed", directory, FIELDS)
        stage.begin(units=3)
        assert finished_units(stage.directory) == {}

    def test_the_list_of_units_is_no_unit(self, directory: Location) -> None:
        stage = Stage("embed", directory, FIELDS)
        stage.begin(units=1)
        stage.finish([write(stage, "0000", "a")], {})
        assert list(finished_units(stage.directory)) == ["0000"]

    def test_nor_are_the_counts_of_captions(self, directory: Location) -> None:
        stage = Stage("embed", directory, FIELDS)
        stage.begin(units=1)
        (directory / CAPTION_COUNTS).write_table(rows("a"))
        write(stage, "0000", "a")
        assert list(finished_units(stage.directory)) == ["0000"]

    def test_a_resumed_stage_counts_its_attempts_and_hashes_like_an_unbroken_one(self, directory: Location) -> None:
        first = Stage("embed", directory / "broken", FIELDS)
        first.begin(units=2)
        write(first, "0001", "c")
        second = Stage("embed", directory / "broken", FIELDS)
        second.begin(units=2)
        already = finished_units(second.directory)
        assert list(already) == ["0001"]
        broken = second.finish([write(second, "0000", "a", "b"), *already.values()], {})

        unbroken_stage = Stage("embed", directory / "unbroken", FIELDS)
        unbroken_stage.begin(units=2)
        records = [write(unbroken_stage, "0000", "a", "b"), write(unbroken_stage, "0001", "c")]
        unbroken = unbroken_stage.finish(records, {})
        assert (broken.attempts, unbroken.attempts) == (2, 1)
        assert broken.content_hash == unbroken.content_hash
        assert broken.config_hash == unbroken.config_hash

    def test_an_output_without_its_record_is_an_error_that_names_it(self, directory: Location) -> None:
        stage = Stage("embed", directory, FIELDS)
        stage.begin(units=1)
        stage.output("0000").write_table(rows("a"))
        with pytest.raises(UsageError, match=r"embeddings/0000\.parquet.*delete it and run again$"):
            finished_units(stage.directory)


@pytest.mark.parametrize("left", [0, 4, 500])
def test_a_cut_output_is_one_sentence_that_says_to_delete_it(tmp_path: Path, left: int) -> None:
    stage = Stage("embed", Location.parse(str(tmp_path)), FIELDS)
    write(stage, "0000", *(str(number) for number in range(1000)))
    whole = (tmp_path / "0000.parquet").read_bytes()
    (tmp_path / "0000.parquet").write_bytes(whole[:left])
    with pytest.raises(DataError, match=r"^\S+/0000\.parquet: damaged \(.+\): delete it and run again$"):
        finished_units(stage.directory)
    (tmp_path / "0000.parquet").unlink()
    assert finished_units(stage.directory) == {}


@pytest.mark.parametrize("place", [0.0, 0.5, 0.99])
def test_damage_in_an_output_is_told_from_its_absence(tmp_path: Path, place: float) -> None:
    stage = Stage("embed", Location.parse(str(tmp_path)), FIELDS)
    stage.finish([write(stage, "0000", *(str(number) for number in range(1000)))], {})
    assert read_output(stage.directory, "0000", ["distance"]).column_names == ["distance"]
    damaged = bytearray((tmp_path / "0000.parquet").read_bytes())
    start = int(place * len(damaged))
    damaged[start : start + 40] = bytes(b ^ 0x55 for b in damaged[start : start + 40])
    (tmp_path / "0000.parquet").write_bytes(bytes(damaged))
    with pytest.raises(DataError, match=r"0000\.parquet: damaged .*delete it and \S+/manifest\.json.*mode-ray embed"):
        read_output(stage.directory, "0000")
    (tmp_path / "0000.parquet").unlink()
    with pytest.raises(FileNotFoundError):
        read_output(stage.directory, "0000")


class TestManifest:
    def test_totals_are_sums_over_the_units(self, directory: Location) -> None:
        stage = Stage("embed", directory, FIELDS)
        stage.begin(units=3)
        records = [
            write(stage, "0001", "c", refused={"empty": 1}),
            write(stage, "0000", "a", "b", refused={"too long": 3, "empty": 1}),
            UnitRecord(unit="0002", source="/data/0002.tar", error="truncated tar", attempt=stage.attempt),
        ]
        manifest = stage.finish(records, {"dimensions": 384})
        assert (manifest.units, manifest.rows_in, manifest.rows_out) == (3, 8, 3)
        assert manifest.refused == {"empty": 2, "too long": 3}
        assert manifest.quarantined == {"/data/0002.tar": "truncated tar"}
        assert manifest.summary == {"dimensions": 384}
        assert manifest.fields == FIELDS
        assert manifest.versions == package_versions()
        assert manifest.seconds >= 0.0

    def test_it_reads_back_equal_and_so_do_the_units(self, directory: Location) -> None:
        stage = Stage("embed", directory, FIELDS)
        stage.begin(units=2)
        records = [write(stage, "0001", "c", refused={"empty": 1}), write(stage, "0000", "a")]
        manifest = stage.finish(records, {"dimensions": 384})
        assert read_manifest(directory) == manifest == stage.manifest()
        assert read_units(directory) == [records[1], records[0]], "in order of their names"

    def test_the_list_of_units_has_plain_columns_for_other_tools(self, directory: Location) -> None:
        stage = Stage("embed", directory, FIELDS)
        stage.begin(units=1)
        stage.finish([write(stage, "0000", "a", "b", refused={"empty": 1})], {})
        listed = (directory / UNITS).read_table(["unit", "source", "rows_in", "rows_out", "error"])
        assert listed.to_pylist() == [
            {"unit": "0000", "source": "/data/0000.tar", "rows_in": 3, "rows_out": 2, "error": None}
        ]

    def test_a_stage_without_units_can_finish(self, directory: Location) -> None:
        stage = Stage("cluster", directory, FIELDS)
        stage.begin(units=0)
        assert stage.finish([], {"objective": 0.5}).units == 0
        assert read_units(directory) == []

    def test_no_manifest_where_there_is_no_stage(self, directory: Location) -> None:
        assert read_manifest(directory) is None


class TestUnitOutput:
    def test_the_footer_holds_the_record_and_the_rows_stay_plain(self, directory: Location) -> None:
        stage = Stage("embed", directory, FIELDS)
        record = write(stage, "0000", "a", "b")
        with stage.output("0000").open_input() as source:
            footer = pq.read_metadata(source).metadata or {}
        kept = UnitRecord.from_json(footer[FOOTER_KEY].decode())
        assert (kept.unit, kept.content_hash) == ("0000", record.content_hash)
        assert stage.output("0000").read_table().equals(rows("a", "b"))

    def test_metadata_of_the_table_is_kept_beside_it(self, directory: Location) -> None:
        stage = Stage("embed", directory, FIELDS)
        table = rows("a").replace_schema_metadata({b"encoder": b"minilm"})
        stage.write_unit(table, UnitRecord(unit="0000", source="x"))
        with stage.output("0000").open_input() as source:
            assert (pq.read_metadata(source).metadata or {})[b"encoder"] == b"minilm"


class TestHashes:
    @pytest.fixture
    def table(self) -> pa.Table:
        count = 1003
        return pa.table(
            {
                "key": [None if i % 7 == 0 else f"k{i}" for i in range(count)],
                "flag": [None if i % 5 == 0 else bool(i % 3) for i in range(count)],
                "fine": pa.array(range(count), pa.int32()),
                "embedding": pa.FixedSizeListArray.from_arrays(pa.array(range(4 * count), pa.float32()), 4),
                "captions": pa.array([None if i % 6 == 0 else ["c"] * (i % 4) for i in range(count)]),
            }
        )

    @pytest.mark.parametrize("cuts", [[1, 2, 500], [13], [7, 8, 9, 15], list(range(10, 1003, 10))])
    def test_the_hash_is_of_the_rows_not_of_their_chunks(self, table: pa.Table, cuts: list[int]) -> None:
        edges = [0, *cuts, table.num_rows]
        pieces = [table.slice(a, b - a) for a, b in itertools.pairwise(edges)]
        assert table_hash(pa.concat_tables(pieces)) == table_hash(table)

    def test_a_slice_of_a_larger_table_hashes_like_its_copy(self, table: pa.Table) -> None:
        twice = pa.concat_tables([table, table]).combine_chunks()
        assert table_hash(twice.slice(table.num_rows)) == table_hash(table)

    def test_metadata_does_not_count(self, table: pa.Table) -> None:
        assert table_hash(table.replace_schema_metadata({"a": "b"})) == table_hash(table)

    def test_any_change_of_rows_order_names_or_types_does(self, table: pa.Table) -> None:
        fine = table["fine"]
        others = [
            table.slice(1),
            table.take(list(reversed(range(table.num_rows)))),
            table.rename_columns(["id", *table.column_names[1:]]),
            table.set_column(2, "fine", fine.cast(pa.int64())),
            table.set_column(2, "fine", pa.array([1, *fine.to_pylist()[1:]], pa.int32())),
        ]
        assert len({table_hash(other) for other in [table, *others]}) == 1 + len(others)

    def test_several_hashes_combine_by_their_order(self) -> None:
        assert combined_hash(["a", "b"]) == combined_hash(iter(["a", "b"]))
        assert len({combined_hash(h) for h in (["a", "b"], ["b", "a"], ["ab"], ["a"], [])}) == 5


def test_refusals_are_counted_by_reason_in_order_of_the_reasons() -> None:
    records = [
        UnitRecord(unit="0", source="x", refused={"too long": 1}),
        UnitRecord(unit="1", source="y", refused={"empty": 2, "too long": 4}),
    ]
    assert list(count_refused(records).items()) == [("empty", 2), ("too long", 5)]


def test_versions_name_python_and_ourselves() -> None:
    assert {"python", "mode_ray", "ray", "torch", "pyarrow"} <= package_versions().keys()
