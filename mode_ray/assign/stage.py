"""Assign every caption to its nearest fine center; one file for each work unit.

The stage reads the embeddings if the embed stage kept them. Otherwise it reads, encodes and assigns captions in one
pass.
"""

from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mode_ray.assign.counts import fine_counts
from mode_ray.assign.table import assignment_table
from mode_ray.captions.clean import CaptionTable
from mode_ray.captions.read import read_captions
from mode_ray.cluster.clustering import Clustering
from mode_ray.cluster.search.nearest import Float32Array, Int32Array, NearestCenters
from mode_ray.config.base import fingerprint_fields
from mode_ray.config.run import RunConfig
from mode_ray.embed.load import load_encoder
from mode_ray.embed.stage import unit_record
from mode_ray.embed.table import as_stored, embedding_vectors, split_usable
from mode_ray.errors import DataError
from mode_ray.stages.execute import UnitWork
from mode_ray.stages.manifest import Manifest, Stage, UnitRecord, read_output
from mode_ray.stages.resume import run_work_unit_stage
from mode_ray.stages.run import Run, StageReport
from mode_ray.stages.work_unit import WorkUnit
from mode_ray.storage import Location
from mode_ray.util.devices import pick_device


class AssignWorker:
    """Finds the nearest centers of a unit's captions; see `UnitWorker`.

    Args:
        config: The run's config.
        clusters: Directory of the clustering.
        embeddings: Directory of the embed stage, or None to encode the captions here.
    """

    def __init__(self, config: RunConfig, clusters: Location, embeddings: Location | None) -> None:
        clustering = Clustering.load(clusters)
        threads = config.assign.pool.threads_per_actor
        prices_m = clustering.prices_m if config.assign.rule == "priced" else None
        self._nearest = center_search(
            clustering.centers_md, prices_m, threads, gpu=config.assign.pool.gpus_per_actor > 0
        )
        self._captions = config.captions
        self._embeddings = embeddings
        if embeddings is None:
            self._encoder = load_encoder(config.encoder, config.embed.encoder.elsewhere, threads)
            clustering.compatible_with(self._encoder.name, self._encoder.dimension)

    def read(self, work_unit: WorkUnit) -> CaptionTable:
        """Read the unit's embeddings, or its captions."""
        if self._embeddings is None:
            return read_captions(work_unit, self._captions)
        try:
            table = read_output(self._embeddings, work_unit.unit)
        except FileNotFoundError:
            raise DataError(f"{work_unit.uri}: left out by the embed stage; it has no embeddings") from None
        return CaptionTable(table, table.num_rows, {}, {})

    def compute(self, work_unit: WorkUnit, source: CaptionTable) -> tuple[pa.Table, UnitRecord]:
        """Encode the captions if there are no embeddings, and find the nearest centers."""
        if self._embeddings is None:
            vectors_bd = self._encoder.encode(source.table["caption"].to_pylist())
            source, vectors_bd = split_usable(source, vectors_bd)
            # Assignments do not depend on whether embeddings are kept.
            vectors_bd = as_stored(vectors_bd)
        else:
            vectors_bd = embedding_vectors(source.table)
        fine_b, squared_distance_b = self._nearest.search(vectors_bd)
        table = assignment_table(source.table, fine_b, squared_distance_b)
        return table, unit_record(work_unit, source)


class CenterSearch(Protocol):
    """The nearest center of every vector."""

    def search(self, vectors_bd: npt.NDArray[np.floating]) -> tuple[Int32Array, Float32Array]:
        """Ids int32 [b] by squared distance plus price, and squared distances float32 [b] without it."""
        ...


def center_search(
    centers_md: Float32Array, prices_m: npt.NDArray[np.floating] | None, threads: int, *, gpu: bool
) -> CenterSearch:
    """The search of the stage: every distance on the GPU that Ray granted, or with pruning on CPU threads.

    Raises:
        UsageError: The GPU cannot be used.
    """
    if not gpu:
        return NearestCenters(centers_md, prices_m, threads)
    from mode_ray.cluster.search.dense import DenseSearch  # imports torch, which the driver does not need

    return DenseSearch(centers_md, prices_m, pick_device("auto"))


def assign_fields(run: Run) -> dict[str, object]:
    """The fields that decide the assignments."""
    return fingerprint_fields(run.config.assign, "assign")


def run_assign(run: Run, stage: Stage, report: StageReport) -> Manifest:
    """Run the assign stage; units that are done are skipped.

    Raises:
        DataError: More shards are unreadable, or more captions refused, than the config allows.
    """
    config = run.config
    embeddings = run.embeddings if config.embed.keep == "all" else None
    work = UnitWork(AssignWorker, (config, run.clusters, embeddings), config.assign.pool)
    manifest = run_work_unit_stage(stage, run.work_units, work, config.limits, report.unit)
    centers = len(Clustering.load(run.clusters).centers_md)
    fine_counts(run.assignments, run.work_units, centers, config.assign.pool.required_labels)
    return manifest
