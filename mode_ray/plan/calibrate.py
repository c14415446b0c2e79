"""Measures on the machine at hand how fast the stages' steps are: `mode-ray plan --calibrate`.

The machine is kept as busy as in production: as many actors as fit run each step at the same time, and the rates are
theirs. What a stage and a work unit cost besides their rows is taken from two tiny runs of the real stages.
"""

import os
import platform
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from rich.console import Console

from mode_ray.config.run import (
    ActorPool,
    CaptionsConfig,
    ClusterConfig,
    CoarseConfig,
    EvaluateConfig,
    LimitsConfig,
    RayConfig,
    RunConfig,
)
from mode_ray.errors import DataError, ModeRayError, UsageError
from mode_ray.observe.progress import Progress
from mode_ray.pipeline import Pipeline
from mode_ray.plan.captions import captions_to_measure
from mode_ray.plan.probe import Probe, time_kmeans
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
from mode_ray.run_directory import stage_directories
from mode_ray.stages.manifest import Manifest, read_manifest
from mode_ray.stages.session import ray_session
from mode_ray.storage import Location

STEP_SECONDS = 5.0
KMEANS_ROWS = 131_072
_TINY_UNITS = 64
_TINY_ROWS = 8

Say = Callable[[str], None]


def calibrate(
    config: RunConfig, say: Say, step_seconds: float = STEP_SECONDS, kmeans_rows: int = KMEANS_ROWS
) -> Rates:
    """Measure the rates of a config on this machine.

    Captions come from `captions.paths`; where nothing is found there, made-up ones stand in, and the rates say so.
    What is written goes beside the run directory, on the same storage, and is removed.

    Args:
        config: The run's config.
        say: Is told what is being measured.
        step_seconds: Least time of each step.
        kmeans_rows: Rows of the k-means fits, at most; few rows make the fit dearer a row.

    Raises:
        UsageError: The encoder cannot be loaded, or `step_seconds` is not above 0.
        DataError: A shard cannot be read, or holds no usable caption.
    """
    if step_seconds <= 0.0:
        raise UsageError(f"--step-seconds must be above 0, not {step_seconds:g}")
    scratch = Location(f"{config.directory}.calibration-{secrets.token_hex(4)}")
    try:
        with _own_machine(config.ray):
            return _Calibration(config, scratch, say, step_seconds, kmeans_rows).measure()
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ModeRayError):
            raise error.cause from None
        raise
    finally:
        scratch.delete()


def actors_that_fit(pool: ActorPool, cores: float, gpus: float) -> int:
    """Actors of a pool that one machine holds, at least one."""
    room = cores / pool.cpus_per_actor
    if pool.gpus_per_actor and gpus:
        room = min(room, gpus / pool.gpus_per_actor)
    return max(1, min(pool.max_actors, int(room)))


