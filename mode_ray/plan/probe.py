"""The steps of embed and assign, timed one by one in the process of an actor, and the clustering's fit."""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import count, cycle

import numpy as np
import pyarrow as pa

from mode_ray.assign.stage import center_search
from mode_ray.captions.clean import CaptionTable
from mode_ray.captions.read import read_captions
from mode_ray.config.run import ClusterConfig, FineConfig, RunConfig
from mode_ray.embed.encoder import CaptionEncoder, load_encoder
from mode_ray.embed.table import EMBEDDING, as_stored, embedding_column, embedding_vectors, place_columns, split_usable
from mode_ray.errors import DataError
from mode_ray.plan.rates import KMeansRates, StepRate
from mode_ray.stages.manifest import UnitRecord, write_unit
from mode_ray.stages.work_unit import WorkUnit
from mode_ray.storage import Location

MAX_CAPTIONS = {"huggingface": 2_000, "static": 100_000}
_MAX_UNIT_ROWS = 50_000
_SEARCH_ROWS = 32_768
_WARM_UP_ROWS = 64
_NOISE = 0.1
_ITERATIONS = 3


class StepTimer:
    """Sums up the wall and processor time of the blocks that work on rows."""

    def __init__(self) -> None:
        self._rows = 0
        self._wall_seconds = self._cpu_seconds = 0.0

    def run(self, step: Callable[[], int]) -> None:
        """Time one call of a step, which returns the rows it worked on."""
        cpu_before, began = time.process_time(), time.perf_counter()
        self._rows += step()
        self._wall_seconds += time.perf_counter() - began
        self._cpu_seconds += time.process_time() - cpu_before

    @property
    def wall_seconds(self) -> float:
        """Total so far."""
        return self._wall_seconds

    @property
    def rate(self) -> StepRate:
        """Seconds a row."""
        rows = max(1, self._rows)
        return StepRate(wall_seconds=self._wall_seconds / rows, cpu_seconds=self._cpu_seconds / rows)


def time_rows(step: Callable[[], int], seconds: float) -> StepRate:
    """Repeat a step, which returns the rows it worked on, until `seconds` are over."""
    timer = StepTimer()
    while timer.wall_seconds < seconds:
        timer.run(step)
    return timer.rate


def jittered(vectors_bd: np.ndarray, rows: int, generator: np.random.Generator) -> np.ndarray:
    """As many unit vectors as wanted, like the given ones but distinct: float32 [rows, d]."""
    d = vectors_bd.shape[1]
    noise_nd = generator.standard_normal((rows, d), np.float32) * np.float32(_NOISE / np.sqrt(d))
    noise_nd += vectors_bd[generator.integers(len(vectors_bd), size=rows)]
    noise_nd /= np.linalg.norm(noise_nd, axis=1, keepdims=True)
    return noise_nd


