"""The driver keeps 256 GPUs busy over 250,000 shards (2.5 billion captions) and 32 experts, in little memory.

A simulated fleet: the scheduler's decisions (`TrialQueue`) and the bookkeeping of shards (listing, `plan_units`,
`UnitLedger`, records, manifest) are the real ones; GPUs, spot losses and the time that work takes are events of a
clock that costs nothing to turn (`simulated_fleet.py`). Ray itself does not take part: what it costs to hand out tasks
is not in these figures.

The embed stage is broken off after a fifth and resumed by a new driver, which reads the footers of what stands. The
peer is ourselves at a tenth of the size: bookkeeping a shard and the driver's memory (the largest resident set of a
process of its own, Ray's client library included) must not grow with the number of shards.

Speeds: 2,800 captions a second and GPU for a BERT-base sized encoder (sbert.net's table of pretrained models, for
all-mpnet-base-v2 on a V100); 332 samples a second and GPU for ViT-B/16 (open_clip's README: 12.8 billion samples in
10,700 GPU hours of A100s). `--from` takes the speed of an actor of the embed stage from the records of a run instead.
"""

import contextlib
import gc
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from frame import arguments, finish
from rich.console import Console
from simulated_fleet import (
    GPUS,
    GPUS_PER_RUN,
    SAMPLES_PER_SECOND,
    SPOT_LOSS_AN_HOUR,
    Bookkeeping,
    ShardStageRun,
    Task,
    TrainingRun,
    tasks_of,
)

from mode_ray.captions.listing import read_listing, write_listing
from mode_ray.config.run import RunConfig
from mode_ray.observe.progress import Progress
from mode_ray.plan.from_run import rates_from_run
from mode_ray.stages.actor import with_source
from mode_ray.stages.ledger import UnitLedger
from mode_ray.stages.manifest import Stage, UnitRecord, read_manifest, write_unit
from mode_ray.stages.resume import finish_units, plan_units, refuse_replaced_sources
from mode_ray.stages.work_unit import WorkUnit, WorkUnitTable
from mode_ray.storage import Location
from mode_ray.train.plan import plan_trials

ROWS_PER_SHARD = 10_000
CAPTIONS_PER_SECOND = 2_800.0
# Reading kept embeddings and searching; less than the 67,000 a core that 1,024 centers took on two AVX-512 cores.
ASSIGN_ROWS_PER_SECOND = 50_000.0
EXPERTS = 32
DENSE_SAMPLES = 12_800_000_000
BROKEN_OFF_SHARE = 0.2
UNREADABLE_EVERY = 10_007
REFUSED = {"empty caption": 3, "too long": 1}


class BrokenOffError(Exception):
    """The driver is killed here."""


class StageFigures(NamedTuple):
    """Of one stage on the simulated fleet; not the fleet itself, which holds on to the driver's records."""

    utilisation: float
    machines_lost: int
    hours: float


class Driver:
    """What the real driver does for one shard stage, its time taken.

    Args:
        config: The run's config.
        work_units: The listing.
        book: Takes the time.
    """

    def __init__(self, config: RunConfig, work_units: Sequence[WorkUnit], book: Bookkeeping) -> None:
        self._config = config
        self._work_units = work_units
        self._book = book
        self._progress = Progress(Console(quiet=True))

    def run(self, name: str, unit_seconds: float, *, broken_off_after: int | None = None) -> StageFigures:
        """One invocation; `broken_off_after` so many units the driver is killed, and outputs stand."""
        book, work_units = self._book, self._work_units
        stage = Stage(name, self._config.directory / name, {"stage": name})
        pool = self._config.embed.pool
        with book.taking("plan"):
            plan = plan_units(stage, work_units)
            stage.begin(len(work_units))
            self._progress.begin(name, len(work_units), len(plan.finished))
            ledger = UnitLedger(plan.left, pool, stage.attempt, self._progress.unit)
        fleet: ShardStageRun

        def on_task(task: Task) -> None:
            for work_unit in task.work_units:
                record = _record(work_unit, stage.attempt, fleet.clock.now, unit_seconds)
                if broken_off_after is not None and record.error is None:
                    _write_output(stage, record)
                text = record.to_json()  # in the worker
                with book.taking("records"):
                    ledger.take(UnitRecord.from_json(text))
            if broken_off_after is not None and len(ledger.records) >= broken_off_after:
                raise BrokenOffError

        fleet = ShardStageRun(tasks_of(plan.left, ledger.units_per_task), pool.retries_per_unit, unit_seconds, on_task)
        fleet.run()
        with book.taking("lost"):
            lost = ledger.lost()
        alone = ShardStageRun(tasks_of(lost, 1), pool.retries_per_unit, unit_seconds, on_task)
        if lost:
            alone.run()
        with book.taking("lost"):
            ledger.give_up()
        with book.taking("finish"):
            ledger.records.update(plan.finished)
            manifest = finish_units(stage, ledger.records, self._config.limits, {})
            self._progress.end(manifest)
        if manifest.units != len(work_units) or manifest.rows_in != ROWS_PER_SHARD * _readable(len(work_units)):
            raise RuntimeError(f"{name}: {manifest.units} units with {manifest.rows_in} rows: some are missing")
        return StageFigures(fleet.utilisation, fleet.spot.losses, (fleet.clock.now + alone.clock.now) / 3600)

    def look_again(self, name: str) -> None:
        """What the next invocation does of a stage that is done."""
        # The fleet and its clock refer to each other, and to the records: a real driver has neither.
        gc.collect()
        stage = Stage(name, self._config.directory / name, {"stage": name})
        with self._book.taking("look again"):
            refuse_replaced_sources(stage, self._work_units)
            read_manifest(stage.directory)


