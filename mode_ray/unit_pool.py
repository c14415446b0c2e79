"""Work units over a pool of Ray actors: the thin adapter between the stages and Ray Data.

Only shard descriptions and small records cross the object store; reading and writing happen inside the actors, where
threads overlap them with the computation of the unit in between.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from itertools import zip_longest
from typing import Any, Protocol

import pyarrow as pa
import ray
import ray.data

from mode_ray.captions.shards import Shard
from mode_ray.config import ActorPool
from mode_ray.errors import DataError
from mode_ray.stage import UnitRecord, write_unit
from mode_ray.storage import Location

_UNITS_PER_TASK = 8
_FIRST_RETRY_SECONDS = 0.5


class UnitWorker(Protocol):
    """What a stage does to one shard. A worker lives as long as its actor, so it may hold a model."""

    def read(self, shard: Shard) -> Any:  # noqa: ANN401 - each worker's own
        """Read the shard; runs in a thread, ahead of `compute`."""
        ...

    def compute(self, shard: Shard, source: Any) -> tuple[pa.Table, UnitRecord]:  # noqa: ANN401
        """Turn what was read into the unit's rows and its record."""
        ...


class UnitActor:
    """Runs a worker over batches of shards: reads the next and writes the last while it computes.

    An I/O error is retried with growing pauses; a shard that cannot be read, or keeps failing, becomes a record with
    `error` set. Any other exception is a defect and ends the stage.

    Args:
        worker: Makes the worker.
        arguments: Its arguments.
        directory: Where the outputs belong.
        attempt: Name of the stage's invocation.
        retries: Further attempts after an I/O error.
    """

    def __init__(
        self,
        worker: Callable[..., UnitWorker],
        arguments: Sequence[Any],
        directory: str,
        attempt: str,
        retries: int,
    ) -> None:
        self._worker = worker(*arguments)
        self._directory = Location(directory)
        self._attempt = attempt
        self._retries = retries
        self._reader = ThreadPoolExecutor(1, "read")
        self._writer = ThreadPoolExecutor(1, "write")

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Process shards (JSON, column `shard`) into records (JSON, column `record`)."""
        shards = [_shard_from_json(text) for text in batch["shard"].to_pylist()]
        records = [record.to_json() for record in self.process(shards)]
        return pa.table({"record": pa.array(records, pa.string())})

    def process(self, shards: Sequence[Shard]) -> Iterator[UnitRecord]:
        """Process shards in order; yields one record each, delayed by one unit."""
        ahead = self._reader.submit(self._worker.read, shards[0])
        writing: Future[UnitRecord] | None = None
        for shard, following in zip_longest(shards, shards[1:]):
            began = time.monotonic()
            source = self._attempts(shard, ahead.result, partial(self._worker.read, shard))
            if following is not None:
                ahead = self._reader.submit(self._worker.read, following)
            if writing is not None:
                yield writing.result()
            if isinstance(source, UnitRecord):
                writing = self._writer.submit(_identity, source)
                continue
            table, record = self._worker.compute(shard, source)
            record = replace(record, attempt=self._attempt)
            writing = self._writer.submit(self._write, shard, table, record, began)
        if writing is not None:
            yield writing.result()

    def _write(self, shard: Shard, table: pa.Table, record: UnitRecord, began: float) -> UnitRecord:
        def write() -> UnitRecord:
            timed = replace(record, seconds=round(time.monotonic() - began, 3))
            return write_unit(self._directory / f"{shard.unit}.parquet", table, timed)

        written: UnitRecord = self._attempts(shard, write, write)
        return written

    def _attempts(self, shard: Shard, first: Callable[[], Any], again: Callable[[], Any]) -> Any:  # noqa: ANN401
        """The result of `first`, or of `again` after an I/O error; a quarantine record where the budget is used up."""
        step, pause = first, _FIRST_RETRY_SECONDS
        for attempts_left in range(self._retries, -1, -1):
            try:
                return step()
            except DataError as error:
                return self._quarantine(shard, str(error))
            except OSError as error:
                if attempts_left == 0:
                    return self._quarantine(shard, f"{shard.uri}: I/O error after {self._retries} retries: {error}")
                time.sleep(pause)
                step, pause = again, pause * 2
        raise AssertionError("unreachable: the last attempt returns")

    def _quarantine(self, shard: Shard, reason: str) -> UnitRecord:
        return UnitRecord(
            unit=shard.unit,
            source=shard.uri,
            error=reason,
            attempt=self._attempt,
            finished_unix_seconds=round(time.time(), 3),
        )


def run_units(
    shards: Sequence[Shard],
    worker: Callable[..., UnitWorker],
    arguments: Sequence[Any],
    directory: Location,
    attempt: str,
    pool: ActorPool,
    on_record: Callable[[UnitRecord], None],
) -> list[UnitRecord]:
    """Process shards over an actor pool; outputs stand when their records arrive.

    Args:
        shards: What is left to do.
        worker: Makes the worker, in each actor.
        arguments: Its arguments.
        directory: Where the outputs belong.
        attempt: Name of the stage's invocation.
        pool: Size and resources of the pool.
        on_record: Called with every record as it arrives.
    """
    if not shards:
        return []
    # About four tasks an actor for balance, few enough units a task that progress shows.
    units_per_task = max(1, min(_UNITS_PER_TASK, len(shards) // (4 * pool.max_actors)))
    items = [{"shard": json.dumps(asdict(shard))} for shard in shards]
    records = []
    results = ray.data.from_items(items, override_num_blocks=-(-len(items) // units_per_task)).map_batches(
        UnitActor,
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(
            min_size=min(pool.min_actors, len(shards)), max_size=min(pool.max_actors, len(shards))
        ),
        num_cpus=pool.cpus_per_actor,
        num_gpus=pool.gpus_per_actor,
        fn_constructor_args=(worker, tuple(arguments), directory.uri, attempt, pool.retries_per_unit),
    )
    for row in results.iter_rows():
        record = UnitRecord.from_json(row["record"])
        on_record(record)
        records.append(record)
    return records


def _identity(record: UnitRecord) -> UnitRecord:
    return record


def _shard_from_json(text: str) -> Shard:
    values = json.loads(text)
    groups = values.pop("row_groups")
    return Shard(**values, row_groups=tuple(groups) if groups else None)
