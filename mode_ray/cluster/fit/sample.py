"""The sample that the fine centers are fitted on: which rows of which embedding shards, and who reads them."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from mode_ray.embed.table import EMBEDDING, embedding_vectors
from mode_ray.errors import DataError
from mode_ray.run_directory import MANIFEST
from mode_ray.stages.manifest import read_output, read_units
from mode_ray.storage import Location
from mode_ray.util.sampling import allocate_sample, sample_positions

_SHARD_READERS = 4


@dataclass(frozen=True)
class SamplePart:
    """Some of the rows that one embedding shard gives to the sample.

    Attributes:
        unit: The shard.
        rows: Rows of the sample that come from it.
        begin: First of them that this part holds.
        end: The one after its last.
    """

    unit: str
    rows: int
    begin: int
    end: int


def plan_sample(embeddings: Location, sample_rows: int, seed: int) -> list[SamplePart]:
    """A uniform sample of all embedded rows, in order of units.

    Raises:
        DataError: There is no embedding at all.
    """
    rows_by_unit = {record.unit: record.rows_out for record in read_units(embeddings) if record.error is None}
    if sum(rows_by_unit.values()) == 0:
        raise DataError(f"{embeddings}: no caption was embedded; see the refused captions in {embeddings / MANIFEST}")
    wanted = allocate_sample(rows_by_unit, sample_rows, seed)
    return [SamplePart(unit, rows, 0, rows) for unit, rows in sorted(wanted.items()) if rows > 0]


def deal_sample(parts: Sequence[SamplePart], workers: int) -> list[list[SamplePart]]:
    """Deal a sample to workers in its order, each one as many rows as the others, give or take one."""
    bounds = [sum(part.end - part.begin for part in parts) * worker // workers for worker in range(workers + 1)]
    dealt: list[list[SamplePart]] = [[] for _ in range(workers)]
    first = 0
    for part in parts:
        for worker, own in enumerate(dealt):
            begin = max(first, bounds[worker]) - first + part.begin
            end = min(first + part.end - part.begin, bounds[worker + 1]) - first + part.begin
            if begin < end:
                own.append(SamplePart(part.unit, part.rows, begin, end))
        first += part.end - part.begin
    return dealt


def read_sample(embeddings: Location, parts: Sequence[SamplePart], seed: int) -> np.ndarray:
    """Read parts of a sample, float16 [rows, d], in their order.

    Raises:
        DataError: An embedding shard is damaged.
    """

    def read(part: SamplePart) -> np.ndarray:
        table = read_output(embeddings, part.unit, [EMBEDDING])
        positions = sample_positions(part.unit, table.num_rows, part.rows, seed)[part.begin : part.end]
        return embedding_vectors(table.take(pa.array(positions)))

    with ThreadPoolExecutor(_SHARD_READERS) as readers:
        return np.concatenate(list(readers.map(read, parts)))
