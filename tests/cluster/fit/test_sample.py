"""The sample of a fit: uniform over all rows, the same for the same seed, completely distributed."""

from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mode_ray.cluster.fit.sample import SamplePart, distribute_sample, plan_sample, read_sample
from mode_ray.embed.table import embedding_column
from mode_ray.errors import DataError
from mode_ray.stages.manifest import Stage, UnitRecord
from mode_ray.storage import Location


def sampled(embeddings: Stage, rows: int, seed: int) -> list[float]:
    """First component of all sampled rows."""
    parts = plan_sample(embeddings.directory, rows, seed)
    first: list[float] = read_sample(embeddings.directory, parts, seed)[:, 0].tolist()
    return first


@pytest.fixture
def embeddings(tmp_path: Path) -> Stage:
    """Three units of 10, 0 and 30 vectors; the first component is the row."""
    made = Stage("embed", Location(str(tmp_path)), {})
    made.begin(3)
    records, first = [], 0
    for unit, rows in (("a", 10), ("b", 0), ("c", 30)):
        vectors = np.zeros((rows, 4), np.float32)
        vectors[:, 0] = np.arange(first, first + rows)
        first += rows
        table = pa.table({"embedding": embedding_column(vectors)})
        records.append(made.write_unit(table, UnitRecord(unit=unit, source=unit, rows_in=rows, rows_out=rows)))
    made.finish([*records, UnitRecord(unit="d", source="d", error="unreadable")], {})
    return made


def test_all_rows_in_order_if_the_sample_is_large_enough(embeddings: Stage) -> None:
    assert sampled(embeddings, 100, 0) == list(range(40))


def test_distinct_rows_of_all_units_the_same_for_the_same_seed(embeddings: Stage) -> None:
    rows = sampled(embeddings, 20, 0)
    assert len(set(rows)) == 20
    assert min(rows) < 10 <= max(rows)
    assert rows == sampled(embeddings, 20, 0)
    assert rows != sampled(embeddings, 20, 1)


@pytest.mark.parametrize("workers", [1, 2, 3, 7, 25])
def test_workers_together_read_every_row_of_the_sample_once_and_in_its_order(embeddings: Stage, workers: int) -> None:
    parts = plan_sample(embeddings.directory, 23, 0)
    by_worker = distribute_sample(parts, workers)
    read = [read_sample(embeddings.directory, own, 0)[:, 0].tolist() for own in by_worker if own]
    assert list(chain.from_iterable(read)) == sampled(embeddings, 23, 0)
    counts = [sum(part.end - part.begin for part in own) for own in by_worker]
    assert len(by_worker) == workers
    assert max(counts) - min(counts) <= 1


def test_odd_parts_are_cut_and_keep_what_they_are_of() -> None:
    parts = [SamplePart("a", 5, 0, 5), SamplePart("b", 3, 0, 3), SamplePart("c", 9, 0, 9)]
    assert distribute_sample(parts, 2) == [
        [SamplePart("a", 5, 0, 5), SamplePart("b", 3, 0, 3)],
        [SamplePart("c", 9, 0, 9)],
    ]
    thirds = distribute_sample(parts, 3)
    assert thirds[1] == [SamplePart("b", 3, 0, 3), SamplePart("c", 9, 0, 3)]
    assert thirds[0] == [SamplePart("a", 5, 0, 5)]
    assert distribute_sample(thirds[1], 2) == [[SamplePart("b", 3, 0, 3)], [SamplePart("c", 9, 0, 3)]]


def test_no_embedding_at_all(tmp_path: Path) -> None:
    made = Stage("embed", Location(str(tmp_path)), {})
    made.begin(1)
    made.finish([UnitRecord(unit="a", source="a", rows_in=5, refused={"empty caption": 5})], {})
    with pytest.raises(DataError, match="no caption was embedded"):
        plan_sample(made.directory, 10, 0)


def test_a_damaged_file_is_named_with_the_fix(embeddings: Stage) -> None:
    file = Path(embeddings.output("c").path)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match=r"/c\.parquet: damaged .*mode-ray embed"):
        sampled(embeddings, 20, 0)