class _Calibration:
    def __init__(self, config: RunConfig, scratch: Location, say: Say, step_seconds: float, kmeans_rows: int) -> None:
        self._scratch, self._say, self._seconds = scratch, say, step_seconds
        self._config, self._work_units, self._source = captions_to_measure(config, scratch)
        self._kmeans_rows = max(min(kmeans_rows, config.cluster.sample_rows), config.cluster.fine.centers)
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        self._cores, self._gpus = int(resources.get("CPU", 1)), float(resources.get("GPU", 0.0))

    def measure(self) -> Rates:
        config, embed, assign = self._config, self._config.embed.pool, self._config.assign.pool
        first = self._pool("embed", embed)
        alike = _probe_of(embed) == _probe_of(assign)
        second = first.rates if alike else self._pool("assign", assign).rates
        kmeans = self._kmeans(first.vectors_nd)
        fixed = self._fixed(first.texts, first.rates.actors_busy)
        return Rates(
            measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
            machine=MachineNote(
                host=platform.node(), processor=_processor(), cores=os.cpu_count() or 1, gpus=self._gpus
            ),
            captions=CaptionFigures(
                source=self._source,
                rows=first.captions,
                mean_bytes=first.mean_bytes,
                refused_share=first.refused_share,
            ),
            settings=measured_settings(config),
            dimension=first.dimension,
            embedding_bytes=first.embedding_bytes,
            assignment_bytes=first.assignment_bytes,
            embed=first.rates,
            assign=second,
            kmeans=kmeans,
            fixed=fixed,
        )

    def _pool(self, stage: str, pool: ActorPool) -> "_PoolOutcome":
        """Time every step with all actors of a pool at once."""
        actors = actors_that_fit(pool, self._cores, self._gpus)
        self._say(f"[calibrate] {stage}: {actors} actors at once, {self._source}")
        remote = ray.remote(num_cpus=pool.cpus_per_actor, num_gpus=pool.gpus_per_actor if self._gpus else 0)(Probe)
        probes: list[Any] = [
            remote.remote(
                self._config,
                pool.threads_per_actor,
                self._work_units,
                self._scratch / f"{stage}-{number}",
                self._seconds,
                number,
            )
            for number in range(actors)
        ]

        def each(step: str, *arguments: Any) -> list[Any]:  # noqa: ANN401 - each step's own
            self._say(f"[calibrate] {stage}: {step.replace('_', ' ')}")
            return list(ray.get([getattr(probe, step).remote(*arguments) for probe in probes]))

        centers = self._config.cluster.fine.centers
        try:
            loaded, read, encoded = each("load"), each("read"), each("encode")
            embeddings, stored = each("write_embeddings"), each("read_embeddings")
            search, assignments = each("search", centers), each("write_assignments", centers)
            texts = ray.get(probes[0].texts.remote(_TINY_UNITS * _TINY_ROWS))
            vectors_nd = ray.get(probes[0].vectors.remote(self._kmeans_rows))
        finally:
            for probe in probes:
                ray.kill(probe)
        rates = ActorRates(
            actors_busy=actors,
            device=loaded[0][1],
            read_captions=_mean(rate for rate, _ in read),
            encode=_mean(rate for rate, *_ in encoded),
            write_embeddings=_mean(rate for rate, _ in embeddings),
            read_embeddings=_mean(stored),
            search=_mean(search),
            write_assignments=_mean(rate for rate, _ in assignments),
        )
        return _PoolOutcome(
            rates=rates,
            dimension=loaded[0][0],
            captions=sum(captions for _, captions, _ in encoded),
            mean_bytes=float(np.mean([mean_bytes for *_, mean_bytes in encoded])),
            refused_share=float(np.mean([refused for _, refused in read])),
            embedding_bytes=float(np.mean([size for _, size in embeddings])),
            assignment_bytes=float(np.mean([size for _, size in assignments])),
            texts=texts,
            vectors_nd=vectors_nd,
        )

    def _kmeans(self, vectors_nd: np.ndarray) -> KMeansRates:
        """Time the fit in a process of its own, as the cluster stage does."""
        cluster = self._config.cluster
        self._say(f"[calibrate] cluster: k-means on {len(vectors_nd):,} rows, m={cluster.fine.centers}")
        task = ray.remote(num_cpus=min(cluster.placement.cpus, self._cores), max_calls=1)(time_kmeans)
        rates: KMeansRates = ray.get(task.remote(vectors_nd, cluster, cluster.placement.threads))
        return rates

    def _fixed(self, texts: Sequence[str], actors: int) -> FixedCosts:
        """What is left of the stages' time with next to no rows, split by runs of few and of many units."""
        self._say(f"[calibrate] fixed costs: two tiny runs, of {actors} and {_TINY_UNITS} units")
        few, many = (self._tiny_run(texts, units) for units in (actors, _TINY_UNITS))
        more_units = max(1, _TINY_UNITS - actors)
        a_unit = {
            name: max(0.0, many[name].seconds - few[name].seconds) * actors / more_units
            for name in ("embed", "assign")
        }
        return FixedCosts(
            embed_seconds=max(0.0, few["embed"].seconds - a_unit["embed"]),
            cluster_seconds=min(few["cluster"].seconds, many["cluster"].seconds),
            assign_seconds=max(0.0, few["assign"].seconds - a_unit["assign"]),
            unit_seconds=(a_unit["embed"] + a_unit["assign"]) / 2,
        )

    def _tiny_run(self, texts: Sequence[str], units: int) -> dict[str, Manifest]:
        folder = self._scratch / f"tiny-{units}"
        for number in range(units):
            chosen = [texts[(number * _TINY_ROWS + row) % len(texts)] for row in range(_TINY_ROWS)]
            (folder / "captions" / f"{number:04d}.parquet").write_table(pa.table({"caption": chosen}))
        fine = self._config.cluster.fine.model_copy(update={"centers": 2, "iterations": 1})
        placed = self._config.cluster.placement
        # Actors for which this one machine has no room would be waited for without end.
        placement = placed.model_copy(update={"workers": 1, "cpus": min(placed.cpus, float(self._cores))})
        tiny = self._config.model_copy(
            update={
                "run": (folder / "run").uri,
                "captions": CaptionsConfig(paths=((folder / "captions").uri,)),
                "limits": LimitsConfig(max_refused_share=1.0),
                "cluster": ClusterConfig(fine=fine, coarse=CoarseConfig(experts=(2,)), placement=placement),
                "train": self._config.train.model_copy(update={"experts": 2}),
                "evaluate": EvaluateConfig(),
            }
        )
        names = ("embed", "cluster", "assign")
        Pipeline(tiny, Progress(Console(quiet=True))).run(names)
        return {name: _manifest(tiny, name) for name in names}


@dataclass(frozen=True, kw_only=True)
class _PoolOutcome:
    """What the probes of one pool found: figures, captions, and vectors float32 [n, d] for what is measured next."""

    rates: ActorRates
    dimension: int
    captions: int
    mean_bytes: float
    refused_share: float
    embedding_bytes: float
    assignment_bytes: float
    texts: list[str]
    vectors_nd: np.ndarray


def _manifest(config: RunConfig, name: str) -> Manifest:
    manifest = read_manifest(stage_directories(config.directory)[name])
    if manifest is None:
        raise DataError(f"{config.directory}: the tiny run of the calibration ended without its {name} stage")
    return manifest


@contextmanager
def _own_machine(ray_config: RayConfig) -> Iterator[None]:
    """A Ray on this machine alone, whatever cluster the config or the environment name."""
    elsewhere = os.environ.pop("RAY_ADDRESS", None)
    try:
        with ray_session(ray_config.model_copy(update={"address": None})):
            yield
    finally:
        if elsewhere is not None:
            os.environ["RAY_ADDRESS"] = elsewhere


def _probe_of(pool: ActorPool) -> tuple[object, ...]:
    """What makes two pools' actors work alike."""
    return pool.threads_per_actor, pool.cpus_per_actor, pool.gpus_per_actor, pool.max_actors


def _mean(rates: Iterator[StepRate] | Sequence[StepRate]) -> StepRate:
    found = list(rates)
    return StepRate(
        wall_seconds=float(np.mean([rate.wall_seconds for rate in found])),
        cpu_seconds=float(np.mean([rate.cpu_seconds for rate in found])),
    )


def _processor() -> str:
    """The processor's name, from Linux where it is that."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
