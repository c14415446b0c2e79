"""The time, bytes and cost of each stage, computed from rates, rows and machines.

Every stage is one function of a `Basis` and the rates of the stage. All rates come from the records of a run.
"""

import math
from dataclasses import dataclass

from mode_ray.cluster.fit_size import sample_row_bytes, seeding_rows_at_most
from mode_ray.config.base import ActorPool
from mode_ray.config.run import RunConfig
from mode_ray.errors import UsageError
from mode_ray.plan.machines import ClusterShape, Prices, Reserved, StagePlan, room_for, stage_plan
from mode_ray.plan.rates import ClusterRates, EvaluateRates, Rates, ShardRates
from mode_ray.plan.training import evaluated_models, training_runs, training_samples


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """The input of a run.

    Attributes:
        rows: Number of captions, including those that will be refused.
        units: Number of work units.
        counts_by_reading: Whether counting the rows of a unit needs reading all of it (all formats but parquet).
        found: Description of where these numbers come from.
    """

    rows: float
    units: int
    counts_by_reading: bool
    found: str


@dataclass(frozen=True, kw_only=True)
class Basis:
    """The inputs of every stage's plan.

    Attributes:
        config: The config of the planned run.
        rates: Rates that are valid for it.
        inventory: Rows and units.
        shape: The machines.
        prices: Prices of the machines.
        efficiency: Share of the measured speed that the actors of a cluster reach on average.
    """

    config: RunConfig
    rates: Rates
    inventory: Inventory
    shape: ClusterShape
    prices: Prices
    efficiency: float

    @property
    def usable_rows(self) -> float:
        """Captions that are not refused."""
        return self.inventory.rows * (1.0 - self.rates.refused_share)

    @property
    def keeps_all(self) -> bool:
        """Whether every embedding is stored."""
        return self.config.embed.keep == "all"

    @property
    def sample_rows(self) -> float:
        """Rows that the fine centers are fitted on; 0 if the clustering of another run is reused.

        With `embed.keep: sample`, the sample is drawn from all captions, and its refused captions are lost.
        """
        if self.config.reuses_clustering:
            return 0.0
        drawn_from = self.usable_rows if self.keeps_all else self.inventory.rows
        return min(drawn_from, float(self.config.cluster.sample_rows)) * (self.usable_rows / drawn_from)

    @property
    def machines(self) -> tuple[ClusterShape, Prices]:
        """Shape and prices together."""
        return self.shape, self.prices


def pools(config: RunConfig) -> dict[str, ActorPool]:
    """The actor pools by stage."""
    return {"embed": config.embed.pool, "assign": config.assign.pool, "features": config.features.pool}


def row_seconds(rates: ShardRates, kept_share: float, readings: int = 1) -> float:
    """Seconds of an actor per row if a share of the rows is embedded or assigned.

    With t seconds per row, r of them for reading, and the share k of rows kept in the measured run:
    readings x r + (t - r) x kept_share / k. This is exact if reading and computing alternate. If they overlap, it is
    too high by at most the smaller of the two.
    """
    computing = (rates.row_seconds - rates.read_row_seconds) / rates.kept_share if rates.kept_share else 0.0
    return readings * rates.read_row_seconds + computing * kept_share


def pool_seconds(fixed_seconds: float, units: int, actors: int, unit_seconds: float) -> float:
    """Wall time of a pool: fixed + ceil(units / actors) x seconds per unit."""
    return fixed_seconds + math.ceil(units / actors) * unit_seconds


def fit_seconds(rates: ClusterRates, rows: float, centers: int, iterations: int, workers: int = 1) -> float:
    """Time of the fine centers and the coarse maps.

    seeding x min(rows, most) / measured rows + rows / workers x (once + iterations x iteration) + coarse maps.
    The rows are distributed over the workers. One process does the seeding (on at most
    `cluster.fit_size.seeding_rows_at_most` rows) and the coarse maps.
    """
    seeding = rates.seeding_seconds * min(rows, seeding_rows_at_most(centers)) / rates.seeding_rows
    passes = rates.row_seconds + iterations * rates.row_iteration_seconds
    return seeding + rows / workers * passes + rates.coarse_seconds


