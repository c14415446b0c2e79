"""Rows over Ray actors: the fit has the same bits for any number of actors, also if one is killed."""

import os
import signal
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray

from mode_ray.cluster import stage as run
from mode_ray.cluster.both_steps import fit_clustering
from mode_ray.cluster.fit import kmeans
from mode_ray.cluster.fit.actors import ActorRows
from mode_ray.cluster.fit.kmeans import FineFit, early_steps, fit_rows
from mode_ray.cluster.fit.sample import SamplePart, plan_sample, read_sample
from mode_ray.cluster.fit.sample_rows import LocalRows
from mode_ray.cluster.fit.state import FitState
from mode_ray.cluster.stage import run_cluster
from mode_ray.config.cluster import ClusterPlacement, FineConfig
from mode_ray.config.run import RunConfig
from mode_ray.embed.encoder import encoder_name
from mode_ray.embed.table import embedding_column
from mode_ray.errors import DataError
from mode_ray.stages.manifest import Stage, UnitRecord, read_manifest
from mode_ray.stages.run import Quiet, Run
from mode_ray.storage import Location

ROWS, DIMENSION, SEED = 3_000, 32, 5
SAMPLE_ROWS = 2_500

pytestmark = pytest.mark.usefixtures("ray_session", "early_steps_in_small_fits")


