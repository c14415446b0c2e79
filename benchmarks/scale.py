"""Assigning 16 million rows takes the same time a row and the same memory as one million; 719,000 captions in minutes.

The peer is ourselves at a sixteenth of the size: the assign stage on 1, 4 and 16 million embeddings (float16, 256
dimensions, shard by shard the same real captions' embeddings with a little noise of the shard's own), with an object
store of 500 MB, from the first unit's start to the manifest. Memory is the largest unique set size (USS) of any
process of the run, sampled twice a second. Then all captions of `captions.parquet`, by the stages as on the command
line: embedded with the static table, clustered (m = 1024, n = 8) and assigned, Ray's start included.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from captions import CAPTIONS, STATIC_TABLE, real_captions, write_embedding_shard
from frame import arguments, finish

from mode_ray.assign.stage import run_assign
from mode_ray.cluster.clustering import Clustering
from mode_ray.config.base import ActorPool
from mode_ray.config.captions import CaptionsConfig, EncoderConfig
from mode_ray.config.cluster import AssignConfig
from mode_ray.config.run import RayConfig, RunConfig
from mode_ray.config.train import TrainConfig
from mode_ray.embed.static import StaticEncoder
from mode_ray.stages.manifest import Stage, read_units
from mode_ray.stages.run import Quiet, Run
from mode_ray.stages.session import ray_session
from mode_ray.stages.work_unit import WorkUnit
from mode_ray.storage import Location

CORES = len(os.sched_getaffinity(0))
CENTERS = 1024
ROWS_PER_SHARD = 50_000
NOISE = 0.02
OBJECT_STORE_BYTES = 500_000_000
SAMPLE_SECONDS = 0.5


class PeakMemory:
    """The largest unique set size of any process below this one while it is sampled; of this one, its growth."""

    def __init__(self) -> None:
        self.bytes = 0
        self._before = psutil.Process().memory_full_info().uss  # the benchmark's own data
        self.process = ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            driver = psutil.Process()
            for process in [driver, *driver.children(recursive=True)]:
                try:
                    unique = process.memory_full_info().uss - (self._before if process == driver else 0)
                    if unique > self.bytes:
                        self.bytes, self.process = unique, process.name()
                except psutil.Error:
                    continue  # it ended meanwhile


def noisy_shard(folder: Path, number: int, base_nd: npt.NDArray[np.float32]) -> WorkUnit:
    """One embedding shard: the base rows, turned by the shard's number, with noise, unit norm."""
    generator = np.random.default_rng(number)
    vectors = np.roll(base_nd, number * 7919, axis=0)[:ROWS_PER_SHARD]
    vectors = vectors + NOISE * generator.standard_normal(vectors.shape, dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return write_embedding_shard(folder, number, vectors)


def assign_seconds(config: RunConfig, work_units: list[WorkUnit]) -> tuple[float, PeakMemory]:
    """The assign stage on its own Ray: seconds from the first unit's start to the manifest, and memory."""
    directory = config.directory / "assignments"
    directory.delete()
    with PeakMemory() as memory, ray_session(RayConfig(dashboard=False, object_store_bytes=OBJECT_STORE_BYTES)):
        run_assign(Run(config, work_units), Stage("assign", directory, {}), Quiet())
        ended = time.time()
    first = min(unit.finished_unix_seconds - unit.seconds for unit in read_units(directory))
    return ended - first, memory


def measure_sizes(
    millions: tuple[float, ...], repeats: int, folder: Path
) -> tuple[dict[str, float], dict[str, object]]:
    """Assign at every size, in turn; the small size several times."""
    base_nd = StaticEncoder(EncoderConfig(kind="static", model=STATIC_TABLE)).encode(real_captions(150_000))
    base_nd = base_nd[(base_nd != 0).any(axis=1)]
    base_nd = np.resize(base_nd, (max(len(base_nd), ROWS_PER_SHARD), base_nd.shape[1]))
    centers_md = np.ascontiguousarray(base_nd[np.random.default_rng(0).choice(len(base_nd), CENTERS, replace=False)])
    zeros = np.zeros(CENTERS)
    clusters = Location(str(folder / "clusters"))
    Clustering(centers_md, zeros, zeros.astype(np.int64), zeros, "benchmark", {}).save(clusters)
    embeddings = folder / "embeddings"
    counts = [round(size * 1_000_000 / ROWS_PER_SHARD) for size in millions]
    work_units = [noisy_shard(embeddings, number, base_nd) for number in range(max(counts))]
    del base_nd
    disk = sum(file.stat().st_size for file in embeddings.iterdir())
    print(f"{disk / 1e9:.1f} GB of embeddings, {ROWS_PER_SHARD:,} rows a shard")
    config = RunConfig(
        run=str(folder),
        captions=CaptionsConfig(paths=("unused",)),
        assign=AssignConfig(pool=ActorPool(min_actors=CORES, max_actors=CORES)),
        train=TrainConfig(dense_samples=1),
    )
    per_row: dict[float, list[float]] = {size: [] for size in millions}
    peaks: dict[float, list[int]] = {size: [] for size in millions}
    for _ in range(repeats):
        for size, count in zip(millions, counts, strict=True):
            seconds, memory = assign_seconds(config, work_units[:count])
            per_row[size].append(seconds / (count * ROWS_PER_SHARD))
            peaks[size].append(memory.bytes)
            print(
                f"{count * ROWS_PER_SHARD:12,} rows {seconds:8.1f} s {1e6 * per_row[size][-1]:7.2f} us/row, "
                f"peak {memory.bytes / 1e6:,.0f} MB ({memory.process})"
            )
    small, large = millions[0], millions[-1]
    results = {
        "time_per_row_16m_over_1m": statistics.median(
            big / little for big, little in zip(per_row[large], per_row[small], strict=True)
        ),
        "peak_memory_16m_over_1m": statistics.median(peaks[large]) / statistics.median(peaks[small]),
    }
    details: dict[str, object] = {
        "microseconds_per_row": {
            f"{size:g}m": [round(1e6 * value, 3) for value in per_row[size]] for size in millions
        },
        "peak_unique_bytes": {f"{size:g}m": peaks[size] for size in millions},
        "embedding_bytes": disk,
    }
    return results, details


def all_captions_seconds(folder: Path) -> tuple[float, int]:
    """Embed, cluster and assign all captions by the command line; seconds and captions."""
    captions = real_captions()
    source = folder / "captions"
    source.mkdir()
    for number, start in enumerate(range(0, len(captions), 25_000)):
        pq.write_table(pa.table({"caption": captions[start : start + 25_000]}), source / f"{number:03d}.parquet")
    pool = {"min_actors": CORES, "max_actors": CORES}
    config = {
        "run": str(folder / "all"),
        "captions": {"paths": [str(source)]},
        "encoder": {"kind": "static", "model": STATIC_TABLE},
        "embed": {"pool": pool},
        "assign": {"pool": pool},
        "cluster": {
            "sample_rows": 480 * CENTERS,
            "fine": {"centers": CENTERS},
            "coarse": {"experts": [8]},
            "placement": {"threads": CORES},
        },
        "train": {"experts": 8, "dense_samples": 1},
        "ray": {"dashboard": False},
    }
    (folder / "all.yaml").write_text(yaml.safe_dump(config))
    command = [str(Path(sys.executable).with_name("mode-ray")), "run", "--until", "assign"]
    began = time.perf_counter()
    subprocess.run([*command, "--config", str(folder / "all.yaml")], check=True)
    return time.perf_counter() - began, len(captions)


def main() -> None:
    """Measure and print."""
    options = arguments(__doc__ or "").parse_args()
    millions = (0.2, 0.4) if options.quick else (1.0, 4.0, 16.0)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        results, details = measure_sizes(millions, options.repeats or (1 if options.quick else 3), folder)
        shutil.rmtree(folder / "embeddings")
        if not options.quick:
            seconds, captions = all_captions_seconds(folder)
            print(f"{captions:,} captions embedded, clustered and assigned in {seconds:.1f} s")
            results["captions_719k_seconds"] = seconds
            details |= {"captions": captions, "from": str(CAPTIONS)}
    finish("scale", results, {"cores": CORES, "millions": millions, **details})


if __name__ == "__main__":
    main()