def embed_stage(basis: Basis, rates: ShardRates) -> StagePlan:
    """Reading and embedding. With `embed.keep: sample`, only the sample is embedded and written.

    Captions in formats without a row count are read twice, because the sample is drawn from the counted rows.
    """
    kept_rows = basis.usable_rows if basis.keeps_all else basis.sample_rows
    if kept_rows == 0.0:  # a clustering is reused, and no embedding is kept
        return _without_work(basis, "embed", 0.0)
    readings = 2 if not basis.keeps_all and basis.inventory.counts_by_reading else 1
    rows = basis.inventory.rows
    seconds = rows * row_seconds(rates, kept_rows / rows, readings)
    return _pool_stage(basis, "embed", rates, seconds, (0.0, kept_rows * rates.row_bytes))


def assign_stage(basis: Basis, rates: ShardRates) -> StagePlan:
    """Assigning stored embeddings, or reading, embedding and assigning in one pass."""
    rows = basis.usable_rows if basis.keeps_all else basis.inventory.rows
    seconds = rows * row_seconds(rates, basis.usable_rows / rows)
    stored_bytes = basis.rates.embed.row_bytes if basis.keeps_all and basis.rates.embed else 0.0
    transfer = (rows * stored_bytes, basis.usable_rows * rates.row_bytes)
    return _pool_stage(basis, "assign", rates, seconds, transfer)


def features_stage(basis: Basis, rates: ShardRates) -> StagePlan:
    """Reading all pairs, their images too, and running the locked trunks. Bytes of images are not counted."""
    seconds = basis.inventory.rows * row_seconds(rates, rates.kept_share)
    return _pool_stage(basis, "features", rates, seconds, (0.0, basis.usable_rows * rates.row_bytes))


def cluster_stage(basis: Basis, rates: ClusterRates | None) -> StagePlan:
    """Reading the sample and fitting, in one task or on several actors; `rates` is None if nothing is fitted.

    A parquet column is read whole, so if all embeddings are stored, drawing a sample reads all of them.

    Raises:
        UsageError: The actors do not fit on the machines.
    """
    placement, fine = basis.config.cluster.placement, basis.config.cluster.fine
    if rates is None or basis.sample_rows == 0.0:
        return _without_work(basis, "cluster", rates.fixed_seconds if rates else 0.0)
    workers, available = placement.workers, basis.shape.machines * basis.shape.cores
    coordinator_cpus = placement.cpus if workers > 1 else 0.0
    asked = placement.cpus * workers + coordinator_cpus
    if available and asked > available:
        raise UsageError(
            f"cluster.placement.workers={workers}: no room for {asked:g} CPUs (cluster.placement.cpus each) on "
            f"{basis.shape.machines} x {basis.shape.cores} cores"
        )
    read_rows = basis.usable_rows if basis.keeps_all else basis.sample_rows
    seconds = read_rows * rates.read_row_seconds / workers
    seconds += fit_seconds(rates, basis.sample_rows, fine.centers, fine.iterations, workers)
    reserved_cpus = max(placement.cpus, placement.threads) + coordinator_cpus / workers
    return stage_plan(
        "cluster",
        rates.fixed_seconds + seconds / basis.efficiency,
        Reserved(actors=workers, cpus=reserved_cpus),
        basis.machines,
        read_bytes=read_rows * (basis.rates.embed.row_bytes if basis.rates.embed else 0.0),
        written_bytes=rates.written_bytes,
    )