@pytest.fixture(scope="module")
def early_steps_in_small_fits() -> Iterator[None]:
    """One of four steps of a plain fit reads a quarter of the rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kmeans, "EARLY_ROWS_PER_CENTER", 20)
        assert early_steps(SAMPLE_ROWS, config_of(balanced=False)) == 1
        yield


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory: pytest.TempPathFactory) -> Location:
    """Embedding shards of unequal size around some directions, a few rows of them alike."""
    generator = np.random.default_rng(0)
    directions = generator.standard_normal((20, DIMENSION))
    vectors = directions[generator.integers(20, size=ROWS) ** 2 // 20] + generator.standard_normal((ROWS, DIMENSION))
    vectors[::50] = vectors[0]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    stage = Stage("embed", Location(str(tmp_path_factory.mktemp("embeddings"))), {})
    cuts = (0, 7, 1_100, 1_101, 2_400, ROWS)
    stage.begin(len(cuts) - 1)
    records = [
        stage.write_unit(
            pa.table({"embedding": embedding_column(vectors[begin:end])}),
            UnitRecord(unit=f"{begin:04d}", source="made up", rows_in=end - begin, rows_out=end - begin),
        )
        for begin, end in pairwise(cuts)
    ]
    stage.finish(records, {})
    return stage.directory


@pytest.fixture(scope="module")
def parts(embeddings: Location) -> list[SamplePart]:
    """A sample of them."""
    return plan_sample(embeddings, SAMPLE_ROWS, SEED)


def config_of(balanced: bool) -> FineConfig:
    return FineConfig(centers=24, iterations=4, balanced=balanced, price_updates=8, tolerance=0.0)


def assert_same_bits(one: FineFit, other: FineFit) -> None:
    for name in ("centers_md", "prices_m", "mass_m", "fitted_mass_m", "squared_distance_m"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    assert one.history == other.history
    assert (one.fitted_inertia, one.rows, one.distinct_rows) == (other.fitted_inertia, other.rows, other.distinct_rows)


@pytest.fixture(scope="module")
def three(embeddings: Location, parts: list[SamplePart]) -> ActorRows:
    """The sample over three actors, shared by the tests because starting actors is slow."""
    return ActorRows(embeddings, parts, SEED, ClusterPlacement(workers=3, cpus=0.5, threads=1))


@pytest.fixture(scope="module")
def local(embeddings: Location, parts: list[SamplePart], early_steps_in_small_fits: None) -> Mapping[bool, FineFit]:
    """What one process fits, plain and balanced."""
    rows = read_sample(embeddings, parts, SEED)
    return {balanced: fit_rows(LocalRows(rows), config_of(balanced), SEED) for balanced in (False, True)}


@pytest.mark.parametrize("balanced", [False, True])
def test_three_actors_fit_what_one_process_fits(
    three: ActorRows, local: Mapping[bool, FineFit], balanced: bool
) -> None:
    assert local[balanced].rows == SAMPLE_ROWS
    assert local[balanced].distinct_rows < SAMPLE_ROWS
    assert_same_bits(fit_rows(three, config_of(balanced), SEED), local[balanced])


@pytest.mark.drill
@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("workers", [1, 2])
def test_so_do_one_and_two(
    embeddings: Location, parts: list[SamplePart], local: Mapping[bool, FineFit], workers: int, balanced: bool
) -> None:
    sample = ActorRows(embeddings, parts, SEED, ClusterPlacement(workers=workers, cpus=0.5, threads=1))
    assert_same_bits(fit_rows(sample, config_of(balanced), SEED), local[balanced])


def test_rows_are_taken_by_position_from_any_actor(
    three: ActorRows, embeddings: Location, parts: list[SamplePart]
) -> None:
    whole = read_sample(embeddings, parts, SEED).astype(np.float32)
    assert three.rows == SAMPLE_ROWS
    for positions in (
        np.arange(SAMPLE_ROWS),
        np.array([0, 832, 833, 1665, 1666, 2499]),
        np.array([2000]),
        np.arange(0),
    ):
        np.testing.assert_array_equal(three.take(positions), whole[positions])


@pytest.mark.drill
@pytest.mark.parametrize("balanced", [False, True])
def test_the_fit_has_the_same_bits_if_an_actor_is_killed(
    three: ActorRows, local: Mapping[bool, FineFit], balanced: bool
) -> None:
    killed: list[int] = []

    def kill_one(state: FitState) -> None:
        if len(state.history) == 2:
            killed.append(pid_of(three, 1))
            os.kill(killed[-1], signal.SIGKILL)

    disturbed = fit_rows(three, config_of(balanced), SEED, kill_one)
    assert len({*killed, pid_of(three, 1)}) == 2
    assert_same_bits(disturbed, local[balanced])


def pid_of(sample: ActorRows, number: int) -> int:
    """Process of one of the actors."""
    pid: int = ray.get(sample._actors[number].__ray_call__.remote(lambda _: os.getpid()))
    return pid


def test_a_shard_that_an_actor_cannot_read_is_the_user_s_error(embeddings: Location, parts: list[SamplePart]) -> None:
    elsewhere = Location(f"{embeddings.uri}-copy")
    for file in embeddings.files():
        (elsewhere / file.name).write_bytes(file.read_bytes())
    file = elsewhere / "2400.parquet"
    file.write_bytes(file.read_bytes()[:100])
    sample = ActorRows(elsewhere, parts[-1:], SEED, ClusterPlacement(workers=1, cpus=0.5, threads=1))
    with pytest.raises(DataError, match=r"2400\.parquet: damaged .*mode-ray embed"):
        sample.hashes()


def run_config(run: Path, workers: int) -> RunConfig:
    return RunConfig.model_validate(
        {
            "run": str(run),
            "captions": {"paths": ["/nowhere"]},
            "encoder": {"kind": "static", "model": "package:wordllama"},
            "cluster": {
                "sample_rows": SAMPLE_ROWS,
                "seed": SEED,
                "fine": config_of(balanced=True).model_dump(),
                "coarse": {"experts": [2, 4]},
                "placement": {"workers": workers, "cpus": 0.5, "threads": 1},
            },
            "train": {"dense_samples": 1, "experts": 4},
        }
    )


def clustering_files(directory: Location) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.files() if file.name.endswith(".safetensors")}


@pytest.mark.drill
def test_the_stage_reports_progress_and_two_actors_give_the_same_bytes_as_one_process(
    embeddings: Location, parts: list[SamplePart], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mode_ray.cluster.stage._LOOK_SECONDS", 0.02)
    config = run_config(tmp_path / "run", workers=2)
    directory = config.directory / "clusters"
    iterations = list[int]()

    class Recorded(Quiet):
        def iteration(self, report: Mapping[str, Any], most: int) -> None:
            assert most == 4 + (report["extended_from"] or 0)
            assert report["inertia"] > 0
            iterations.append(report["iteration"])

    (tmp_path / "run").mkdir()
    (tmp_path / "run/embeddings").symlink_to(embeddings.path)
    run_cluster(Run(config, ()), Stage("cluster", directory, {}), Recorded())
    assert iterations == sorted(set(iterations))
    manifest = read_manifest(directory)
    assert manifest is not None
    assert iterations[-1] == manifest.summary["iterations"], "the last iteration is reported"
    alone = Location(str(tmp_path / "alone"))
    sample = LocalRows(read_sample(embeddings, parts, SEED))
    fit_clustering(sample, config.cluster, encoder_name(config.encoder), alone)
    assert clustering_files(directory) == clustering_files(alone)
    assert set(clustering_files(alone)) == {"fine.safetensors", "coarse-n2.safetensors", "coarse-n4.safetensors"}


def test_more_workers_than_cpus_or_gpus_are_reported_before_waiting(
    embeddings: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    placement = run_config(tmp_path, 1).cluster.placement.model_copy(update={"workers": 500, "gpus": 1.0})
    lines: list[str] = []
    run._say_if_too_little_room(placement, lines.append)
    cpus, gpus = lines
    assert "needs 250.5 CPUs, the cluster has 4: " in cpus
    assert "needs 500 GPUs, the cluster has 1: " in gpus
    assert all("lower cluster.placement.workers" in line for line in lines)
