"""The arithmetic of each stage: rates, rows and machines to hours, bytes and cost."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mode_ray.config.run import ActorPool, RunConfig
from mode_ray.config.train import TrainConfig
from mode_ray.errors import UsageError
from mode_ray.plan.rates import ActorRates, Rates, StepRate

_SECONDS_PER_HOUR = 3600.0
# A sampled row of d values: float16, its projection to 0.46 to 0.66 d axes as float32 and one more value, its center
# and distance; balancing keeps some candidates more.
_SAMPLE_VALUE_BYTES = 2
_PROJECTED_SHARE, _PROJECTED_VALUE_BYTES = 0.65, 4
_NEAREST_BYTES = 8
# As in `cluster.sample_rows` and `cluster.seeding`, which need torch; this module runs in drivers.
CANDIDATES_PER_ROW, _CANDIDATE_BYTES = 16, 8
SEEDING_ROWS_PER_CENTER = 16
_READERS_PER_WORKER = 4
_UNIT_RECORD_BYTES = 400
# The page of real captions has 96 kB at m = 64, 143 kB at 128, 980 kB at 1,024; its summary has 0.9 kB a center.
_ATLAS_PAGE_BYTES = 50_000
_ATLAS_CENTER_BYTES = 800 + 900


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """What is to be processed.

    Attributes:
        rows: Captions, those that will be refused included.
        units: Work units.
        counts_by_reading: Whether counting the rows of a unit means reading all of it (all formats but parquet).
        found: In words, where these numbers come from.
    """

    rows: float
    units: int
    counts_by_reading: bool
    found: str


@dataclass(frozen=True, kw_only=True)
class ClusterShape:
    """The machines to plan for.

    Attributes:
        machines: Number of machines; 0 where only the GPUs are known.
        cores: Cores of each.
        gpus: GPUs of all machines together.
        capped: Whether the config's `max_actors` bounds the actors; else as many as there is room for.
    """

    machines: int
    cores: int
    gpus: float
    capped: bool


@dataclass(frozen=True, kw_only=True)
class Prices:
    """Prices in any one currency.

    Attributes:
        cpu_hour: One core for an hour.
        gpu_hour: One GPU, with the cores it comes with, for an hour.
        storage_month: A gigabyte (1e9 bytes) for a month.
    """

    cpu_hour: float = 0.0
    gpu_hour: float = 0.0
    storage_month: float = 0.0


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """One stage.

    Attributes:
        stage: Its name.
        actors: Actors (training: workers) that work at the same time.
        core_hours: Cores reserved by them, times hours.
        gpu_hours: GPUs reserved by them, times hours.
        wall_hours: From begin to end.
        read_bytes: Read in the run directory (the sources come on top).
        written_bytes: Written in the run directory.
        cost: What the machines cost meanwhile.
    """

    stage: str
    actors: int
    core_hours: float
    gpu_hours: float
    wall_hours: float
    read_bytes: float
    written_bytes: float
    cost: float


def lane_seconds(lanes: Sequence[Sequence[StepRate]], cores: float) -> float:
    """Seconds a row and actor: reading, computing and writing overlap until the actor's cores are used up.

    Args:
        lanes: The steps of each thread; a thread's steps follow one another.
        cores: Cores that the actor has.
    """
    walls = [sum(step.wall_seconds for step in lane) for lane in lanes]
    processor = sum(step.cpu_seconds for lane in lanes for step in lane)
    return max(*walls, processor / cores)


def kmeans_seconds(rates: Rates, rows: float, centers: int, iterations: int, workers: int = 1) -> float:
    """Seconds of fitting the fine centers and the coarse maps on `rows` sampled rows; see `KMeansRates`.

    The rows are dealt to `workers`; seeding and the coarse maps are work of one process.
    """
    kmeans = rates.kmeans
    at_most = SEEDING_ROWS_PER_CENTER * centers
    seeding = kmeans.seeding_seconds * min(rows, at_most) / min(kmeans.seeding_rows, at_most)
    passes = kmeans.row_seconds + iterations * kmeans.row_iteration_seconds
    return seeding + rows / workers * passes + kmeans.coarse_seconds


def training_samples(config: TrainConfig) -> float:
    """Samples that all training runs see together, as `train.budget` deals them out."""
    has_seed = config.model.pretrained is None and config.seed_share > 0.0
    first = config.seed_share if has_seed else 0.0
    rest = config.dense_samples * (1.0 - first)
    experts = rest if config.expert_budget == "shared" else rest * config.experts
    seed = config.dense_samples * first
    control = {"dense": config.dense_samples, "dense_equal_total": seed + experts, "full": experts, "random": experts}
    return seed + experts + sum(control[name] for name in config.controls)


class StageArithmetic:
    """The stages of a run, one at a time.

    Args:
        config: The run's config.
        rates: Rates that fit it.
        inventory: Rows and units.
        shape: The machines.
        prices: What they cost.
        efficiency: Share of the measured speed that the actors of a whole cluster reach on average.
    """

    def __init__(
        self,
        config: RunConfig,
        rates: Rates,
        inventory: Inventory,
        shape: ClusterShape,
        prices: Prices,
        efficiency: float,
    ) -> None:
        self._config, self._rates, self._inventory, self._shape = config, rates, inventory, shape
        self._prices, self._efficiency = prices, efficiency
        self._usable = inventory.rows * (1.0 - rates.captions.refused_share)
        self._keeps_all = config.embed.keep == "all"
        sample = 0.0 if config.cluster.standing is not None else float(config.cluster.sample_rows)
        # Without all embeddings the sample is drawn with the refused captions, and is the smaller by their share.
        whole = self._usable if self._keeps_all else inventory.rows
        self.sample_rows = min(whole, sample) * (self._usable / whole)
        """Rows the fine centers are fitted on; none with a standing clustering."""

    def embed(self) -> StagePlan:
        """Read and encode; with `embed.keep: sample` only the sample is encoded and written."""
        actor, rows = self._rates.embed, self._inventory.rows
        encoded = self._usable if self._keeps_all else self.sample_rows
        if encoded == 0.0:
            return self._idle("embed", self._rates.fixed.embed_seconds)
        passes = 2 if not self._keeps_all and self._inventory.counts_by_reading else 1
        written = encoded * self._rates.embedding_bytes
        return self._work_unit_stage(
            "embed",
            self._config.embed.pool,
            actor,
            [
                [_scaled(actor.read_captions, passes)],
                [_scaled(actor.encode, encoded / rows)],
                [_scaled(actor.write_embeddings, encoded / rows)],
            ],
            fixed_seconds=self._rates.fixed.embed_seconds,
            read_bytes=0.0,
            written_bytes=written + self._records_bytes(),
        )

    def assign(self) -> StagePlan:
        """Find the nearest centers of stored embeddings, or read, encode and assign in one pass."""
        actor, share = self._rates.assign, self._usable / self._inventory.rows
        if self._keeps_all:
            reading, computing = _scaled(actor.read_embeddings, share), [actor.search]
        else:
            reading, computing = actor.read_captions, [actor.encode, actor.search]
        return self._work_unit_stage(
            "assign",
            self._config.assign.pool,
            actor,
            [
                [reading],
                [_scaled(step, share) for step in computing],
                [_scaled(actor.write_assignments, share)],
            ],
            fixed_seconds=self._rates.fixed.assign_seconds,
            read_bytes=self._usable * self._rates.embedding_bytes if self._keeps_all else 0.0,
            written_bytes=self._usable * self._rates.assignment_bytes + self._records_bytes(),
        )

    def cluster(self) -> StagePlan:
        """Read the sample and fit, in one task or with the sample dealt to actors.

        Raises:
            UsageError: The machines have no room for them.
        """
        fixed, placement = self._rates.fixed.cluster_seconds, self._config.cluster.placement
        fine, workers = self._config.cluster.fine, placement.workers
        if self.sample_rows == 0.0:
            return self._idle("cluster", fixed)
        there = self._shape.machines * self._shape.cores
        asked = placement.cpus * (workers + 1 if workers > 1 else 1)
        if there and asked > there:
            raise UsageError(
                f"cluster.placement.workers={workers}: no room for {asked:g} CPUs (cluster.placement.cpus each) on "
                f"{self._shape.machines} x {self._shape.cores} cores"
            )
        # A parquet column is read whole: with all embeddings kept, a sample over all units reads all of them.
        read_rows = self._usable if self._keeps_all else self.sample_rows
        cores = there or self._rates.machine.cores * workers
        readers = min(workers * _READERS_PER_WORKER, cores, self._inventory.units)
        read_seconds = read_rows * self._rates.embed.read_embeddings.wall_seconds / readers
        seconds = kmeans_seconds(self._rates, self.sample_rows, fine.centers, fine.iterations, workers)
        wall = (fixed + (read_seconds + seconds) / self._efficiency) / _SECONDS_PER_HOUR
        reserved = workers * max(placement.cpus, placement.threads) + (placement.cpus if workers > 1 else 0.0)
        return StagePlan(
            stage="cluster",
            actors=workers,
            core_hours=reserved * wall,
            gpu_hours=0.0,
            wall_hours=wall,
            read_bytes=read_rows * self._rates.embedding_bytes,
            written_bytes=self._artefact_bytes(),
            cost=self._cost(wall, on_gpu=False, reserved_cores=reserved),
        )

    def train(self, samples_per_second: float) -> StagePlan:
        """All training runs at the speed of one worker, none of them waiting."""
        train, placement = self._config.train, self._config.train.placement
        per_run = max(1, placement.workers_per_run)
        workers = per_run * placement.concurrent_runs
        if placement.use_gpu and not self._shape.capped and self._shape.gpus:
            workers = max(per_run, int(self._shape.gpus) // per_run * per_run)
        worker_hours = training_samples(train) / samples_per_second / self._efficiency / _SECONDS_PER_HOUR
        wall = worker_hours / workers
        cores = workers * placement.cpus_per_worker
        return StagePlan(
            stage="train",
            actors=workers,
            core_hours=cores * wall,
            gpu_hours=worker_hours if placement.use_gpu else 0.0,
            wall_hours=wall,
            read_bytes=self._usable * self._rates.assignment_bytes,
            written_bytes=0.0,
            cost=self._cost(wall, on_gpu=placement.use_gpu, reserved_cores=cores, reserved_gpus=workers),
        )

    def clustering_memory_bytes(self) -> float:
        """What each process that holds rows of the sample needs for them."""
        d, cluster = self._rates.dimension, self._config.cluster
        row = _SAMPLE_VALUE_BYTES * d + _PROJECTED_VALUE_BYTES * (_PROJECTED_SHARE * d + 1) + _NEAREST_BYTES
        if cluster.fine.balanced:
            row += CANDIDATES_PER_ROW * _CANDIDATE_BYTES
        return self.sample_rows / cluster.placement.workers * row

    def _work_unit_stage(
        self,
        name: str,
        pool: ActorPool,
        rates: ActorRates,
        lanes: Sequence[Sequence[StepRate]],
        *,
        fixed_seconds: float,
        read_bytes: float,
        written_bytes: float,
    ) -> StagePlan:
        on_gpu = self._uses_gpu(name, pool, rates)
        gpus_per_actor = (pool.gpus_per_actor or 1.0) if on_gpu else 0.0
        actors, cores = self._actors(name, pool, gpus_per_actor)
        row_seconds = lane_seconds(lanes, cores)
        unit_seconds = row_seconds * self._inventory.rows / self._inventory.units + self._rates.fixed.unit_seconds
        rounds = math.ceil(self._inventory.units / actors)
        wall = (fixed_seconds + rounds * unit_seconds / self._efficiency) / _SECONDS_PER_HOUR
        reserved = actors * pool.cpus_per_actor
        return StagePlan(
            stage=name,
            actors=actors,
            core_hours=reserved * wall,
            gpu_hours=actors * gpus_per_actor * wall,
            wall_hours=wall,
            read_bytes=read_bytes,
            written_bytes=written_bytes,
            cost=self._cost(wall, on_gpu=on_gpu, reserved_cores=reserved, reserved_gpus=actors * gpus_per_actor),
        )

    def _uses_gpu(self, name: str, pool: ActorPool, rates: ActorRates) -> bool:
        encodes = name == "embed" or not self._keeps_all
        asked = encodes and (pool.gpus_per_actor > 0.0 or (self._shape.gpus > 0.0 and not self._shape.capped))
        if asked and rates.device != "cuda":
            raise UsageError(
                f"GPUs are asked for in {name}, but its rates were measured on {rates.device}: calibrate on a GPU "
                f"machine, or plan without --gpus and with {name}.pool.gpus_per_actor=0"
            )
        return asked

    def _actors(self, name: str, pool: ActorPool, gpus_per_actor: float) -> tuple[int, float]:
        """Actors that work at the same time, and the cores that each of them has."""
        shape = self._shape
        room = math.inf
        if shape.machines:
            a_machine = int(shape.cores / pool.cpus_per_actor)
            if a_machine == 0:
                raise UsageError(
                    f"{name}.pool.cpus_per_actor={pool.cpus_per_actor:g}: no room for an actor on a machine of "
                    f"{shape.cores} cores"
                )
            room = shape.machines * a_machine
        if gpus_per_actor:
            room = min(room, int(shape.gpus / gpus_per_actor))
            if room == 0:
                raise UsageError(
                    f"{name}.pool.gpus_per_actor={gpus_per_actor:g}: no room for an actor on {shape.gpus:g} GPUs"
                )
        if shape.capped or room == math.inf:
            room = min(room, pool.max_actors)
        actors = min(int(room), self._inventory.units)
        a_machine = math.ceil(actors / shape.machines) if shape.machines else 0
        return actors, shape.cores / a_machine if a_machine else pool.cpus_per_actor

    def _cost(self, wall_hours: float, *, on_gpu: bool, reserved_cores: float, reserved_gpus: float = 0.0) -> float:
        shape, prices = self._shape, self._prices
        cores = float(shape.machines * shape.cores) or (0.0 if on_gpu else reserved_cores)
        gpus = (shape.gpus or reserved_gpus) if on_gpu else 0.0
        return wall_hours * (cores * prices.cpu_hour + gpus * prices.gpu_hour)

    def _idle(self, stage: str, fixed_seconds: float) -> StagePlan:
        wall = fixed_seconds / _SECONDS_PER_HOUR
        return StagePlan(
            stage=stage,
            actors=0,
            core_hours=0.0,
            gpu_hours=0.0,
            wall_hours=wall,
            read_bytes=0.0,
            written_bytes=0.0,
            cost=self._cost(wall, on_gpu=False, reserved_cores=0.0),
        )

    def _records_bytes(self) -> float:
        return float(self._inventory.units * _UNIT_RECORD_BYTES)

    def _artefact_bytes(self) -> float:
        cluster = self._config.cluster
        # Per center: float32 vector, price, mass and squared distance of 8 bytes, one int32 a coarse map.
        center = 4 * self._rates.dimension + 24 + 4 * len(cluster.coarse.experts) + _ATLAS_CENTER_BYTES
        return float(cluster.fine.centers * center + _ATLAS_PAGE_BYTES)


def _scaled(step: StepRate, share: float) -> StepRate:
    """The step's rate for a source row of which only a share takes it (or that takes it several times)."""
    return StepRate(wall_seconds=step.wall_seconds * share, cpu_seconds=step.cpu_seconds * share)
