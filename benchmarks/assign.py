"""Assigning stored embeddings to their nearest centers through Ray Data is as fast as a bare loop without Ray.

Peer: what one would write without this package: pyarrow reads a shard, faiss' IndexFlatL2 searches it with as many
threads as there are cores, pyarrow writes the assignments; one after the other, no records, no hashes, no resume. Ours
is the assign stage as in production: Ray Data over the shards, one actor a core that reads, searches and writes at the
same time, and the manifest at the end. Its time counts from the first unit's start to the manifest; the start of the
pool is printed apart.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from captions import caption_vectors, write_embedding_shard
from frame import alternate, arguments, finish

from mode_ray.assign.stage import run_assign
from mode_ray.cluster.clustering import Clustering
from mode_ray.config.base import ActorPool
from mode_ray.config.captions import CaptionsConfig, EncoderConfig
from mode_ray.config.cluster import AssignConfig
from mode_ray.config.run import RayConfig, RunConfig
from mode_ray.config.train import TrainConfig
from mode_ray.embed.table import EMBEDDING
from mode_ray.stages.manifest import Stage, read_units
from mode_ray.stages.run import Quiet, Run
from mode_ray.stages.session import ray_session
from mode_ray.stages.work_unit import WorkUnit
from mode_ray.storage import Location

CENTERS = 1024
ROWS_PER_SHARD = 50_000


def write_embeddings(folder: Path, vectors_nd: np.ndarray) -> list[WorkUnit]:
    """Embedding shards as the embed stage writes them."""
    return [
        write_embedding_shard(folder, number, vectors_nd[start : start + ROWS_PER_SHARD])
        for number, start in enumerate(range(0, len(vectors_nd), ROWS_PER_SHARD))
    ]


def fitted_centers(vectors_nd: np.ndarray) -> np.ndarray:
    """Centers good enough to search."""
    fit = faiss.Kmeans(vectors_nd.shape[1], CENTERS, niter=5, seed=0, max_points_per_centroid=100)
    fit.train(np.ascontiguousarray(vectors_nd[: 100 * CENTERS], np.float32))
    return np.asarray(fit.centroids, np.float32)


def bare_loop(embeddings: Path, work_units: Sequence[WorkUnit], centers_md: np.ndarray, output: Path) -> float:
    """The peer; returns its seconds."""
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir()
    began = time.perf_counter()
    index = faiss.IndexFlatL2(centers_md.shape[1])
    index.add(centers_md)
    for work_unit in work_units:
        table = pq.read_table(embeddings / f"{work_unit.unit}.parquet")
        column = table[EMBEDDING].combine_chunks()
        vectors = column.flatten().to_numpy().reshape(len(column), -1).astype(np.float32)
        squared, fine = index.search(vectors, 1)
        assigned = table.drop_columns([EMBEDDING])
        assigned = assigned.append_column("fine", pa.array(fine[:, 0].astype(np.int32)))
        assigned = assigned.append_column("distance", pa.array(squared[:, 0]))
        pq.write_table(assigned, output / f"{work_unit.unit}.parquet", compression="zstd")
    return time.perf_counter() - began


class AssignStage:
    """Ours; collects what the start of the pool took.

    Args:
        config: The run's config.
        embeddings: Directory of the embedding shards.
        clusters: Directory of the clustering.
        work_units: The units.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self.directory = run.assignments
        self.pool_start_seconds: list[float] = []

    def __call__(self) -> float:
        """Run the stage anew; returns the seconds from the first unit's start to the manifest."""
        self.directory.delete()
        began = time.time()
        stage = Stage("assign", self.directory, {})
        run_assign(self._run, stage, Quiet())
        ended = time.time()
        first = min(unit.finished_unix_seconds - unit.seconds for unit in read_units(self.directory))
        self.pool_start_seconds.append(first - began)
        return ended - first


def main() -> None:
    """Measure and print."""
    options = arguments(__doc__ or "").parse_args()
    rows = 300_000 if options.quick else 2_000_000
    repeats = options.repeats or (1 if options.quick else 5)
    cores = len(os.sched_getaffinity(0))
    faiss.omp_set_num_threads(cores)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        vectors_nd = caption_vectors(rows, folder)
        work_units = write_embeddings(folder / "embeddings", vectors_nd)
        centers_md = fitted_centers(vectors_nd)
        zeros = np.zeros(CENTERS)
        clusters = Location(str(folder / "clusters"))
        Clustering(centers_md, zeros, zeros.astype(np.int64), zeros, "benchmark", {}).save(clusters)
        del vectors_nd
        config = RunConfig(
            run=str(folder),
            captions=CaptionsConfig(paths=("unused",)),
            encoder=EncoderConfig(),
            assign=AssignConfig(pool=ActorPool(min_actors=cores, max_actors=cores)),
            train=TrainConfig(dense_samples=1),
        )
        began = time.perf_counter()
        with ray_session(RayConfig(dashboard=False, object_store_bytes=500_000_000)):
            print(f"ray.init: {time.perf_counter() - began:.1f} s")
            ours = AssignStage(Run(config, work_units))
            timings = alternate(
                ours,
                {"bare_loop": lambda: bare_loop(folder / "embeddings", work_units, centers_md, folder / "bare")},
                repeats,
            )
        print(f"pool start, not counted: {', '.join(f'{seconds:.1f}' for seconds in ours.pool_start_seconds)} s")
        differing = disagreements(ours.directory, folder / "bare", work_units)
    for name, seconds in timings.median_seconds.items():
        print(f"{name:10} {seconds:7.2f} s, {rows / seconds:10,.0f} rows/s")
    finish(
        "assign",
        {"rows_per_second_vs_bare_loop": timings.speed_up("bare_loop"), "differing_share": differing / rows},
        {
            "rows": rows,
            "centers": CENTERS,
            "actors": cores,
            "rows_per_second": rows / timings.median_seconds["mode_ray"],
            "seconds": {name: [round(value, 3) for value in values] for name, values in timings.seconds.items()},
            "pool_start_seconds": [round(seconds, 2) for seconds in ours.pool_start_seconds],
        },
    )


def disagreements(ours: Location, bare: Path, work_units: Sequence[WorkUnit]) -> int:
    """Rows that both put into different clusters, though one is clearly nearer (ties in float32 are not counted)."""
    differing = 0
    for work_unit in work_units:
        mine = (ours / f"{work_unit.unit}.parquet").read_table(["fine", "distance"])
        theirs = pq.read_table(bare / f"{work_unit.unit}.parquet", columns=["fine", "distance"])
        other = mine["fine"].to_numpy() != theirs["fine"].to_numpy()
        gap = np.abs(mine["distance"].to_numpy() - theirs["distance"].to_numpy())
        differing += int((other & (gap > 1e-5)).sum())
    return differing


if __name__ == "__main__":
    main()
