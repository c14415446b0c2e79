"""Collects a uniform sample of a run's far captions with their embeddings, unit by unit."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from mode_ray.assign.table import DISTANCE, read_assignments
from mode_ray.captions.clean import CaptionTable
from mode_ray.captions.read import read_captions
from mode_ray.cluster.clustering import Clustering
from mode_ray.config.base import config_hash
from mode_ray.embed.load import load_encoder
from mode_ray.embed.stage import unit_record
from mode_ray.embed.table import EMBEDDING, embedding_column, embedding_vectors, place_columns
from mode_ray.errors import DataError
from mode_ray.new_data.tally import far_mask
from mode_ray.run_directory import FAR_DIRECTORY
from mode_ray.stages.execute import UnitWork
from mode_ray.stages.manifest import Stage, UnitRecord, read_output, read_units
from mode_ray.stages.resume import run_work_unit_stage
from mode_ray.stages.run import Run
from mode_ray.stages.work_unit import WorkUnit
from mode_ray.storage import Location
from mode_ray.util.sampling import sample_positions

_SHARD_READERS = 8


@dataclass(frozen=True)
class FarSample:
    """The sample of far captions.

    Attributes:
        far: Squared distance above which a caption is far.
        rows_by_unit: Number of far captions to sample from each unit.
        seed: Seed of the sample.
    """

    far: float
    rows_by_unit: Mapping[str, int]
    seed: int


class FarWorker:
    """Collects the embeddings of a unit's far captions; see `UnitWorker`.

    Embeddings are read if the run kept them; else the captions are encoded again.
    """

    def __init__(self, run: Run, sample: FarSample) -> None:
        config = run.config
        self._captions = config.captions
        self._assignments = run.assignments
        self._embeddings = run.embeddings if config.embed.keep == "all" else None
        self._sample = sample
        if self._embeddings is None:
            self._encoder = load_encoder(config.encoder, config.embed.encoder, config.embed.pool.threads_per_actor)
            clustering = Clustering.load(run.clusters)
            clustering.compatible_with(self._encoder.name, self._encoder.dimension)

    def read(self, work_unit: WorkUnit) -> CaptionTable:
        """Sample the unit's far captions, and read their embeddings or texts."""
        assigned = read_assignments(self._assignments, work_unit.unit)
        far = np.flatnonzero(far_mask(assigned[DISTANCE].to_numpy(), self._sample.far))
        count = self._sample.rows_by_unit[work_unit.unit]
        chosen = assigned.take(pa.array(far[sample_positions(work_unit.unit, len(far), count, self._sample.seed)]))
        if self._embeddings is None:
            source = read_captions(work_unit, self._captions).table
        else:
            source = read_output(self._embeddings, work_unit.unit)
        found = source.filter(pa.array(_is_among(source, chosen)))
        if found.num_rows != chosen.num_rows:
            raise DataError(
                f"{work_unit.uri}: {chosen.num_rows - found.num_rows} of its assigned captions are missing: the file "
                "has changed since it was assigned; delete its assignments and run the assign stage again"
            )
        return CaptionTable(found, found.num_rows, {}, {})

    def compute(self, work_unit: WorkUnit, source: CaptionTable) -> tuple[pa.Table, UnitRecord]:
        """Encode the captions, unless their embeddings were read."""
        table = source.table
        if self._embeddings is None:
            column = embedding_column(self._encoder.encode(table["caption"].to_pylist()))
        else:
            column = table[EMBEDDING]
        return pa.table({**place_columns(table), EMBEDDING: column}), unit_record(work_unit, source)


def collect_far(run: Run, sample: FarSample, assigned_hash: str, on_record: Callable[[UnitRecord], None]) -> Location:
    """Collect the embeddings of the sampled far captions, or the rest of them after an interruption.

    Returns:
        Directory of the embedding files of the far captions.

    Raises:
        DataError: Files have changed since they were assigned, or can no longer be read.
    """
    config = run.config
    fields = {
        "far_squared_distance": sample.far,
        "cluster.sample_rows": config.cluster.sample_rows,
        "cluster.seed": sample.seed,
        "inputs.assign": assigned_hash,
    }
    # Each sample has its own directory, so that another quantile does not overwrite finished units.
    stage = Stage("cluster extend", run.directory / FAR_DIRECTORY / config_hash(fields), fields)
    if stage.state() != "done":
        wanted = [work_unit for work_unit in run.work_units if sample.rows_by_unit.get(work_unit.unit, 0) > 0]
        arguments = (replace(run, work_units=()), sample)
        run_work_unit_stage(stage, wanted, UnitWork(FarWorker, arguments, config.embed.pool), config.limits, on_record)
    return stage.directory


def read_far(collected: Location) -> np.ndarray:
    """All collected embeddings, in order of units, float32 [n, d]."""
    units = [record.unit for record in read_units(collected) if record.error is None]
    with ThreadPoolExecutor(_SHARD_READERS) as readers:
        tables = readers.map(lambda unit: read_output(collected, unit, [EMBEDDING]), units)
        return np.concatenate([embedding_vectors(table) for table in tables])


def _is_among(table: pa.Table, chosen: pa.Table) -> np.ndarray:
    """Mask of the rows of a table whose (row, caption_index) is in another table."""
    width = 1 + max((int(t["caption_index"].to_numpy().max()) for t in (table, chosen) if t.num_rows), default=0)
    numbers, wanted = (t["row"].to_numpy() * width + t["caption_index"].to_numpy() for t in (table, chosen))
    mask: np.ndarray = np.isin(numbers, wanted)
    return mask
