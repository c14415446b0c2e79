"""Captions from parquet: columns of every kind users have, and each way a file can be wrong."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mode_ray.captions.clean import DUPLICATE_KEY, EMPTY, INVALID_UTF8, MISSING, TOO_LONG, CaptionTable
from mode_ray.captions.listing import list_work_units
from mode_ray.captions.read import count_captions, read_captions
from mode_ray.config.captions import CaptionsConfig
from mode_ray.errors import DataError
from mode_ray.storage import Location


def read(file: Path, **settings: Any) -> CaptionTable:  # noqa: ANN401  (config fields)
    """The captions of a file that is one shard."""
    config = CaptionsConfig(paths=(str(file),), **settings)
    (work_unit,) = list_work_units(config)
    return read_captions(work_unit, config)


def write(folder: Path, columns: dict[str, Any], **options: Any) -> Path:  # noqa: ANN401  (pyarrow's)
    """A parquet file of these columns."""
    file = folder / "shard.parquet"
    pq.write_table(pa.table(columns), file, **options)
    return file


class TestColumns:
    @pytest.mark.parametrize(
        "kind",
        [
            pa.string(),
            pa.large_string(),
            pa.binary(),
            pa.large_binary(),
            pa.dictionary(pa.int32(), pa.string()),
            pa.dictionary(pa.int8(), pa.large_string()),
            pa.string_view(),
            pa.binary_view(),
        ],
        ids=str,
    )
    def test_text_of_every_arrow_type(self, tmp_path: Path, kind: pa.DataType) -> None:
        captions = pa.array(["a  cat", None, "", "ein Hündchen"], pa.string())
        typed = pa.array(captions.to_pylist(), kind)
        result = read(write(tmp_path, {"caption": typed}))
        assert result.table.to_pydict() == {
            "row": [0, 3],
            "caption_index": [0, 0],
            "key": ["0", "3"],
            "caption": ["a cat", "ein Hündchen"],
        }
        assert result.refused == {MISSING: 1, EMPTY: 1}

    def test_another_column_and_keys_of_the_users_own(self, tmp_path: Path) -> None:
        file = write(tmp_path, {"text": ["a", "b", "c"], "id": pa.array([10, None, 12])})
        result = read(file, caption_field="text", key_field="id")
        assert result.table["key"].to_pylist() == ["10", "1", "12"]

    def test_the_same_key_twice_in_a_shard_is_refused_once(self, tmp_path: Path) -> None:
        result = read(write(tmp_path, {"caption": ["a", "b", "c"], "id": ["x", "y", "x"]}), key_field="id")
        assert result.table["caption"].to_pylist() == ["a", "b"]
        assert (result.refused, result.examples) == ({DUPLICATE_KEY: 1}, {DUPLICATE_KEY: "row 2"})

    def test_the_same_key_in_two_shards_is_fine(self, tmp_path: Path) -> None:
        config = CaptionsConfig(paths=(str(tmp_path),), key_field="id")
        for name in ("a", "b"):
            pq.write_table(pa.table({"caption": [name], "id": ["same"]}), tmp_path / f"{name}.parquet")
        tables = [read_captions(work_unit, config) for work_unit in list_work_units(config)]
        assert [(table.table.num_rows, dict(table.refused)) for table in tables] == [(1, {}), (1, {})]

    def test_no_rows(self, tmp_path: Path) -> None:
        file = write(tmp_path, {"caption": pa.array([], pa.string())})
        result = read(file)
        assert (result.table.num_rows, result.rows_in, dict(result.refused)) == (0, 0, {})
        assert result.table.column_names == ["row", "caption_index", "key", "caption"]

    def test_bytes_that_are_not_utf8_hide_in_string_columns_too(self, tmp_path: Path) -> None:
        raw = pa.array([b"a cat", b"caf\xe9", b"a dog"], pa.binary())
        text = pa.StringArray.from_buffers(3, raw.buffers()[1], raw.buffers()[2])
        for captions in (raw, text):
            result = read(write(tmp_path, {"caption": captions}))
            assert result.table["caption"].to_pylist() == ["a cat", "a dog"]
            assert (result.refused, result.examples) == ({INVALID_UTF8: 1}, {INVALID_UTF8: "row 1"})

    def test_two_megabytes_of_caption(self, tmp_path: Path) -> None:
        result = read(write(tmp_path, {"caption": ["a cat", "ä" * 1_000_000]}))
        assert (result.refused, result.examples) == ({TOO_LONG: 1}, {TOO_LONG: "row 1"})


class TestSeveralCaptions:
    LISTS: tuple[list[str | None] | None, ...] = (["one", "two"], None, [], [None, "four"], ["five"], [""])

    @pytest.fixture(
        params=[
            pa.list_(pa.string()),
            pa.large_list(pa.large_string()),
            pa.list_(pa.string_view()),
            pa.list_(pa.dictionary(pa.int32(), pa.string())),
            pa.list_view(pa.string()),
            pa.large_list_view(pa.string_view()),
        ],
        ids=str,
    )
    def file(self, request: pytest.FixtureRequest, tmp_path: Path) -> Path:
        return write(tmp_path, {"caption": pa.array(self.LISTS, request.param), "id": list("abcdef")})

    def test_all_of_them_are_exploded(self, file: Path) -> None:
        result = read(file, select="all", key_field="id")
        assert result.table.to_pydict() == {
            "row": [0, 0, 3, 4],
            "caption_index": [0, 1, 1, 0],
            "key": ["a", "a", "d", "e"],
            "caption": ["one", "two", "four", "five"],
        }
        assert result.rows_in == 8, "a pair without any caption counts as one"
        assert (result.refused, result.examples) == ({MISSING: 3, EMPTY: 1}, {MISSING: "row 1", EMPTY: "row 5"})

    def test_or_the_first_of_each(self, file: Path) -> None:
        result = read(file, select="first")
        assert result.table["caption"].to_pylist() == ["one", "five"]
        assert result.table["row"].to_pylist() == [0, 4]
        assert (result.rows_in, result.refused) == (6, {MISSING: 3, EMPTY: 1})

    @pytest.mark.parametrize("element", [pa.string(), pa.string_view()], ids=str)
    def test_lists_of_fixed_size(self, tmp_path: Path, element: pa.DataType) -> None:
        lists = pa.array([["one", "two"], None, [None, "four"]], pa.list_(element, 2))
        file = write(tmp_path, {"caption": lists})
        result = read(file, select="all")
        assert result.table.select(["row", "caption_index", "caption"]).to_pydict() == {
            "row": [0, 0, 2],
            "caption_index": [0, 1, 1],
            "caption": ["one", "two", "four"],
        }
        assert (result.refused, result.examples) == ({MISSING: 2}, {MISSING: "row 1"})
        config = CaptionsConfig(paths=(str(file),), select="all")
        assert [count_captions(work_unit, config) for work_unit in list_work_units(config)] == [5]

    def test_text_of_an_extension_type(self, tmp_path: Path) -> None:
        result = read(write(tmp_path, {"caption": pa.array(["a cat", None], pa.json_(pa.string()))}))
        assert result.table["caption"].to_pylist() == ["a cat"]

    def test_row_numbers_of_a_split_file_are_absolute(self, tmp_path: Path) -> None:
        file = write(tmp_path, {"caption": [["a", "b"], ["c"], [], ["d", "e", "f"]]}, row_group_size=1)
        config = CaptionsConfig(paths=(str(file),), select="all", max_rows_per_unit=2)
        tables = [read_captions(work_unit, config).table for work_unit in list_work_units(config)]
        assert [table["row"].to_pylist() for table in tables] == [[0, 0, 1], [3, 3, 3]]
        assert [count_captions(work_unit, config) for work_unit in list_work_units(config)] == [3, 4]


class TestRefused:
    def test_a_column_that_is_not_there_names_those_that_are(self, tmp_path: Path) -> None:
        file = write(tmp_path, {"text": ["a"], "url": ["b"]})
        with pytest.raises(
            DataError, match=r"shard\.parquet: no column 'caption'; set captions\.caption_field.*'text', 'url'"
        ):
            read(file)
        with pytest.raises(DataError, match=r"shard\.parquet: no column 'id'; set captions\.key_field"):
            read(file, caption_field="text", key_field="id")

    @pytest.mark.parametrize(
        "values", [[1, 2], [0.5], [True], [{"en": "a cat"}], [[1, 2]], [["a"], [[1]]][1:]], ids=str
    )
    def test_a_column_that_holds_no_text(self, tmp_path: Path, values: list[object]) -> None:
        with pytest.raises(
            DataError, match=r"shard\.parquet: column 'caption' has type .*, but captions are strings or lists"
        ):
            read(write(tmp_path, {"caption": values}))

    @pytest.mark.parametrize("values", [[{"a": 1}], [["x"]], [b"\xff"]], ids=str)
    def test_keys_that_are_no_names(self, tmp_path: Path, values: list[object]) -> None:
        with pytest.raises(DataError, match=r"shard\.parquet: column 'id' has type .*captions\.key_field"):
            read(write(tmp_path, {"caption": ["a cat"], "id": values}), key_field="id")

    @pytest.mark.parametrize("damage", ["garbage", "empty", "cut", "html"])
    def test_what_is_not_a_whole_parquet_file(self, tmp_path: Path, damage: str) -> None:
        file = write(tmp_path, {"caption": [f"caption {row}" for row in range(1000)]})
        content = file.read_bytes()
        file.write_bytes(
            {
                "garbage": bytes(range(256)) * 10,
                "empty": b"",
                "cut": content[: len(content) // 2],
                "html": b"<html>404</html>",
            }[damage]
        )
        with pytest.raises(DataError, match=r"shard\.parquet: not a readable parquet file .*replace or remove it"):
            read(file)

    @pytest.mark.parametrize("checksums", [True, False])
    def test_a_flipped_bit_is_detected_by_page_checksums(self, tmp_path: Path, checksums: bool) -> None:
        file = tmp_path / "shard.parquet"
        pq.write_table(
            pa.table({"caption": ["a photo"]}),
            file,
            write_page_checksum=checksums,
            compression="none",
            use_dictionary=False,
            write_statistics=False,
        )
        assert read(file).table["caption"].to_pylist() == ["a photo"]
        file.write_bytes(file.read_bytes().replace(b"a photo", b"a phono", 1))
        if checksums:
            with pytest.raises(DataError, match=r"shard\.parquet: damaged parquet data"):
                read(file)
        else:
            assert read(file).table["caption"].to_pylist() == ["a phono"]

    def test_a_file_that_went_away_after_listing(self, tmp_path: Path) -> None:
        file = write(tmp_path, {"caption": ["a"]})
        config = CaptionsConfig(paths=(str(file),))
        (work_unit,) = list_work_units(config)
        file.unlink()
        with pytest.raises(DataError, match=r"shard\.parquet: no such file"):
            read_captions(work_unit, config)

    def test_flipped_bytes_anywhere_are_a_data_error_or_undetected(self, tmp_path: Path) -> None:
        file = write(tmp_path, {"caption": [f"a photo of {row}" for row in range(60)]}, row_group_size=20)
        content = file.read_bytes()
        generator = np.random.default_rng(0)
        errors = 0
        for _ in range(150):
            damaged = bytearray(content)
            for position in generator.integers(4, len(content) - 8, size=3):
                damaged[position] = generator.integers(256)
            file.write_bytes(damaged)
            config = CaptionsConfig(paths=(str(file),), max_rows_per_unit=20)
            try:
                for work_unit in list_work_units(config):
                    read_captions(work_unit, config)
            except DataError as error:
                assert str(file) in str(error)  # noqa: PT017  (many files, most of them damaged)
                errors += 1
        assert errors > 75


def test_the_same_on_s3(bucket: str, tmp_path: Path) -> None:
    file = write(tmp_path, {"caption": ["a", "b", "c"]}, row_group_size=1)
    Location.parse(f"{bucket}/shard.parquet").write_bytes(file.read_bytes())
    config = CaptionsConfig(paths=(f"{bucket}/*.parquet",), max_rows_per_unit=2)
    tables = [read_captions(work_unit, config).table for work_unit in list_work_units(config)]
    assert [table["caption"].to_pylist() for table in tables] == [["a", "b"], ["c"]]