def train_stage(basis: Basis, samples_per_second: float, launch_seconds: float = 0.0) -> StagePlan:
    """All training runs, if no worker ever waits.

    (samples of all runs / samples per second and worker + runs x workers of a run x seconds of a launch) / workers
    """
    train, placement = basis.config.train, basis.config.train.placement
    per_run, gpus = max(1, placement.workers_per_run), placement.gpus_per_worker if placement.use_gpu else 0.0
    workers = per_run * placement.concurrent_runs
    if gpus and not basis.shape.capped and basis.shape.gpus:
        workers = max(per_run, int(basis.shape.gpus / gpus) // per_run * per_run)
    worker_seconds = training_samples(train) / samples_per_second / basis.efficiency
    worker_seconds += training_runs(train) * per_run * launch_seconds
    reserved = Reserved(actors=workers, cpus=placement.cpus_per_worker, gpus=gpus)
    rows_bytes = basis.usable_rows * (basis.rates.assign.row_bytes if basis.rates.assign else 0.0)
    return stage_plan("train", worker_seconds / workers, reserved, basis.machines, read_bytes=rows_bytes)


def evaluate_stage(basis: Basis, rates: EvaluateRates) -> StagePlan:
    """The measured evaluation scaled to the tasks and models: seconds x tasks / measured x models / measured."""
    evaluate, placement = basis.config.evaluate, basis.config.evaluate.placement
    scale = len(evaluate.tasks) / rates.tasks * evaluated_models(basis.config.train) / rates.models
    room = room_for(basis.shape, placement.cpus_per_task, placement.gpus_per_task, "evaluate.placement")
    actors = int(min(room, len(evaluate.tasks) * placement.workers_per_task))
    reserved = Reserved(actors=actors, cpus=placement.cpus_per_task, gpus=placement.gpus_per_task)
    seconds = rates.seconds * scale / basis.efficiency
    return stage_plan("evaluate", seconds, reserved, basis.machines, written_bytes=rates.written_bytes * scale)


def clustering_memory_bytes(basis: Basis) -> float:
    """Memory for sample rows in each process of the clustering."""
    cluster = basis.config.cluster
    row_bytes = sample_row_bytes(basis.rates.dimension, balanced=cluster.fine.balanced)
    return basis.sample_rows / cluster.placement.workers * row_bytes


def _pool_stage(
    basis: Basis, stage: str, rates: ShardRates, actor_seconds: float, transfer: tuple[float, float]
) -> StagePlan:
    """Seconds of all actors of a stage, in whole rounds of units; `transfer` is bytes read and written."""
    pool = pools(basis.config)[stage]
    gpus = _gpus_of_actor(basis, stage, pool, rates)
    room = room_for(basis.shape, pool.cpus_per_actor, gpus, f"{stage}.pool")
    if basis.shape.capped or room == math.inf:
        room = min(room, pool.max_actors)
    units = basis.inventory.units
    actors = min(int(room), units)
    seconds = pool_seconds(rates.fixed_seconds, units, actors, actor_seconds / units / basis.efficiency)
    reserved = Reserved(actors=actors, cpus=pool.cpus_per_actor, gpus=gpus)
    read_bytes, written_bytes = transfer
    return stage_plan(stage, seconds, reserved, basis.machines, read_bytes, written_bytes + units * rates.unit_bytes)


def _gpus_of_actor(basis: Basis, stage: str, pool: ActorPool, rates: ShardRates) -> float:
    """GPUs per actor: those of the pool, or one if GPUs are planned and the stage runs an encoder or a trunk."""
    encodes = stage != "assign" or not basis.keeps_all
    asked = pool.gpus_per_actor > 0.0 or (encodes and basis.shape.gpus > 0.0 and not basis.shape.capped)
    if asked and not rates.on_gpu:
        raise UsageError(
            f"GPUs are planned for {stage}, but {basis.rates.run} ran it without GPUs: make a small run with "
            f"{stage}.pool.gpus_per_actor=1 on a GPU machine, or plan without --gpus and with "
            f"{stage}.pool.gpus_per_actor=0"
        )
    return (pool.gpus_per_actor or 1.0) if asked else 0.0


def _without_work(basis: Basis, stage: str, seconds: float) -> StagePlan:
    return stage_plan(stage, seconds, Reserved(actors=0, cpus=0.0), basis.machines)
