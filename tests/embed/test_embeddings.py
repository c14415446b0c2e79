"""Embedding columns: vectors are stored as float16, and unusable vectors are counted."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mode_ray.captions.clean import CaptionTable
from mode_ray.embed.table import (
    EMBEDDING,
    NO_EMBEDDING,
    as_stored,
    embedding_column,
    embedding_vectors,
    place_columns,
    split_usable,
)
from mode_ray.storage import Location


def unit_vectors(rows: int, dimension: int = 16) -> np.ndarray:
    """Random unit vectors, float32."""
    vectors = np.random.default_rng(0).standard_normal((rows, dimension)).astype(np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


class TestColumns:
    @pytest.mark.parametrize("rows", [0, 1, 1000])
    def test_vectors_come_back_from_disk_in_float16_steps(self, tmp_path: Path, rows: int) -> None:
        vectors_bd = unit_vectors(rows)
        file = Location(str(tmp_path / "x.parquet"))
        file.write_table(pa.table({EMBEDDING: embedding_column(vectors_bd)}))
        table = file.read_table()
        assert table[EMBEDDING].type == pa.list_(pa.float16(), 16)
        back_bd = embedding_vectors(table)
        assert back_bd.dtype == np.float16
        assert back_bd.shape == (rows, 16)
        assert np.array_equal(back_bd, as_stored(vectors_bd))
        assert np.abs(back_bd - vectors_bd).max(initial=0) <= 2**-11

    def test_slices_and_filters_keep_rows_and_vectors_together(self) -> None:
        vectors_bd = unit_vectors(100)
        table = pa.table({"row": range(100), EMBEDDING: embedding_column(vectors_bd)})
        assert np.array_equal(embedding_vectors(table.slice(10, 5)), as_stored(vectors_bd[10:15]))
        assert np.array_equal(embedding_vectors(table.take(pa.array([7, 3]))), as_stored(vectors_bd[[7, 3]]))
        chunked = pa.concat_tables([table.slice(50), table.slice(0, 50)])
        assert np.array_equal(embedding_vectors(chunked), as_stored(np.roll(vectors_bd, 50, axis=0)))

    def test_vectors_need_not_be_contiguous(self) -> None:
        vectors_bd = unit_vectors(10)[:, ::2]
        assert np.array_equal(
            embedding_vectors(pa.table({EMBEDDING: embedding_column(vectors_bd)})), as_stored(vectors_bd)
        )

    def test_positions_are_kept_but_captions_are_not(self) -> None:
        table = pa.table({"caption": ["x"], "row": [0], "key": ["k"], "caption_index": [0], "image_offset": [512]})
        assert set(place_columns(table)) == {"row", "key", "caption_index", "image_offset"}


class TestUnusable:
    TABLE = pa.table({"row": [10, 11, 12, 13], "caption": ["a", "b", "c", "d"]})

    def test_zero_and_not_finite_vectors_are_refused_and_counted(self) -> None:
        vectors_bd = unit_vectors(4)
        vectors_bd[1] = 0
        vectors_bd[3, 5] = np.nan
        captions = CaptionTable(self.TABLE, 6, {"empty": 2}, {"empty": "row 0"})
        kept, kept_bd = split_usable(captions, vectors_bd)
        assert kept.table["row"].to_pylist() == [10, 12]
        assert np.array_equal(kept_bd, vectors_bd[[0, 2]])
        assert kept.refused == {"empty": 2, NO_EMBEDDING: 2}
        assert kept.examples == {"empty": "row 0", NO_EMBEDDING: "row 11"}
        assert kept.rows_in == 6 == kept.table.num_rows + sum(kept.refused.values())

    def test_nothing_changes_if_all_are_usable(self) -> None:
        captions = CaptionTable(self.TABLE, 4, {}, {})
        kept, _ = split_usable(captions, unit_vectors(4))
        assert kept is captions
