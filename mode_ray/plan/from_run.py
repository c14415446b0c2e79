"""Read the rates of a run from its unit records, its manifests and the status of its training runs.

Nothing is measured here: all times come from these records.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pyarrow.parquet as pq

from mode_ray.cluster.fit_clock import SECONDS_BY_PART
from mode_ray.cluster.fit_size import seeding_rows_at_most
from mode_ray.config.base import ActorPool
from mode_ray.config.load import load_config
from mode_ray.config.run import RunConfig
from mode_ray.embed.table import EMBEDDING
from mode_ray.errors import UsageError
from mode_ray.plan.rates import ClusterRates, EvaluateRates, Rates, ShardRates, TrainRates, measured_settings
from mode_ray.plan.training import evaluated_models
from mode_ray.run_directory import RUN_CONFIG, STATUS_FILE, UNITS, require_run, stage_directories
from mode_ray.stages.manifest import UnitRecord, read_manifest, read_record, read_units, unit_outputs
from mode_ray.storage import Location
from mode_ray.train.runs.status import TrialStatus, read_status

_FOOTERS_READ = 2_000
_READERS = 16


def rates_from_run(run: Location) -> Rates:
    """Read the rates of the run in a directory. The run does not have to be finished.

    Raises:
        UsageError: The directory has no run, or no stage of the run has finished a unit.
    """
    require_run(run)
    config = load_config((run / RUN_CONFIG).uri)
    places = stage_directories(run)
    embedded, assigned = _records(places["embed"]), _records(places["assign"])
    train = train_rates(_statuses(places["train"]))
    if not (embedded or assigned or train):
        raise UsageError(f"--from {run}: none of its stages has finished a unit yet; run at least its embed stage")
    resources = _cluster_of(places)
    return Rates(
        run=str(run),
        measured_at=_newest([*embedded, *assigned]),
        source=config.captions.paths[0],
        cpus=resources.get("CPU", 0.0),
        gpus=resources.get("GPU", 0.0),
        settings=measured_settings(config),
        dimension=_dimension(places["embed"], embedded),
        embed=_shard_rates(places["embed"], embedded, config.embed.pool),
        cluster=_cluster_rates(places["cluster"], config, embedded),
        assign=_shard_rates(places["assign"], assigned, config.assign.pool),
        features=_shard_rates(places["features"], _records(places["features"]), config.features.pool),
        train=train,
        evaluate=_evaluate_rates(places["evaluate"], config),
    )


def _records(directory: Location) -> list[UnitRecord]:
    """Records of the units that were read: from the list of units, or for a running stage from some outputs."""
    if (directory / UNITS).exists():
        records = read_units(directory)
    else:
        with ThreadPoolExecutor(_READERS) as readers:
            records = list(readers.map(read_record, unit_outputs(directory)[:_FOOTERS_READ]))
    return [record for record in records if record.error is None and record.rows_in > 0]


def busy_span_seconds(records: Sequence[UnitRecord]) -> float:
    """Time from the start of the first unit to the end of the last one."""
    begun = min(record.finished_unix_seconds - record.seconds for record in records)
    return max(record.finished_unix_seconds for record in records) - begun


def _shard_rates(directory: Location, records: Sequence[UnitRecord], pool: ActorPool) -> ShardRates | None:
    """The rates of `ShardRates` from the records of units."""
    if not records:
        return None
    rows_in, rows_out = sum(record.rows_in for record in records), sum(record.rows_out for record in records)
    seconds = sum(record.seconds for record in records)
    attempts = {record.attempt for record in records}
    spans = {name: busy_span_seconds([record for record in records if record.attempt == name]) for name in attempts}
    manifest, fixed_seconds = read_manifest(directory), 0.0
    if manifest is not None and manifest.summary.get("units_made"):
        # The invocation that finished the stage also finished the newest unit.
        newest = max(records, key=lambda record: record.finished_unix_seconds)
        fixed_seconds = max(0.0, manifest.summary["seconds_in_units"] - spans[newest.attempt])
    listed = directory / UNITS
    return ShardRates(
        units=len(records),
        rows=rows_in,
        actors_busy=min(seconds / max(sum(spans.values()), 1e-3), float(pool.max_actors)),
        on_gpu=pool.gpus_per_actor > 0.0,
        row_seconds=seconds / rows_in,
        read_row_seconds=min(seconds, sum(record.read_seconds for record in records)) / rows_in,
        kept_share=rows_out / rows_in,
        refused_share=sum(sum(record.refused.values()) for record in records) / rows_in,
        row_bytes=sum(record.bytes_out for record in records) / max(1, rows_out),
        unit_bytes=listed.size_bytes() / len(records) if listed.exists() else 0.0,
        fixed_seconds=fixed_seconds,
    )


def _cluster_rates(directory: Location, config: RunConfig, embedded: Sequence[UnitRecord]) -> ClusterRates | None:
    """The parts of the fit from the manifest.

    None if no fit has finished, if an earlier version made it, or if its last invocation made no iteration.
    """
    manifest = read_manifest(directory)
    parts = manifest.summary.get(SECONDS_BY_PART) if manifest else None
    if manifest is None or not parts or not parts["start"]:
        return None
    rows, workers, timed = manifest.rows_in, config.cluster.placement.workers, parts["timed"]
    # A fit of one iteration has only its start, which includes that iteration.
    iteration_seconds = parts["iterations"] / timed if timed else parts["start"]
    start_seconds = max(0.0, parts["start"] - iteration_seconds)
    read_seconds, seeding_seconds = parts.get("read"), start_seconds
    if read_seconds is None:  # the actors read the sample when the fit starts
        read_seconds, seeding_seconds = start_seconds, 0.0
    embedded_rows = sum(record.rows_out for record in embedded) or rows
    known_seconds = sum(seconds for part, seconds in parts.items() if part != "timed")
    return ClusterRates(
        rows=rows,
        read_row_seconds=read_seconds * workers / embedded_rows,
        seeding_seconds=seeding_seconds,
        seeding_rows=min(rows, seeding_rows_at_most(config.cluster.fine.centers)),
        row_iteration_seconds=iteration_seconds * workers / rows,
        row_seconds=parts["last_prices"] * workers / rows,
        coarse_seconds=parts["coarse"],
        fixed_seconds=max(0.0, manifest.seconds - known_seconds),
        written_bytes=_size_bytes(directory),
    )


def _statuses(experts: Location) -> list[TrialStatus]:
    folders = [file.parent for file in experts.files(recursive=True) if file.name == STATUS_FILE]
    return [status for folder in folders if (status := read_status(folder)) is not None]


def train_rates(statuses: Sequence[TrialStatus]) -> TrainRates | None:
    """Mean speed of a worker over all training runs, and the time of a run outside its steps.

    A run that ended before its first progress report has no measured speed. Its whole time counts as steps.
    """
    trained = [status for status in statuses if status.samples_seen and not status.taken_from]
    worker_seconds, launch_seconds = 0.0, list[float]()
    for status in trained:
        speed = status.samples_per_second or (status.samples_seen / status.seconds if status.seconds else 0.0)
        if speed == 0.0:
            return None
        worker_seconds += status.samples_seen / speed * (status.workers or 1)
        if status.state == "finished" and status.launches == 1:
            launch_seconds.append(max(0.0, status.seconds - status.samples_seen / speed))
    if not trained:
        return None
    samples = sum(status.samples_seen for status in trained)
    return TrainRates(
        trials=len(trained),
        samples=samples,
        samples_per_second=samples / worker_seconds,
        launch_seconds=sum(launch_seconds) / len(launch_seconds) if launch_seconds else 0.0,
    )


def _evaluate_rates(directory: Location, config: RunConfig) -> EvaluateRates | None:
    manifest = read_manifest(directory)
    if manifest is None or manifest.units == 0:
        return None
    return EvaluateRates(
        seconds=manifest.seconds,
        tasks=manifest.units,
        images=manifest.rows_out,
        models=evaluated_models(config.train),
        written_bytes=_size_bytes(directory),
    )


def _cluster_of(places: dict[str, Location]) -> dict[str, float]:
    """CPUs and GPUs of the Ray cluster, from the last stage whose manifest has them."""
    manifests = (read_manifest(places[name]) for name in ("assign", "embed"))
    return next((dict(one.summary["cluster"]) for one in manifests if one and "cluster" in one.summary), {})


def _dimension(directory: Location, records: Sequence[UnitRecord]) -> int:
    """The embedding dimension, from the schema of an output."""
    if not records:
        return 0
    with (directory / f"{records[0].unit}.parquet").open_input() as file:
        return int(pq.read_schema(file).field(EMBEDDING).type.list_size)


def _size_bytes(directory: Location) -> float:
    return float(sum(entry.size_bytes for entry in directory.entries(recursive=True)))


def _newest(records: Sequence[UnitRecord]) -> str:
    newest = max((record.finished_unix_seconds for record in records), default=0.0)
    return datetime.fromtimestamp(newest, UTC).isoformat(timespec="seconds")
