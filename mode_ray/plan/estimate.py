"""How long a run takes, what it writes and what it costs, from measured rates: arithmetic alone.

Rows are spread over equal work units, units over actors, and every actor works at the measured rate: all times are
linear in the rows but for a fixed cost a stage and a unit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mode_ray.config.run import RunConfig
from mode_ray.errors import UsageError
from mode_ray.plan.rates import Rates
from mode_ray.plan.stages import ClusterShape, Inventory, Prices, StageArithmetic, StagePlan, training_samples

_BYTES_PER_GIGABYTE = 1e9


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A plan for one config, inventory and cluster.

    Attributes:
        inventory: What is processed.
        stages: In order.
        stored_bytes: In the run directory at the end, checkpoints of training not counted.
        storage_cost_month: Of keeping that.
        clustering_memory_bytes: Of each process that holds rows of the clustering's sample, for these.
        settings: Config overrides that this plan takes for granted.
        assumptions: In plain words.
    """

    inventory: Inventory
    stages: Sequence[StagePlan]
    stored_bytes: float
    storage_cost_month: float
    clustering_memory_bytes: float
    settings: Sequence[str]
    assumptions: Sequence[str]


def make_plan(
    config: RunConfig,
    rates: Rates,
    inventory: Inventory,
    shape: ClusterShape | None = None,
    prices: Prices | None = None,
    efficiency: float = 0.85,
    train_samples_per_second: float | None = None,
) -> Plan:
    """Plan the stages of a run.

    Args:
        config: The run's config; the rates fit it.
        rates: Measured rates.
        inventory: Rows and units.
        shape: The machines; by default the one that the rates were measured on.
        prices: By default 0.
        efficiency: Share of the measured speed that the actors of a whole cluster reach on average.
        train_samples_per_second: Of one training worker; without it training is left out.

    Raises:
        UsageError: A number that cannot be, or GPUs asked for without a rate that was measured on one.
    """
    prices = prices or Prices()
    shape = shape or ClusterShape(
        machines=1, cores=config.ray.num_cpus or rates.machine.cores, gpus=rates.machine.gpus, capped=True
    )
    _check(inventory, shape, prices, efficiency, train_samples_per_second)
    arithmetic = StageArithmetic(config, rates, inventory, shape, prices, efficiency)
    embed, cluster, assign = arithmetic.embed(), arithmetic.cluster(), arithmetic.assign()
    stages = [embed, cluster, assign]
    if train_samples_per_second is not None:
        stages.append(arithmetic.train(train_samples_per_second))
    stored = sum(stage.written_bytes for stage in stages)
    settings = () if shape.capped else _settings(config, {"embed": embed.actors, "assign": assign.actors})
    return Plan(
        inventory=inventory,
        stages=stages,
        stored_bytes=stored,
        storage_cost_month=stored / _BYTES_PER_GIGABYTE * prices.storage_month,
        clustering_memory_bytes=arithmetic.clustering_memory_bytes(),
        settings=settings,
        assumptions=_assumptions(
            config, rates, inventory, shape, efficiency, arithmetic.sample_rows, train_samples_per_second
        ),
    )


def _settings(config: RunConfig, actors: Mapping[str, int]) -> list[str]:
    """Overrides of the pools that this plan needs."""
    pools = {"embed": config.embed.pool, "assign": config.assign.pool}
    return [
        f"{name}.pool.max_actors={count}"
        for name, count in actors.items()
        if count > 0 and pools[name].max_actors != count
    ]


def _assumptions(
    config: RunConfig,
    rates: Rates,
    inventory: Inventory,
    shape: ClusterShape,
    efficiency: float,
    sample_rows: float,
    train_samples_per_second: float | None,
) -> list[str]:
    """What the plan takes for granted, in plain words."""
    machine = rates.machine
    lines = [
        f"rows: {inventory.found}; {rates.captions.refused_share:.1%} are taken to be refused",
        f"rates: measured {rates.measured_at} on {machine.host} ({machine.processor}, {machine.cores} cores, "
        f"encoder on {rates.embed.device}) with {rates.embed.actors_busy} busy actors, on {rates.captions.source} "
        f"of {rates.captions.mean_bytes:.0f} bytes on average; other machines, and sources or run directories "
        "on other storage, need a calibration of their own",
        f"times grow linearly with the rows; the actors of the cluster reach {efficiency:.0%} of the "
        "measured speed (--efficiency); retries, waiting for machines and starting Ray are not counted",
        f"k-means runs all {config.cluster.fine.iterations} iterations on {sample_rows:,.0f} rows, held by "
        f"{config.cluster.placement.workers} processes of {config.cluster.placement.threads} threads, each with "
        "cores like the measured machine's (cluster.placement)",
    ]
    if config.cluster.standing is not None:
        lines[-1] = "a standing clustering is taken over: nothing is fitted"
    if config.embed.keep == "all":
        lines.append("embed.keep=all: embeddings are stored, and read again by cluster and assign")
    else:
        lines.append("embed.keep=sample: the sources are read twice, and assign encodes every caption in its one pass")
    rented = (
        f"a stage is charged for {shape.machines} x {shape.cores} cores as long as it runs, busy or not"
        if shape.machines
        else "without --machines, a stage that uses no GPU is charged for the cores it reserves"
    )
    lines.append(
        f"cost: {rented}; GPUs are charged in the stages that use them; the source data's storage and traffic are "
        "not counted"
    )
    if train_samples_per_second is None:
        lines.append("training is left out: give --train-samples-per-second (of one worker) to include it")
    else:
        lines.append(
            f"training: {training_samples(config.train):,.0f} samples in all at {train_samples_per_second:g} "
            "a second and worker, as given; bytes of images and checkpoints are not counted"
        )
    return lines


def _check(
    inventory: Inventory,
    shape: ClusterShape,
    prices: Prices,
    efficiency: float,
    train_samples_per_second: float | None,
) -> None:
    """Refuse numbers that cannot be."""
    problems = {
        f"rows must be above 0, not {inventory.rows:g}": inventory.rows <= 0,
        f"units must be above 0, not {inventory.units}": inventory.units <= 0,
        f"efficiency must be above 0 and at most 1, not {efficiency:g}": not 0.0 < efficiency <= 1.0,
        "machines, cores and GPUs cannot be negative": min(shape.machines, shape.cores, shape.gpus) < 0,
        "machines and cores go together: give both": (shape.machines > 0) != (shape.cores > 0),
        "prices cannot be negative": min(prices.cpu_hour, prices.gpu_hour, prices.storage_month) < 0,
        "training samples a second must be above 0": (
            train_samples_per_second is not None and train_samples_per_second <= 0
        ),
    }
    for problem, wrong in problems.items():
        if wrong:
            raise UsageError(f"plan: {problem}")