def _is_unreadable(number: int) -> bool:
    return number % UNREADABLE_EVERY == UNREADABLE_EVERY - 1


def _readable(count: int) -> int:
    return count - count // UNREADABLE_EVERY


def _work_units(count: int) -> Iterator[WorkUnit]:
    generator = np.random.default_rng(0)
    return (
        WorkUnit(
            unit=f"part-{number:06d}-{generator.integers(1 << 63):016x}",
            uri=f"s3://web-captions/2026-11/pairs/part-{number:06d}.tar",
            format="webdataset",
            size_bytes=int(generator.integers(300_000_000, 400_000_000)),
            modified_unix_seconds=1_790_000_000.0 + float(generator.integers(1_000_000)),
        )
        for number in range(count)
    )


def _record(work_unit: WorkUnit, attempt: str, now: float, seconds: float) -> UnitRecord:
    number = int(work_unit.unit.split("-")[1])
    record = with_source(
        UnitRecord(
            unit=work_unit.unit, source=work_unit.uri, attempt=attempt, finished_unix_seconds=1.79e9 + round(now, 3)
        ),
        work_unit,
    )
    if _is_unreadable(number):
        return replace(record, error=f"{work_unit.uri}: truncated tar")
    return replace(
        record,
        rows_in=ROWS_PER_SHARD,
        rows_out=ROWS_PER_SHARD - sum(REFUSED.values()),
        refused=REFUSED,
        examples=dict.fromkeys(REFUSED, f"sample {number % 9973:09d}"),
        bytes_out=15_000_000 + number * 7919 % 100_003,
        content_hash=work_unit.unit[-16:][::-1],
        seconds=round(seconds + number % 89 / 1000, 3),
    )


def _write_output(stage: Stage, record: UnitRecord) -> None:
    write_unit(stage.output(record.unit), pa.table({"row": pa.array([0], pa.int32())}), record)


def run_config(directory: str) -> RunConfig:
    """The simulated run's config."""
    return RunConfig.model_validate(
        {
            "run": directory,
            "captions": {"paths": ["s3://web-captions/2026-11/pairs"]},
            "limits": {"max_quarantined_units": 100},
            "cluster": {"coarse": {"experts": [EXPERTS]}},
            "embed": {"pool": {"min_actors": GPUS, "max_actors": GPUS, "gpus_per_actor": 1.0}},
            "train": {
                "model": {"architecture": "ViT-B-16", "pretrained": "a seed that was trained before"},
                "experts": EXPERTS,
                "dense_samples": DENSE_SAMPLES * 5 // 32,
                "batch_size": 32768,
                "controls": [],
                "placement": {
                    "workers_per_run": GPUS_PER_RUN,
                    "concurrent_runs": GPUS // GPUS_PER_RUN,
                    "use_gpu": True,
                },
            },
        }
    )


