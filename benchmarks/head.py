"""The head restarts `assign` and `train` within two minutes at 250,000 shards, in memory that does not grow with them.

Data and run are in an object store that takes 30 ms for every request (`slow_storage.py`): Arrow's own S3 client and
real HTTP, but a server on this machine with objects in memory. `assign` was killed near its end: its driver lists the
input and the outputs, and finds the records of the finished units. `train` was killed while its experts trained: its
driver waits until the lease of the killed one expires (not with `--quick`) and plans the runs again, and a launcher of
each finds its training set. Ray does not take part: the time to start it, and Ray's own processes, are not in these
figures.

The peer is ourselves at a tenth of the shards, and at 4 instead of 32 experts. The memory of the head is the largest
resident set of the driver, and that of a launcher for each of the four concurrent runs.
"""

import contextlib
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from frame import arguments, finish
from head_process import BUCKET, CENTERS, CONCURRENT_RUNS, run_config
from rich.console import Console
from slow_storage import CONTROL

from mode_ray.cluster.clustering import Clustering
from mode_ray.config.run import RunConfig
from mode_ray.observe.progress import Progress
from mode_ray.pairs.index_files import in_this_process, write_index_parts
from mode_ray.pairs.training_set import SetFiles
from mode_ray.pipeline import Pipeline, build_stages, open_run
from mode_ray.run_directory import FINE_COUNTS_FILE, LEASE_FILE, TRAINING_SETS, WORK_UNITS_FILE, training_set_file
from mode_ray.stages.actor import with_source
from mode_ray.stages.journal import RecordJournal
from mode_ray.stages.manifest import Stage, UnitRecord, record_book
from mode_ray.stages.run import Run
from mode_ray.stages.work_unit import WorkUnit
from mode_ray.train.stage import begin_training

LATENCY_SECONDS = 0.03
ROWS_PER_SHARD = 10_000
DIMENSIONS = 384
FEW_EXPERTS, MANY_EXPERTS = 4, 32
UNITS_NOT_JOURNALLED = 500  # of the half minute before the driver was killed
UNITS_LEFT_SHARE = 0.01
SHARD_BYTES = 300_000_000
QUICK_SHARDS, SHARDS = 10_000, 250_000