class Probe:
    """One actor of a pool under calibration. Its steps are called in the order of the methods.

    Args:
        config: The run's config.
        threads: CPU threads, as the pool's actors have.
        work_units: Where captions are read from, over and over; at least one.
        scratch: Directory for what it writes, on the storage of the run.
        seconds: Least time of each step.
        seed: Of the choice of captions; another one for every probe.
    """

    def __init__(
        self,
        config: RunConfig,
        threads: int,
        work_units: Sequence[WorkUnit],
        scratch: Location,
        seconds: float,
        seed: int,
    ) -> None:
        self._config, self._threads, self._seconds, self._scratch = config, threads, seconds, scratch
        self._generator = np.random.default_rng(seed)
        self._work_units = [work_units[index] for index in self._generator.permutation(len(work_units))]
        self._units: list[CaptionTable] = []
        self._vectors_bd = np.empty((0, 0), np.float32)

    @cached_property
    def _encoder(self) -> CaptionEncoder:
        return load_encoder(self._config.encoder, self._config.embed.encoder, self._threads)

    def load(self) -> tuple[int, str]:
        """Load the encoder: its dimension, and the device it runs on."""
        if self._config.encoder.kind == "static":
            return self._encoder.dimension, "cpu"
        from mode_ray.embed.encoder import pick_device

        return self._encoder.dimension, pick_device(self._config.embed.encoder.device).type

    def read(self) -> tuple[StepRate, float]:
        """Read and clean captions; seconds a row of the source, and the share of refused ones.

        Raises:
            DataError: There is no usable caption.
        """
        work_units = cycle(self._work_units)
        rows_in = rows_out = 0

        def step() -> int:
            nonlocal rows_in, rows_out
            unit = read_captions(next(work_units), self._config.captions)
            rows_in, rows_out = rows_in + unit.rows_in, rows_out + unit.table.num_rows
            if len(self._units) < len(self._work_units) and self._known_captions < self._wanted_captions:
                self._units.append(unit)
            return unit.rows_in

        rate = time_rows(step, self._seconds)
        if rows_out == 0:
            raise DataError(f"{self._work_units[0].uri}: calibration found no usable caption in the shards it read")
        return rate, 1.0 - rows_out / rows_in

    def encode(self) -> tuple[StepRate, int, float]:
        """Encode captions; seconds a row, how many different ones, and their mean length in bytes."""
        captions = self._sample()
        mean_bytes = float(np.mean([len(caption.encode()) for caption in captions]))
        began = time.perf_counter()
        self._encoder.encode(captions[:_WARM_UP_ROWS])
        a_row = (time.perf_counter() - began) / min(_WARM_UP_ROWS, len(captions))
        # Slow encoders take as many as the time allows, but whole batches as in production.
        at_once = max(int(self._seconds / a_row), self._config.embed.encoder.batch_size)
        parts = _pieces(captions, at_once)
        encoded: list[np.ndarray] = []

        def step() -> int:
            table = pa.table({"caption": next(parts)})
            vectors_bd = self._encoder.encode(table["caption"].to_pylist())
            rows = CaptionTable(pa.table({"row": np.arange(len(vectors_bd))}), len(vectors_bd), {}, {})
            encoded.append(split_usable(rows, vectors_bd)[1])
            return len(vectors_bd)

        rate = time_rows(step, self._seconds)
        self._vectors_bd = np.concatenate(encoded)[: len(captions)]
        if not len(self._vectors_bd):
            raise DataError("calibration: the encoder gave no usable embedding for any of the captions it read")
        return rate, len(captions), mean_bytes

    def write_embeddings(self) -> tuple[StepRate, float]:
        """Write embedding shards; seconds and bytes a row."""
        unit = self._unit()
        vectors_bd = jittered(self._vectors_bd, unit.num_rows, self._generator)
        return self._write(lambda: pa.table({**place_columns(unit), EMBEDDING: embedding_column(vectors_bd)}))

    def read_embeddings(self) -> StepRate:
        """Read an embedding shard."""

        def step() -> int:
            return len(embedding_vectors((self._scratch / "unit.parquet").read_table()))

        return time_rows(step, self._seconds)

    def search(self, centers: int) -> StepRate:
        """Find the nearest of so many centers, as assign does where its actors run."""
        centers_md = jittered(self._vectors_bd, centers, self._generator)
        # Any prices make the search as long as the fitted ones would.
        prices_m = np.linspace(0.0, 0.01, centers) if self._config.assign.rule == "priced" else None
        nearest = center_search(centers_md, prices_m, self._threads, gpu=self._searches_on_gpu)
        vectors_bd = as_stored(jittered(self._vectors_bd, _SEARCH_ROWS, self._generator))
        nearest.search(vectors_bd[:_WARM_UP_ROWS])
        return time_rows(lambda: len(nearest.search(vectors_bd)[0]), self._seconds)

    def write_assignments(self, centers: int) -> tuple[StepRate, float]:
        """Write assignment shards; seconds and bytes a row."""
        unit = self._unit()
        fine_b = self._generator.integers(centers, size=unit.num_rows).astype(np.int32)
        distance_b = self._generator.random(unit.num_rows, np.float32)
        return self._write(
            lambda: pa.table({**place_columns(unit), "fine": pa.array(fine_b), "distance": pa.array(distance_b)})
        )

    def texts(self, rows: int) -> list[str]:
        """Some of the captions that were read."""
        return self._sample()[:rows]

    def vectors(self, rows: int) -> np.ndarray:
        """Vectors like the embeddings, float32 [rows, d]."""
        return jittered(self._vectors_bd, rows, self._generator)

    @property
    def _searches_on_gpu(self) -> bool:
        import torch

        return self._config.assign.pool.gpus_per_actor > 0.0 and torch.cuda.is_available()

    @property
    def _wanted_captions(self) -> int:
        return 4 * MAX_CAPTIONS[self._config.encoder.kind]

    @property
    def _known_captions(self) -> int:
        return sum(unit.table.num_rows for unit in self._units)

    def _sample(self) -> list[str]:
        """A bounded uniform sample of the captions that were read."""
        captions = pa.concat_arrays([chunk for unit in self._units for chunk in unit.table["caption"].chunks])
        rows = min(len(captions), MAX_CAPTIONS[self._config.encoder.kind])
        chosen = self._generator.choice(len(captions), size=rows, replace=False)
        texts: list[str] = captions.take(pa.array(chosen)).to_pylist()
        return texts

    def _unit(self) -> pa.Table:
        """A source unit's usable rows, as a stage gets them; the largest that was read, within bounds."""
        largest = max(self._units, key=lambda unit: unit.table.num_rows)
        return largest.table.slice(0, _MAX_UNIT_ROWS)

    def _write(self, make: Callable[[], pa.Table]) -> tuple[StepRate, float]:
        output = self._scratch / "unit.parquet"
        record = UnitRecord(unit="unit", source="calibration")
        written: list[float] = []

        def step() -> int:
            table = make()
            written.append(write_unit(output, table, record).bytes_out / table.num_rows)
            return int(table.num_rows)

        return time_rows(step, self._seconds), written[-1]