def simulate(work_units: int, directory: str, captions_per_second: float) -> dict[str, Any]:
    """Embed, assign and train on a simulated fleet; figures of this process."""
    began = time.perf_counter()
    config, book = run_config(directory), Bookkeeping()
    listing = config.directory / "shards.parquet"
    write_listing(listing, WorkUnitTable.of(_work_units(work_units)), config.captions)
    with book.taking("listing"):
        listed = read_listing(listing, config.captions)
    with contextlib.suppress(BrokenOffError):
        Driver(config, listed, Bookkeeping()).run(
            "embeddings", ROWS_PER_SHARD / captions_per_second, broken_off_after=round(BROKEN_OFF_SHARE * work_units)
        )
    gc.collect()  # a driver that is killed leaves nothing to the next
    driver = Driver(config, listed, book)
    embed = driver.run("embeddings", ROWS_PER_SHARD / captions_per_second)
    driver.look_again("embeddings")
    assign = driver.run("assignments", ROWS_PER_SHARD / ASSIGN_ROWS_PER_SECOND)
    driver.look_again("assignments")
    rows = [ROWS_PER_SHARD * work_units / EXPERTS * (0.7 + 0.6 * number / (EXPERTS - 1)) for number in range(EXPERTS)]
    trials = plan_trials(config.train, np.array(rows, dtype=np.int64), range(EXPERTS)[::-1])
    training = TrainingRun(config.train, trials, config.directory / "experts", book)
    statuses = training.run()
    unfinished = [name for name, status in statuses.items() if status.state != "finished"]
    if unfinished:
        raise RuntimeError(f"not trained: {', '.join(unfinished)}")
    return {
        "shards": work_units,
        "embed_utilisation": embed.utilisation,
        "assign_utilisation": assign.utilisation,
        "train_utilisation": training.utilisation,
        "machines_lost": embed.machines_lost + assign.machines_lost + training.spot.losses,
        "launches": sum(status.launches for status in statuses.values()),
        "simulated_hours": embed.hours + assign.hours + training.clock.now / 3600,
        "bookkeeping_seconds": book.total,
        "bookkeeping_by_step": {name: round(seconds, 3) for name, seconds in book.seconds.items()},
        "peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "wall_seconds": time.perf_counter() - began,
    }


def in_a_process(work_units: int, captions_per_second: float) -> dict[str, Any]:
    """`simulate` in a process of its own, whose memory is its own too."""
    # In memory where that is possible: how fast a disk syncs is not the driver's merit.
    memory = "/dev/shm"  # noqa: S108 - a fresh directory below it
    with tempfile.TemporaryDirectory(dir=memory if Path(memory).is_dir() else None) as scratch:
        command = [
            sys.executable,
            __file__,
            "--shards",
            str(work_units),
            "--captions-per-second",
            str(captions_per_second),
        ]
        done = subprocess.run([*command, "--scratch", scratch], check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(
        f"{work_units:9,} shards: {figures['simulated_hours']:.1f} h in {figures['wall_seconds']:.0f} s, "
        f"{figures['machines_lost']} machines lost, utilisation {figures['embed_utilisation']:.3f} "
        f"{figures['assign_utilisation']:.3f} {figures['train_utilisation']:.3f}, bookkeeping "
        f"{1e3 * figures['bookkeeping_seconds'] / work_units:.3f} ms a shard, "
        f"{figures['peak_resident_bytes'] / 1e6:.0f} MB",
        flush=True,
    )
    return figures


def main() -> None:
    """Simulate both sizes and print."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--from", dest="run", help="a run, for the speed of an actor of its embed stage")
    parser.add_argument("--shards", type=int, help="simulate this many in this process, and print its figures")
    parser.add_argument("--scratch", help="with --shards: where the run's files go")
    parser.add_argument("--captions-per-second", type=float, default=CAPTIONS_PER_SECOND, help="of one GPU")
    options = parser.parse_args()
    speed: float = options.captions_per_second
    if options.run:
        embed = rates_from_run(Location.parse(options.run)).embed
        if embed is None:
            parser.error(f"--from {options.run}: its embed stage has finished no unit")
        speed = 1 / embed.row_seconds
    if options.shards:
        print(json.dumps(simulate(options.shards, options.scratch, speed)))
        return
    small, large = (2_500, 25_000) if options.quick else (25_000, 250_000)
    rounds = [{size: in_a_process(size, speed) for size in (small, large)} for _ in range(options.repeats or 1)]
    per_shard = {
        size: statistics.median(1e3 * figures[size]["bookkeeping_seconds"] / size for figures in rounds)
        for size in (small, large)
    }
    memory = {
        size: statistics.median(figures[size]["peak_resident_bytes"] for figures in rounds) for size in (small, large)
    }
    stages = ("embed_utilisation", "assign_utilisation", "train_utilisation")
    results = {
        "utilisation": min(float(rounds[0][large][stage]) for stage in stages),
        "driver_memory_250k_over_25k": memory[large] / memory[small],
        "bookkeeping_ms_per_shard": per_shard[large],
        "bookkeeping_250k_over_25k": per_shard[large] / per_shard[small],
    }
    details = {
        "shards": [small, large],
        "captions": large * ROWS_PER_SHARD,
        "gpus": GPUS,
        "experts": EXPERTS,
        "spot_loss_an_hour": SPOT_LOSS_AN_HOUR,
        "captions_per_second_and_gpu": speed,
        "samples_per_second_and_gpu": SAMPLES_PER_SECOND,
        "rounds": rounds,
    }
    finish("fleet", results, details)


if __name__ == "__main__":
    main()
