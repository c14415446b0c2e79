"""A small run, its rates, and numbers of captions for plans."""

from dataclasses import replace
from typing import Any

from mode_ray.config.run import RunConfig
from mode_ray.plan.estimate import PlanOptions, make_plan
from mode_ray.plan.machines import ClusterShape, Prices, StagePlan
from mode_ray.plan.rates import ClusterRates, Rates, ShardRates, measured_settings
from mode_ray.plan.stages import Inventory

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


def rates_of(config: RunConfig, *, on_gpu: bool = False) -> Rates:
    """Round numbers, in microseconds a row: read 1, encode 20, write 4, read back 2, search 5, write assignments 3."""
    embed = ShardRates(
        units=10,
        rows=1000,
        actors_busy=2.0,
        on_gpu=on_gpu,
        row_seconds=25e-6,
        read_row_seconds=1e-6,
        kept_share=1.0,
        refused_share=0.0,
        row_bytes=500.0,
        unit_bytes=400.0,
        fixed_seconds=0.0,
    )
    read, computing = (2, 8) if config.embed.keep == "all" else (1, 28)
    assign = replace(
        embed, row_seconds=(read + computing) * 1e-6, read_row_seconds=read * 1e-6, row_bytes=12.0, on_gpu=False
    )
    return Rates(
        run="/nowhere/small",
        measured_at="2026-11-23T00:00:00+00:00",
        source="/x",
        cpus=2.0,
        gpus=0.0,
        settings=measured_settings(config),
        dimension=256,
        embed=embed,
        assign=assign,
        cluster=ClusterRates(
            rows=5_000,
            read_row_seconds=0.5e-6,
            seeding_seconds=2.0,
            seeding_rows=5_000,
            row_iteration_seconds=40e-6,
            row_seconds=100e-6,
            coarse_seconds=3.0,
            fixed_seconds=7.0,
            written_bytes=200_000.0,
        ),
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
    options = PlanOptions(
        shape=shape,
        prices=prices or Prices(),
        efficiency=1.0,
        train_samples_per_second=train_samples_per_second,
    )
    plan = make_plan(config, rates_of(config), inventory_of(rows), options)
    return {stage.stage: stage for stage in plan.stages}