def time_kmeans(vectors_nd: np.ndarray, cluster: ClusterConfig, threads: int) -> KMeansRates:
    """Split the time of `fit_fine` into its parts by fits with more and fewer iterations, and time the coarse maps.

    Args:
        vectors_nd: Distinct unit vectors, float32 [n, d].
        cluster: m, balancing, n of the coarse maps.
        threads: CPU threads.

    Raises:
        DataError: Fewer vectors than centers.
    """
    from mode_ray.cluster.coarse import group_centers
    from mode_ray.cluster.fit.kmeans import fit_fine

    rows = len(vectors_nd)

    def fit(fine: FineConfig, iterations: int) -> float:
        began = time.perf_counter()
        fit_fine(
            vectors_nd, fine.model_copy(update={"iterations": iterations, "tolerance": 0.0}), cluster.seed, threads
        )
        return time.perf_counter() - began

    # The first call loads the compiled search, or compiles it.
    fit_fine(vectors_nd[:_WARM_UP_ROWS], cluster.fine.model_copy(update={"centers": 1, "iterations": 1}), 0, threads)
    random = cluster.fine.model_copy(update={"init": "random"})
    one, several = fit(random, 1), fit(random, 1 + _ITERATIONS)
    iteration_seconds = max((several - one) / _ITERATIONS, one / 1000)
    seeded = one if cluster.fine.init == "random" else fit(cluster.fine, 1)
    generator = np.random.default_rng(cluster.seed)
    began = time.perf_counter()
    centers_md, mass_m = vectors_nd[: cluster.fine.centers], generator.integers(500, 1500, cluster.fine.centers)
    for n in cluster.coarse.experts:
        group_centers(centers_md, mass_m, n, cluster.coarse, cluster.seed)
    return KMeansRates(
        rows=rows,
        row_iteration_seconds=iteration_seconds / rows,
        row_seconds=max(0.0, one - iteration_seconds) / rows,
        seeding_seconds=max(0.0, seeded - one),
        seeding_rows=rows,
        coarse_seconds=time.perf_counter() - began,
    )


def _pieces(captions: Sequence[str], at_once: int) -> Iterator[list[str]]:
    """Slices of `at_once` captions, over and over."""
    for start in count(0, at_once):
        begin = start % len(captions)
        yield list(captions[begin : begin + at_once])