class SlowStorage:
    """The server, in a process of its own."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("slow_storage.py")
        self._process = subprocess.Popen(
            [sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.endpoint = f"http://127.0.0.1:{int(self._process.stdout.readline())}"

    def control(self, **order: object) -> dict[str, int]:
        """Set the latency, or add objects that can only be listed; returns the requests since the last call."""
        request = urllib.request.Request(f"{self.endpoint}{CONTROL}", json.dumps(order).encode())  # noqa: S310
        with urllib.request.urlopen(request) as answer:  # noqa: S310 - our own server
            requests: dict[str, int] = json.load(answer)
        return requests

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.wait()


@contextlib.contextmanager
def slow_storage() -> Iterator[SlowStorage]:
    """A running server; processes that are started meanwhile find it as S3."""
    storage = SlowStorage()
    os.environ.update(
        AWS_ENDPOINT_URL=storage.endpoint,
        AWS_ACCESS_KEY_ID="bench",
        AWS_SECRET_ACCESS_KEY="bench",  # noqa: S106 - no secret of anything  # pragma: allowlist secret
        AWS_DEFAULT_REGION="us-east-1",
        AWS_EC2_METADATA_DISABLED="true",
    )
    try:
        yield storage
    finally:
        storage.close()


class KilledRun:
    """Makes a run in which `assign` or `train` was killed, without latency.

    Args:
        config: The run's config.
        storage: The server.
    """

    def __init__(self, config: RunConfig, storage: SlowStorage) -> None:
        self._storage = storage
        storage.control(latency_seconds=0.0)
        self._run = open_run(config)
        self._stages = build_stages(self._run)

    def in_assign(self) -> None:
        """`embed` and `cluster` are done, and `assign` was killed when one unit in a hundred was left."""
        self._embed_and_cluster()
        stage, work_units = self._stages["assign"], self._run.work_units
        stage.begin(len(work_units))
        made = len(work_units) - max(1, round(UNITS_LEFT_SHARE * len(work_units)))
        records = (_record(work_unit, stage) for work_unit in work_units[: made - UNITS_NOT_JOURNALLED])
        sizes = {}
        with RecordJournal(stage.directory, stage.attempt) as journal:
            for record in records:
                journal.add(record)
                sizes[_key(stage, record.unit)] = record.bytes_out
        self._storage.control(sizes=sizes)
        table = pa.table({"row": pa.array([0], pa.int32())})
        with ThreadPoolExecutor(16) as writers:
            last = (_record(work_unit, stage) for work_unit in work_units[made - UNITS_NOT_JOURNALLED : made])
            list(writers.map(lambda record: stage.write_unit(table, record), last))

    def in_train(self, *, leaves_lease: bool) -> None:
        """`assign` is done, and `train` was killed while it trained: all plans and training sets exist."""
        self._embed_and_cluster()
        run, assign, train = self._run, self._stages["assign"], self._stages["train"]
        assign.begin(len(run.work_units))
        manifest = assign.finish(_book(run, assign), {})
        counts = [ROWS_PER_SHARD * len(run.work_units) // CENTERS] * CENTERS
        (assign.directory / FINE_COUNTS_FILE).write_text(
            json.dumps({"assignments": manifest.content_hash, "counts": counts})
        )
        training = begin_training(run, train)
        if leaves_lease:
            lease = {"driver": "killed", "host": "bench", "process": "1", "beats": "1"}
            (train.directory / LEASE_FILE).write_text(json.dumps(lease))
        row = pa.table({"shard": pa.array([0], pa.int32()), "row": pa.array([0], pa.int64())})
        for trial in training.trials:
            group_m = np.empty(0, np.int32) if trial.members.kind == "all" else _groups(run.config.train.experts)
            files = SetFiles(trial.members, run.assignments, train.directory / WORK_UNITS_FILE, group_m)
            file = training_set_file(train.directory / TRAINING_SETS, trial.members.name)
            write_index_parts(file, lambda _: [row], files.parts(), files.provenance(), in_this_process)

    def _embed_and_cluster(self) -> None:
        run, embed, cluster = self._run, self._stages["embed"], self._stages["cluster"]
        Pipeline(run, self._stages, _progress()).claim()
        embed.begin(len(run.work_units))
        embed.finish(_book(run, embed), {})
        experts = run.config.train.experts
        cluster.begin(1)
        Clustering(
            centers_md=np.eye(CENTERS, DIMENSIONS, dtype=np.float32),
            prices_m=np.zeros(CENTERS),
            mass_m=np.full(CENTERS, ROWS_PER_SHARD),
            squared_distance_m=np.ones(CENTERS),
            encoder_name="bench",
            coarse={experts: _groups(experts)},
        ).save(run.clusters)
        cluster.finish([], {})


def _groups(experts: int) -> np.ndarray:
    return np.arange(CENTERS, dtype=np.int32) % experts


def _book(run: Run, stage: Stage) -> Any:  # noqa: ANN401
    return record_book(_record(work_unit, stage) for work_unit in run.work_units)


def _key(stage: Stage, unit: str) -> str:
    return stage.output(unit).uri.removeprefix(f"s3://{BUCKET}/")


def _record(work_unit: WorkUnit, stage: Stage) -> UnitRecord:
    number = int(work_unit.unit.split("-")[1])
    record = UnitRecord(
        unit=work_unit.unit,
        source=work_unit.uri,
        rows_in=ROWS_PER_SHARD,
        rows_out=ROWS_PER_SHARD - number % 7,
        refused={"empty caption": number % 7} if number % 7 else {},
        examples={"empty caption": f"sample {number % 9973:09d}"} if number % 7 else {},
        bytes_out=150_000 + number * 7919 % 100_003,
        content_hash=work_unit.unit[-16:],
        seconds=round(2.0 + number % 89 / 1000, 3),
        attempt=stage.attempt,
        finished_unix_seconds=1.79e9 + number,
    )
    return with_source(record, work_unit)


def _progress() -> Progress:
    return Progress(Console(quiet=True))


def in_a_process(what: str, shards: int, experts: int, storage: SlowStorage) -> dict[str, Any]:
    """Restart something in a process of its own, with the latency; its figures, and the requests that it made."""
    storage.control(latency_seconds=LATENCY_SECONDS)
    script = str(Path(__file__).with_name("head_process.py"))
    command = [sys.executable, script, what, str(shards), str(experts)]
    environment = {**os.environ, "MALLOC_ARENA_MAX": "2"}  # as in the image
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    figures["requests"] = storage.control()
    print(
        f"{what:8} {shards:9,} shards, {experts:2} experts: {figures['seconds']:6.1f} s "
        f"({figures['processor_seconds']:.1f} s of a processor), "
        f"{sum(figures['requests'].values()):5} requests, {figures['peak_resident_bytes'] / 1e6:.0f} MB, "
        f"{figures['written_bytes'] / 1e6:.0f} MB to disk",
        flush=True,
    )
    return figures


def restart_assign(shards: int, experts: int, storage: SlowStorage) -> Mapping[str, Any]:
    """Figures of a restart of `assign`."""
    add_shards(shards, storage)
    KilledRun(run_config(shards, experts), storage).in_assign()
    figures = in_a_process("assign", shards, experts, storage)
    if figures["found"] != max(1, round(UNITS_LEFT_SHARE * shards)):
        raise RuntimeError(f"assign: found {figures['found']} units that are left")
    return figures


def restart_train(
    shards: int, experts: int, storage: SlowStorage, *, leaves_lease: bool
) -> dict[str, Mapping[str, Any]]:
    """Figures of a restart of `train`: those of the driver, and of the launcher of one run."""
    add_shards(shards, storage)
    KilledRun(run_config(shards, experts), storage).in_train(leaves_lease=leaves_lease)
    figures: dict[str, Mapping[str, Any]] = {
        what: in_a_process(what, shards, experts, storage) for what in ("train", "launcher")
    }
    if figures["train"]["found"] != experts + 1:
        raise RuntimeError(f"train: found {figures['train']['found']} runs")
    return figures


def add_shards(shards: int, storage: SlowStorage) -> None:
    """Add the input of a run."""
    keys = (f"pairs-{shards}/part-{number:06d}.tar" for number in range(shards))
    storage.control(sizes={key: SHARD_BYTES + number * 7919 % 100_003 for number, key in enumerate(keys)})


def head_bytes(figures: Mapping[str, Mapping[str, Any]]) -> float:
    """Memory of the head while it trains."""
    resident = {what: float(figures[what]["peak_resident_bytes"]) for what in figures}
    return resident["train"] + CONCURRENT_RUNS * resident["launcher"]


def main() -> None:
    """Measure all sizes and print."""
    parser = arguments(__doc__ or "")
    options = parser.parse_args()
    large = QUICK_SHARDS if options.quick else SHARDS
    sizes: Sequence[tuple[int, int]] = ((large // 10, FEW_EXPERTS), (large, FEW_EXPERTS), (large, MANY_EXPERTS))
    with slow_storage() as storage:
        assign = restart_assign(large, FEW_EXPERTS, storage)
        few, many, experts = (
            restart_train(shards, count, storage, leaves_lease=not options.quick) for shards, count in sizes
        )
    results = {
        "assign_restart_seconds": float(assign["seconds"]),
        "train_restart_seconds": float(experts["train"]["seconds"]) + float(experts["launcher"]["seconds"]),
        "head_memory_250k_over_25k": head_bytes(many) / head_bytes(few),
        "head_memory_32_over_4_experts": head_bytes(experts) / head_bytes(many),
    }
    details = {
        "latency_seconds": LATENCY_SECONDS,
        "concurrent_runs": CONCURRENT_RUNS,
        "sizes": [{"shards": shards, "experts": count} for shards, count in sizes],
        "train": [few, many, experts],
        "assign": assign,
    }
    finish("head", results, details)


if __name__ == "__main__":
    main()
