"""Measured rates: each step on its own, the whole calibration, and a real run against its prediction."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from mode_ray.captions.listing import list_work_units
from mode_ray.config.run import ActorPool, ClusterConfig, FineConfig, RunConfig
from mode_ray.errors import DataError
from mode_ray.plan.calibrate import actors_that_fit
from mode_ray.plan.captions import captions_to_measure
from mode_ray.plan.probe import Probe, jittered, time_kmeans, time_rows
from mode_ray.storage import Location

MOMENT_SECONDS = 0.05
DRILL_DEADLINE_SECONDS = 600.0
FACTOR = 2.0
WORDS = ("cat", "dog", "house", "river", "red", "old", "wooden", "tall", "under", "beside", "snow", "night", "boat")


def captions_of(rows: int, seed: int) -> list[str]:
    """Captions of 3 to 12 words, hardly any of them alike."""
    dice = random.Random(seed)
    return [f"{' '.join(dice.choices(WORDS, k=dice.randint(3, 12)))} {row}" for row in range(rows)]


def config_of(folder: Path, files: int, rows: int, **cluster: object) -> dict[str, Any]:
    """A config over captions that are written to `folder/captions`."""
    (folder / "captions").mkdir(exist_ok=True)
    for number in range(files):
        table = pa.table({"caption": [*captions_of(rows - 1, number), ""]})
        pq.write_table(table, folder / "captions" / f"{number:03d}.parquet")
    return {
        "run": str(folder / "run"),
        "captions": {"paths": [str(folder / "captions")]},
        "encoder": {"kind": "static", "model": "package:wordllama"},
        "embed": {"keep": "sample", "pool": {"min_actors": 2, "max_actors": 2}},
        "cluster": {"sample_rows": 1000, "fine": {"centers": 16}, "coarse": {"experts": [4]}, **cluster},
        "assign": {"pool": {"min_actors": 2, "max_actors": 2}},
        "train": {"dense_samples": 1000, "experts": 4},
        "ray": {"dashboard": False, "object_store_bytes": 300_000_000},
    }


class TestTimer:
    def test_seconds_a_row_over_all_repeats(self) -> None:
        calls: list[float] = []

        def step() -> int:
            time.sleep(0.02)
            calls.append(time.monotonic())
            return 10

        rate = time_rows(step, 0.1)
        assert len(calls) >= 5
        assert rate.wall_seconds == pytest.approx(0.002, rel=0.5)
        assert rate.cpu_seconds < rate.wall_seconds / 2


class TestProbe:
    @pytest.fixture
    def probe(self, tmp_path: Path) -> Probe:
        config = RunConfig.model_validate(config_of(tmp_path, files=2, rows=500))
        scratch = Location.parse(str(tmp_path / "scratch"))
        # Long enough for a busy machine to read both files.
        return Probe(config, 1, list_work_units(config.captions), scratch, 10 * MOMENT_SECONDS, seed=0)

    def test_all_steps_of_both_stages_one_after_the_other(self, probe: Probe) -> None:
        assert probe.load() == (256, "cpu")
        read, refused = probe.read()
        encode, captions, mean_bytes = probe.encode()
        stored, embedding_bytes = probe.write_embeddings()
        rates = [read, encode, stored, probe.read_embeddings(), probe.search(16)]
        written, assignment_bytes = probe.write_assignments(16)
        assert all(rate.wall_seconds > 0.0 for rate in [*rates, written])
        assert (refused, captions) == (pytest.approx(2 / 1000), 998)  # type: ignore[comparison-overlap]
        assert 20 < mean_bytes < 80
        assert 400 < embedding_bytes < 700  # 256 dimensions of float16, and the caption's place
        assert 5 < assignment_bytes < 60

    def test_shards_without_a_usable_caption_are_one_sentence(self, tmp_path: Path) -> None:
        config = RunConfig.model_validate(config_of(tmp_path, files=1, rows=1))
        probe = Probe(
            config, 1, list_work_units(config.captions), Location.parse(str(tmp_path)), MOMENT_SECONDS, seed=0
        )
        with pytest.raises(DataError, match=r"000\.parquet: calibration found no usable caption"):
            probe.read()


def test_jittered_vectors_are_distinct_unit_vectors_near_their_origins() -> None:
    generator = np.random.default_rng(0)
    origins_bd = generator.standard_normal((5, 64)).astype(np.float32)
    origins_bd /= np.linalg.norm(origins_bd, axis=1, keepdims=True)
    vectors_nd = jittered(origins_bd, 1000, generator)
    assert np.linalg.norm(vectors_nd, axis=1) == pytest.approx(1.0, abs=1e-5)
    assert len(np.unique(vectors_nd, axis=0)) == 1000
    assert ((vectors_nd @ origins_bd.T).max(axis=1) > 0.98).all()


def test_kmeans_rates_are_those_of_its_parts() -> None:
    generator = np.random.default_rng(0)
    vectors_nd = jittered(generator.standard_normal((50, 32)).astype(np.float32), 2000, generator)
    cluster = ClusterConfig(sample_rows=2000, fine=FineConfig(centers=16))
    time_kmeans(vectors_nd, cluster, threads=1)  # loads what is compiled
    began = time.perf_counter()
    rates = time_kmeans(vectors_nd, cluster, threads=1)
    passed = time.perf_counter() - began
    fits = rates.seeding_seconds + 2000 * (3 * rates.row_seconds + 6 * rates.row_iteration_seconds)
    assert fits == pytest.approx(passed - rates.coarse_seconds, rel=0.5)


@pytest.mark.parametrize(
    ("pool", "cores", "gpus", "expected"),
    [
        (ActorPool(max_actors=64), 16, 0, 16),
        (ActorPool(max_actors=4), 16, 0, 4),
        (ActorPool(max_actors=64, cpus_per_actor=3.0), 16, 0, 5),
        (ActorPool(max_actors=64, gpus_per_actor=0.5), 16, 2, 4),
        (ActorPool(max_actors=64, gpus_per_actor=1.0), 16, 0, 16),
        (ActorPool(max_actors=2, cpus_per_actor=8.0), 4, 0, 1),
    ],
)
def test_actors_that_fit_the_machine(pool: ActorPool, cores: float, gpus: float, expected: int) -> None:
    assert actors_that_fit(pool, cores, gpus) == expected


def test_where_no_captions_are_yet_made_up_ones_stand_in_and_are_called_so(tmp_path: Path) -> None:
    values = config_of(tmp_path, files=0, rows=0)
    config, work_units, source = captions_to_measure(
        RunConfig.model_validate(values), Location.parse(str(tmp_path / "x"))
    )
    assert "made-up" in source
    assert [work_unit.uri for work_unit in work_units] == [str(tmp_path / "x" / "captions" / "stand-in.parquet")]
    assert config.captions.paths != tuple(values["captions"]["paths"])


@pytest.mark.drill
@pytest.mark.alone
def test_a_real_run_takes_about_as_long_as_predicted(tmp_path: Path) -> None:
    values = config_of(tmp_path, files=25, rows=4000, sample_rows=40_000, fine={"centers": 128})
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(values))
    before = predicted(tmp_path, "before")
    # All three in one invocation, as `mode-ray run` begins.
    run_python("-c", RUN_STAGES, str(tmp_path / "my.yaml"))
    # Other work on the machine comes and goes: what it changed between two calibrations is not the planner's error.
    after = predicted(tmp_path, "after")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"captions", "run", "my.yaml", "before.json", "after.json"}
    assert before["inventory"]["rows"] == 100_000
    for first, second in zip(before["stages"], after["stages"], strict=True):
        folder = tmp_path / "run" / FOLDERS[first["stage"]]
        taken = json.loads((folder / "manifest.json").read_text())["seconds"]
        seconds = sorted(stage["wall_hours"] * 3600 for stage in (first, second))
        written = sum(file.stat().st_size for file in folder.iterdir())
        bytes_ratio = second["written_bytes"] / written
        sys.stdout.write(
            f"{first['stage']}: predicted {seconds}, took {taken} s; bytes {bytes_ratio:.3f} of the real\n"
        )
        assert seconds[0] / FACTOR < taken < seconds[1] * FACTOR, first["stage"]
        assert 1 / 1.5 < bytes_ratio < 1.5, first["stage"]


def predicted(folder: Path, name: str) -> dict[str, Any]:
    """Calibrate, and plan the run of `folder/my.yaml`."""
    plan = ["-m", "mode_ray.cli", "plan", "--config", str(folder / "my.yaml"), "--rates", str(folder / f"{name}.json")]
    run_python(*plan, "--calibrate", "--step-seconds", "2")
    shown: dict[str, Any] = json.loads(run_python(*plan, "--json"))
    return shown


FOLDERS = {"embed": "embeddings", "cluster": "clusters", "assign": "assignments"}
RUN_STAGES = """
import sys
from rich.console import Console
from mode_ray.cli import run_stages
from mode_ray.config.load import load_config
run_stages(load_config(sys.argv[1]), ("embed", "cluster", "assign"), Console())
"""


def run_python(*arguments: str) -> str:
    """Run Python on arguments; its output."""
    ended = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=DRILL_DEADLINE_SECONDS, check=False
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    return ended.stdout
