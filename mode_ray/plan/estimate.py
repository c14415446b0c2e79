"""The time, bytes and cost of a run, computed from the rates of another run.

Rows are distributed evenly over work units, and units over actors. Every actor works at the measured rate. All times
are linear in the rows, except for a fixed cost of each stage and each training run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mode_ray.config.run import RunConfig
from mode_ray.errors import UsageError
from mode_ray.plan.machines import ClusterShape, Prices, StagePlan
from mode_ray.plan.rates import Rates, require_fit
from mode_ray.plan.stages import (
    Basis,
    Inventory,
    assign_stage,
    cluster_stage,
    clustering_memory_bytes,
    embed_stage,
    evaluate_stage,
    features_stage,
    pools,
    train_stage,
)
from mode_ray.plan.training import evaluated_models, training_samples

_BYTES_PER_GIGABYTE = 1e9


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A plan for one config, inventory and cluster.

    Attributes:
        inventory: What is processed.
        stages: The stages in order. Stages without rates are left out, and the assumptions say so.
        stored_bytes: Final size of the run directory, without the checkpoints of training.
        storage_cost_month: Cost of storing that for a month.
        clustering_memory_bytes: Memory for the sample rows in each process of the clustering.
        settings: Config overrides that this plan assumes.
        assumptions: The assumptions as sentences.
        rates: The rates.
    """

    inventory: Inventory
    stages: Sequence[StagePlan]
    stored_bytes: float
    storage_cost_month: float
    clustering_memory_bytes: float
    settings: Sequence[str]
    assumptions: Sequence[str]
    rates: Rates


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Options of a plan.

    Attributes:
        shape: The machines; by default those of the measured run.
        prices: Prices of the machines and the storage.
        efficiency: Share of the measured speed that the actors of a cluster reach on average.
        train_samples_per_second: Speed of one training worker; by default the measured speed.
    """

    shape: ClusterShape | None = None
    prices: Prices = field(default_factory=Prices)
    efficiency: float = 0.85
    train_samples_per_second: float | None = None


def make_plan(config: RunConfig, rates: Rates, inventory: Inventory, options: PlanOptions | None = None) -> Plan:
    """Plan the stages of a run.

    Raises:
        UsageError: A number is out of range, the rates belong to another config, or GPUs are planned and the other
            run used none.
    """
    options = options or PlanOptions()
    shape, train_samples_per_second = options.shape, options.train_samples_per_second
    if shape is None:
        cores = int(config.ray.num_cpus or rates.cpus)
        shape = ClusterShape(machines=1 if cores else 0, cores=cores, gpus=rates.gpus, capped=True)
    basis = Basis(
        config=config,
        rates=rates,
        inventory=inventory,
        shape=shape,
        prices=options.prices,
        efficiency=options.efficiency,
    )
    _check(basis, train_samples_per_second)
    stages = _stages(basis, train_samples_per_second)
    stored = sum(stage.written_bytes for stage in stages)
    actors = {stage.stage: stage.actors for stage in stages}
    return Plan(
        inventory=inventory,
        stages=stages,
        stored_bytes=stored,
        storage_cost_month=stored / _BYTES_PER_GIGABYTE * options.prices.storage_month,
        clustering_memory_bytes=clustering_memory_bytes(basis),
        settings=() if shape.capped else _settings(config, actors),
        assumptions=_assumptions(basis, list(actors), train_samples_per_second),
        rates=rates,
    )


def _stages(basis: Basis, train_samples_per_second: float | None) -> list[StagePlan]:
    """Plans of the stages that have rates."""
    rates, config = basis.rates, basis.config
    needed = {
        "embed": rates.embed,
        "cluster": rates.cluster if not config.reuses_clustering else None,
        "assign": rates.assign,
        "features": rates.features if config.uses_features else None,
        "train": rates.train if config.trains and train_samples_per_second is None else None,
        "evaluate": rates.evaluate if config.evaluate.tasks else None,
    }
    require_fit(rates, config, [name for name, found in needed.items() if found is not None])
    stages = []
    if rates.embed:
        stages.append(embed_stage(basis, rates.embed))
    if rates.cluster or config.reuses_clustering:
        stages.append(cluster_stage(basis, rates.cluster))
    if rates.assign:
        stages.append(assign_stage(basis, rates.assign))
    if rates.features and config.uses_features:
        stages.append(features_stage(basis, rates.features))
    if train_samples_per_second is not None:
        stages.append(train_stage(basis, train_samples_per_second))
    elif rates.train and config.trains:
        stages.append(train_stage(basis, rates.train.samples_per_second, rates.train.launch_seconds))
    if rates.evaluate and config.evaluate.tasks:
        stages.append(evaluate_stage(basis, rates.evaluate))
    return stages


def _settings(config: RunConfig, actors: Mapping[str, int]) -> list[str]:
    """The overrides of actor pools that this plan needs."""
    return [
        f"{name}.pool.max_actors={actors[name]}"
        for name, pool in pools(config).items()
        if actors.get(name) and pool.max_actors != actors[name]
    ]


def _assumptions(basis: Basis, planned: Sequence[str], train_samples_per_second: float | None) -> list[str]:
    """The assumptions of the plan as sentences."""
    config, rates = basis.config, basis.rates
    readers = {"embed": rates.embed, "assign": rates.assign, "features": rates.features}
    busy = [f"{found.actors_busy:.1f} busy actors in {name}" for name, found in readers.items() if found]
    lines = [
        f"rows: {basis.inventory.found}; {rates.refused_share:.1%} are assumed to be refused",
        f"rates: from {rates.run}, finished {rates.measured_at} ({', '.join(busy) or 'training only'}), captions of "
        f"{rates.source}; other machines, other captions and other storage need a small run of their own",
        f"times are linear in the rows; the actors of the cluster reach {basis.efficiency:.0%} of the measured "
        "speed (--efficiency); retries, waiting for machines and starting Ray are not counted",
    ]
    if config.reuses_clustering:
        lines.append("the clustering of another run is reused, so no clustering is fitted")
    else:
        placement = config.cluster.placement
        lines.append(
            f"k-means runs all {config.cluster.fine.iterations} iterations on {basis.sample_rows:,.0f} rows, held by "
            f"{placement.workers} processes of {placement.threads} threads each (cluster.placement)"
        )
    if basis.keeps_all:
        lines.append("embed.keep=all: embeddings are stored; cluster and assign read them")
    else:
        lines.append("embed.keep=sample: the sources are read twice; assign reads, encodes and assigns in one pass")
    lines.append(_cost_assumption(basis.shape))
    wanted = ("embed", "cluster", "assign", *(("features",) if config.uses_features else ()), "evaluate")
    left_out = [name for name in wanted if name not in planned]
    if left_out:
        reason = "the run has no record of them, or the config has no evaluation tasks"
        lines.append(f"left out: {', '.join(left_out)} ({reason})")
    lines.append(_training_assumption(basis, train_samples_per_second))
    if "evaluate" in planned and rates.evaluate:
        lines.append(
            f"evaluation: {len(config.evaluate.tasks)} tasks of {rates.evaluate.images / rates.evaluate.tasks:,.0f} "
            f"images on average, with {evaluated_models(config.train)} models, on the machines of the measured run"
        )
    return lines


def _cost_assumption(shape: ClusterShape) -> str:
    charged = (
        f"a stage is charged for all {shape.machines} x {shape.cores} cores while it runs"
        if shape.machines
        else "without --machines, a stage that uses no GPU is charged for the cores it reserves"
    )
    return (
        f"cost: {charged}; GPUs are charged in the stages that use them; storage and traffic of the source data are "
        "not counted"
    )


def _training_assumption(basis: Basis, train_samples_per_second: float | None) -> str:
    if train_samples_per_second is not None:
        speed = f"{train_samples_per_second:g} a second and worker, as given"
    elif not basis.config.trains:
        return "training is left out: train.dense_samples is not set"
    elif basis.rates.train is not None:
        speed = f"{basis.rates.train.samples_per_second:,.1f} a second and worker, as in the run"
    else:
        return "training is left out: the run has not trained; give --train-samples-per-second of one worker"
    return (
        f"training: {training_samples(basis.config.train):,.0f} samples in all at {speed}; bytes of images and "
        "checkpoints are not counted"
    )


def _check(basis: Basis, train_samples_per_second: float | None) -> None:
    """Raise `UsageError` for a number that is out of range."""
    inventory, shape, prices = basis.inventory, basis.shape, basis.prices
    problems = {
        f"rows must be above 0, not {inventory.rows:g}": inventory.rows <= 0,
        f"units must be above 0, not {inventory.units}": inventory.units <= 0,
        f"efficiency must be above 0 and at most 1, not {basis.efficiency:g}": not 0.0 < basis.efficiency <= 1.0,
        "machines, cores and GPUs cannot be negative": min(shape.machines, shape.cores, shape.gpus) < 0,
        "give both machines and cores, or neither": (shape.machines > 0) != (shape.cores > 0),
        "prices cannot be negative": min(prices.cpu_hour, prices.gpu_hour, prices.storage_month) < 0,
        "training samples a second must be above 0": (
            train_samples_per_second is not None and train_samples_per_second <= 0
        ),
    }
    for problem, wrong in problems.items():
        if wrong:
            raise UsageError(f"plan: {problem}")
