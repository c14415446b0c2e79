"""The sample that the fine centers are fitted on: which rows of which embedding shards each worker reads."""

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
    """A range of the rows that one unit contributes to the sample.

    Attributes:
        unit: The unit.
        rows: Rows of the sample that come from this unit.
        begin: First of those rows in this part.
        end: The row after the last one in this part.
    """

    unit: str
    rows: int
    begin: int
    end: int


def plan_sample(embeddings: Location, sample_rows: int, seed: int) -> list[SamplePart]:
    """A uniform sample of all embedded rows, in order of units.

    Raises:
        DataError: There are no embeddings.
    """
    rows_by_unit = {record.unit: record.rows_out for record in read_units(embeddings) if record.error is None}
    if sum(rows_by_unit.values()) == 0:
        raise DataError(f"{embeddings}: no caption was embedded; see the refused captions in {embeddings / MANIFEST}")
    wanted = allocate_sample(rows_by_unit, sample_rows, seed)
    return [SamplePart(unit, rows, 0, rows) for unit, rows in sorted(wanted.items()) if rows > 0]


def distribute_sample(parts: Sequence[SamplePart], workers: int) -> list[list[SamplePart]]:
    """Distribute a sample to workers, in order; their numbers of rows differ by at most one."""
    bounds = [sum(part.end - part.begin for part in parts) * worker // workers for worker in range(workers + 1)]
    by_worker: list[list[SamplePart]] = [[] for _ in range(workers)]
    first = 0
    for part in parts:
        for worker, own in enumerate(by_worker):
            begin = max(first, bounds[worker]) - first + part.begin
            end = min(first + part.end - part.begin, bounds[worker + 1]) - first + part.begin
            if begin < end:
                own.append(SamplePart(part.unit, part.rows, begin, end))
        first += part.end - part.begin
    return by_worker


def read_sample(embeddings: Location, parts: Sequence[SamplePart], seed: int) -> np.ndarray:
    """Read parts of a sample, in order: float16 [rows, d].

    Raises:
        DataError: An embedding shard is damaged.
    """

    def read(part: SamplePart) -> np.ndarray:
        table = read_output(embeddings, part.unit, [EMBEDDING])
        positions = sample_positions(part.unit, table.num_rows, part.rows, seed)[part.begin : part.end]
        return embedding_vectors(table.take(pa.array(positions)))

    with ThreadPoolExecutor(_SHARD_READERS) as readers:
        return np.concatenate(list(readers.map(read, parts)))
