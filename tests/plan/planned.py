"""A small run, measured rates and numbers of captions to plan with."""

from typing import Any

from mode_ray.config.run import RunConfig
from mode_ray.plan.estimate import make_plan
from mode_ray.plan.rates import (
    ActorRates,
    CaptionFigures,
    FixedCosts,
    KMeansRates,
    MachineNote,
    Rates,
    StepRate,
    measured_settings,
)
from mode_ray.plan.stages import ClusterShape, Inventory, Prices, StagePlan

HOUR = 3600.0


def config_of(**sections: object) -> RunConfig:
    values: dict[str, Any] = {
        "run": "/nowhere/run",
        "captions": {"paths": ["/nowhere/captions"]},
        "encoder": {"kind": "static", "model": "package:wordllama"},
        "cluster": {"sample_rows": 10_000, "fine": {"centers": 100, "iterations": 10}, "coarse": {"experts": [4]}},
        "train": {"dense_samples": 32_000, "batch_size": 100},
    }
    return RunConfig.model_validate(values | sections)


def step(microseconds: float) -> StepRate:
    return StepRate(wall_seconds=microseconds * 1e-6, cpu_seconds=microseconds * 1e-6)


def rates_of(config: RunConfig, device: str = "cpu") -> Rates:
    """Round numbers, in microseconds a row: read 1, encode 20, write 4, read back 2, search 5, write assignments 3."""
    actor = ActorRates(
        actors_busy=2,
        device=device,
        read_captions=step(1),
        encode=step(20),
        write_embeddings=step(4),
        read_embeddings=step(2),
        search=step(5),
        write_assignments=step(3),
    )
    return Rates(
        measured_at="2026-11-23T00:00:00+00:00",
        machine=MachineNote(host="box", processor="two cores", cores=2, gpus=0.0),
        captions=CaptionFigures(source="captions of /x", rows=1000, mean_bytes=60.0, refused_share=0.0),
        settings=measured_settings(config),
        dimension=256,
        embedding_bytes=500.0,
        assignment_bytes=12.0,
        embed=actor,
        assign=actor,
        kmeans=KMeansRates(
            rows=5_000,
            row_iteration_seconds=40e-6,
            row_seconds=100e-6,
            seeding_seconds=2.0,
            seeding_rows=5_000,
            coarse_seconds=3.0,
        ),
        fixed=FixedCosts(embed_seconds=0.0, cluster_seconds=7.0, assign_seconds=0.0, unit_seconds=0.0),
    )


def inventory_of(rows: float, units: int = 100, *, counts_by_reading: bool = False) -> Inventory:
    return Inventory(rows=rows, units=units, counts_by_reading=counts_by_reading, found="given")


def plan_of(
    config: RunConfig,
    rows: float = 1e6,
    shape: ClusterShape | None = None,
    prices: Prices | None = None,
    train_samples_per_second: float | None = None,
) -> dict[str, StagePlan]:
    inventory = inventory_of(rows)
    plan = make_plan(config, rates_of(config), inventory, shape, prices, 1.0, train_samples_per_second)
    return {stage.stage: stage for stage in plan.stages}
