"""The listing: which files are found, how they are named and split, and what is refused before anything runs."""

import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from mode_ray.captions.listing import list_work_units, read_listing, write_listing
from mode_ray.captions.read import read_captions
from mode_ray.config.captions import CaptionsConfig
from mode_ray.errors import DataError, UsageError
from mode_ray.stages.work_unit import PAIR_FORMATS, WorkUnit, WorkUnitTable, unit_name
from mode_ray.storage import Location


def write_parquet(file: Path, rows: int = 3, group_rows: int = 100) -> Path:
    """A parquet file with captions `caption 0`, `caption 1`, …"""
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"caption": [f"caption {row}" for row in range(rows)]}), file, row_group_size=group_rows)
    return file


def listed(*paths: Path | str, max_rows: int = 1_000_000) -> WorkUnitTable:
    """The shards of these paths."""
    return list_work_units(CaptionsConfig(paths=tuple(str(path) for path in paths), max_rows_per_unit=max_rows))


class TestFinding:
    def test_a_directory_gives_the_shards_below_it_in_order(self, tmp_path: Path) -> None:
        for name in ("b.parquet", "a.PQ", "deep/er/c.parquet", "README.md", ".hidden.parquet"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(b"not read while listing")
        assert [(work_unit.uri, work_unit.format) for work_unit in listed(tmp_path)] == [
            (f"{tmp_path}/a.PQ", "parquet"),
            (f"{tmp_path}/b.parquet", "parquet"),
            (f"{tmp_path}/deep/er/c.parquet", "parquet"),
        ]

    def test_files_globs_and_directories_may_be_mixed(self, tmp_path: Path) -> None:
        for name in ("x/1.parquet", "x/2.parquet", "y/1.parquet", "z.parquet"):
            write_parquet(tmp_path / name)
        work_units = listed(tmp_path / "x/*.parquet", tmp_path / "y", tmp_path / "z.parquet")
        assert [work_unit.uri.removeprefix(f"{tmp_path}/") for work_unit in work_units] == [
            "x/1.parquet",
            "x/2.parquet",
            "y/1.parquet",
            "z.parquet",
        ]

    def test_the_config_sets_the_format_of_unknown_suffixes(self, tmp_path: Path) -> None:
        file = write_parquet(tmp_path / "captions.data")
        work_units = list_work_units(CaptionsConfig(paths=(str(file),), format="parquet"))
        assert [work_unit.format for work_unit in work_units] == ["parquet"]

    def test_text_shards_are_found_by_their_suffixes(self, tmp_path: Path) -> None:
        names = ["a.jsonl", "b.ndjson.gz", "c.csv", "d.TSV", "e.tsv.gz"]
        for name in names:
            (tmp_path / name).write_bytes(b"not read while listing")
        work_units = listed(*(tmp_path / name for name in names))
        assert [work_unit.location.name for work_unit in work_units] == names
        assert [work_unit.format for work_unit in work_units] == ["jsonl", "jsonl", "csv", "tsv", "tsv"]

    def test_only_formats_that_are_asked_for(self, tmp_path: Path) -> None:
        for name in ("a.tar", "labels.csv"):
            (tmp_path / name).write_bytes(b"x")
        work_units = list_work_units(CaptionsConfig(paths=(str(tmp_path),)), formats=PAIR_FORMATS)
        assert [work_unit.location.name for work_unit in work_units] == ["a.tar"]

    def test_sizes_and_times_come_with_the_listing(self, tmp_path: Path) -> None:
        file = write_parquet(tmp_path / "a.parquet", rows=45, group_rows=10)
        for work_unit in listed(tmp_path, max_rows=20):
            assert work_unit.size_bytes == file.stat().st_size
            assert work_unit.modified_unix_seconds == file.stat().st_mtime_ns / 1e9

    def test_s3_is_listed_like_a_directory(self, bucket: str) -> None:
        root = Location.parse(bucket)
        for name in ("in/1.parquet", "in/deep/2.parquet", "in/notes.txt"):
            (root / name).write_bytes(b"x")
        assert [work_unit.uri for work_unit in listed(f"{bucket}/in/")] == [
            f"{bucket}/in/1.parquet",
            f"{bucket}/in/deep/2.parquet",
        ]


class TestRefused:
    @pytest.mark.parametrize("name", ["absent.parquet", "absent", "absent/*.parquet", "*.parquet"])
    def test_what_is_not_there(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(DataError, match=r"captions\.paths.*no such file") as caught:
            listed(tmp_path / name)
        assert f"{tmp_path}/{name}" in str(caught.value)

    @pytest.mark.usefixtures("s3_server")
    def test_a_missing_bucket(self) -> None:
        with pytest.raises(DataError, match=r"captions\.paths: s3://no-such-bucket-anywhere/x: no such file"):
            listed("s3://no-such-bucket-anywhere/x")

    def test_a_directory_without_shards(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("nothing to see")
        with pytest.raises(DataError, match=r"captions\.paths: .*: this directory contains no \.parquet, \.tar"):
            listed(tmp_path)

    def test_an_unknown_suffix(self, tmp_path: Path) -> None:
        (tmp_path / "captions.xlsx").write_bytes(b"x")
        with pytest.raises(DataError, match=r"captions\.xlsx: unknown suffix; set captions\.format"):
            listed(tmp_path / "captions.xlsx")

    @pytest.mark.parametrize("name", ["0.tar.gz", "0.tgz", "0.tar.zst"])
    def test_a_compressed_tar(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(DataError, match=rf"{name}: a compressed tar: unpack it \(gunzip for gzip\)"):
            listed(tmp_path / name)

    def test_one_path_is_not_a_list(self) -> None:
        with pytest.raises(ValidationError, match=r"is one string where a list is meant: write \[/data/0\.tar\]"):
            CaptionsConfig.model_validate({"paths": "/data/0.tar"})

    def test_a_file_named_twice(self, tmp_path: Path) -> None:
        file = write_parquet(tmp_path / "a.parquet")
        with pytest.raises(DataError, match=r"a\.parquet is named twice"):
            listed(tmp_path, file)


class TestNames:
    def test_equal_file_names_in_different_directories_stay_apart(self, tmp_path: Path) -> None:
        for folder in ("a", "b", "a/b"):
            write_parquet(tmp_path / folder / "00000.parquet")
        units = [work_unit.unit for work_unit in listed(tmp_path)]
        assert len(set(units)) == 3
        assert all(unit.startswith("00000-") for unit in units), "the file is still to be recognised"

    def test_the_name_of_a_file_does_not_depend_on_other_files(self, tmp_path: Path) -> None:
        file = write_parquet(tmp_path / "b.parquet")
        before = listed(tmp_path)[0].unit
        write_parquet(tmp_path / "a.parquet")
        assert before in {work_unit.unit for work_unit in listed(tmp_path)}
        assert before == unit_name(Location(str(file))) == listed(file)[0].unit

    def test_names_do_not_change_between_versions(self) -> None:
        # Outputs on disk are named so: another name would do a finished run again.
        assert unit_name(Location("s3://bucket/laion/00017.tar")) == "00017-0b28744196c63bd2"


class TestSplitting:
    def test_large_files_are_split_between_row_groups(self, tmp_path: Path) -> None:
        file = write_parquet(tmp_path / "a.parquet", rows=45, group_rows=10)
        work_units = listed(file, max_rows=20)
        assert [(work_unit.row_groups, work_unit.first_row) for work_unit in work_units] == [
            ((0, 2), 0),
            ((2, 4), 20),
            ((4, 5), 40),
        ]
        assert len({work_unit.unit for work_unit in work_units}) == 3

    def test_row_numbers_count_over_the_whole_file(self, tmp_path: Path) -> None:
        file = write_parquet(tmp_path / "a.parquet", rows=45, group_rows=10)
        config = CaptionsConfig(paths=(str(file),), max_rows_per_unit=20)
        tables = [read_captions(work_unit, config).table for work_unit in list_work_units(config)]
        assert [table.num_rows for table in tables] == [20, 20, 5]
        whole = pa.concat_tables(tables)
        assert whole["row"].to_pylist() == list(range(45))
        assert whole["key"].to_pylist() == [str(row) for row in range(45)]
        assert whole["caption"].to_pylist() == [f"caption {row}" for row in range(45)]

    def test_a_row_group_above_the_limit_is_one_unit(self, tmp_path: Path) -> None:
        file = write_parquet(tmp_path / "a.parquet", rows=60, group_rows=30)
        assert [work_unit.row_groups for work_unit in listed(file, max_rows=20)] == [(0, 1), (1, 2)]

    def test_small_and_unreadable_files_are_whole(self, tmp_path: Path) -> None:
        write_parquet(tmp_path / "a.parquet", rows=20, group_rows=5)
        (tmp_path / "b.parquet").write_bytes(b"garbage " * 100)
        assert [work_unit.row_groups for work_unit in listed(tmp_path, max_rows=20)] == [None, None]


class TestKnownFiles:
    """An earlier listing is believed for files of the same size and time, and for no others."""

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        return write_parquet(tmp_path / "a.parquet", rows=45, group_rows=10)

    def again(self, file: Path, known: Sequence[WorkUnit]) -> WorkUnitTable:
        return list_work_units(CaptionsConfig(paths=(str(file),), max_rows_per_unit=20), known)

    def test_an_unchanged_file_is_not_opened(self, file: Path) -> None:
        first = listed(file, max_rows=20)
        before = file.stat()
        file.write_bytes(bytes(before.st_size))
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert self.again(file, first) == first
        assert [work_unit.row_groups for work_unit in self.again(file, [])] == [None], "it would be seen to be damaged"

    def test_a_file_written_again_is(self, file: Path) -> None:
        first = listed(file, max_rows=20)
        write_parquet(file, rows=25, group_rows=10)
        assert [work_unit.row_groups for work_unit in self.again(file, first)] == [(0, 2), (2, 3)]

    def test_others_may_have_come_or_gone(self, file: Path) -> None:
        gone, come = (
            write_parquet(file.with_name(name), rows=45, group_rows=10) for name in ("0.parquet", "b.parquet")
        )
        first = listed(gone, file, max_rows=20)
        gone.unlink()
        before = file.stat()
        file.write_bytes(bytes(before.st_size))
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        again = list_work_units(CaptionsConfig(paths=(str(file.parent),), max_rows_per_unit=20), first)
        assert [work_unit for work_unit in again if work_unit.uri == str(file)] == list(first)[3:], (
            "known: it is not opened"
        )
        assert [work_unit.row_groups for work_unit in again if work_unit.uri == str(come)] == [(0, 2), (2, 4), (4, 5)]
        assert len(again) == 6

    def test_so_is_one_with_another_time_alone(self, file: Path) -> None:
        first = listed(file, max_rows=20)
        os.utime(file, ns=(0, 10**9))
        assert {work_unit.modified_unix_seconds for work_unit in self.again(file, first)} == {1.0}

    def test_the_listing_is_kept_in_a_file_for_units_of_one_size(self, file: Path, tmp_path: Path) -> None:
        kept = Location(str(tmp_path / "run/shards.parquet"))
        config = CaptionsConfig(paths=(str(file),), max_rows_per_unit=20)
        assert read_listing(kept, config) == []
        write_listing(kept, list_work_units(config), config)
        assert read_listing(kept, config) == list_work_units(config)
        assert [work_unit.rows for work_unit in read_listing(kept, config)] == [20, 20, 5]
        assert read_listing(kept, config.model_copy(update={"max_rows_per_unit": 30})) == []

    def test_another_file_in_its_place_is_refused(self, tmp_path: Path) -> None:
        kept = Location(str(tmp_path / "shards.parquet"))
        kept.write_bytes(b"something else")
        with pytest.raises(UsageError, match=r"shards\.parquet: not a listing of the input files: remove it"):
            read_listing(kept, CaptionsConfig(paths=("x",)))
