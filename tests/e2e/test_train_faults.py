"""Eight experts on two slots: workers, controllers and drivers are killed at random, and one expert's data is rotten.

Seven must end as in a run that was left in peace and had no worker groups at all (`workers_per_run: 0`): the same
samples at the same places, by their ledgers, and the same weights. The tolerance is none: with fixed threads, on one
machine, the bytes are equal. The eighth is reported with its reason.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from expert_runs import DEADLINE_SECONDS, EXPERTS, SEED, SLOTS, assigned_run, command, ended
from fault_runs import Invocation, wait_for

from mode_ray.assign.table import FINE
from mode_ray.cluster.clustering import Clustering
from mode_ray.config.load import load_config
from mode_ray.run_directory import CHECKPOINT_FOLDER
from mode_ray.stages.manifest import read_output
from mode_ray.stages.work_unit import unit_name
from mode_ray.storage import Location
from mode_ray.train.runs.checkpoint_folders import checkpoint_name, whole_checkpoints

pytestmark = [pytest.mark.drill, pytest.mark.alone]


KILLS = ("worker",) * 5 + ("controller",) * 2 + ("driver",) * 2
NAMES = {"worker": "ray::RayTrainWo", "controller": "ray::TrainContr"}
# As long as the seed is trained nothing else is, so that every kill costs the time of a restart.
KILLS_OF_THE_SEED = 2
RAY_ENDS_SECONDS = 15.0


@dataclass
class Story:
    """What happened, and what both runs left."""

    undisturbed: Path
    run: Path
    rotten: str
    printed: str
    kills: Counter[str] = field(default_factory=Counter)
    kills_with_checkpoints: int = 0
    seconds: float = 0.0

    def experts(self) -> list[str]:
        """All experts but the rotten one."""
        return [name for number in range(EXPERTS) if (name := f"n{EXPERTS}/{number:02d}") != self.rotten]

    def read(self, run: Path, name: str, file: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((run / "experts" / name / file).read_text())
        return content


@pytest.fixture(scope="module")
def assigned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a config and a run whose captions are assigned."""
    folder = tmp_path_factory.mktemp("train-faults")
    assigned_run(folder)
    return folder


@pytest.fixture(scope="module")
def story(
    assigned: Path,
    named_below: Callable[["subprocess.Popen[bytes]", str], list[int]],
    kill_tree: Callable[["subprocess.Popen[bytes]", float], list[str]],
) -> Story:
    config, run, undisturbed = assigned / "config.yaml", assigned / "run", assigned / "undisturbed"
    for copy in (run, undisturbed):
        shutil.copytree(assigned / "assigned", copy)
    rotten = rot_one_expert(config, run)
    assert ended(command(config, undisturbed, "train", "train.placement.workers_per_run=0")) == 1

    told = Story(undisturbed, run, rotten, "")
    began = time.monotonic()
    chosen = random.Random(SEED)
    victims = list(KILLS)
    chosen.shuffle(victims)
    driver = command(config, run, "train")
    try:
        for number, victim in enumerate(victims):
            if number == KILLS_OF_THE_SEED:
                wait_for(lambda: set(run.glob("experts/seed/open_clip_config.json")), driver)
            # Three of four kills come in the middle of training, the others at any point, as in a run's start.
            if chosen.random() < 0.75:
                before = checkpoints_of(run)
                wait_for(lambda: checkpoints_of(run) - before, driver)  # noqa: B023
            time.sleep(chosen.uniform(0.0, 1.0))
            pids = sorted(wait_for(lambda: victims_of(driver, victim, named_below), driver))  # noqa: B023
            told.kills_with_checkpoints += bool(running_with_checkpoint(run))
            told.kills[victim] += 1
            if victim == "driver":
                told.printed += driver.printed()
                kill_tree(driver.process, RAY_ENDS_SECONDS)
                driver = command(config, run, "train")
            else:
                kill(chosen.choice(pids))
        code = driver.process.wait(max(1.0, DEADLINE_SECONDS - (time.monotonic() - began)))
    finally:
        if driver.process.poll() is None:
            kill_tree(driver.process, RAY_ENDS_SECONDS)
    told.printed += driver.printed()
    told.seconds = time.monotonic() - began
    print(f"kills {dict(told.kills)}, {told.kills_with_checkpoints} with a checkpoint, {told.seconds:.0f} s")  # noqa: T201
    assert code == 1, told.printed
    return told


def test_all_kills_came_and_some_in_the_middle_of_training(story: Story) -> None:
    assert story.kills == Counter(KILLS)
    assert story.kills_with_checkpoints >= 3


def test_the_rotten_expert_failed_alone_and_the_reason_is_said(story: Story) -> None:
    for run in (story.run, story.undisturbed):
        status = story.read(run, story.rotten, "status.json")
        assert status["state"] == "failed"
        assert "decoded" in status["reason"]
        assert not (run / "experts" / story.rotten / "open_clip_config.json").exists()
    assert f"{story.rotten}: " in story.printed
    assert f"1 of {EXPERTS + 1} runs failed (the others are finished)" in story.printed
    states = {name: story.read(story.run, name, "status.json")["state"] for name in ("seed", *story.experts())}
    assert set(states.values()) == {"finished"}, states


def test_the_ledgers_are_those_of_the_undisturbed_run(story: Story) -> None:
    for name in ("seed", *story.experts()):
        ends = [story.read(run, name, "metrics.json") for run in (story.run, story.undisturbed)]
        for fact in ("ledger", "samples_seen", "skipped", "bad_images"):
            assert ends[0][fact] == ends[1][fact], (name, fact)
        assert ends[0]["ledger"] > 0


def test_the_weights_are_those_of_the_undisturbed_run(story: Story) -> None:
    for name in ("seed", *story.experts()):
        files = [run / "experts" / name / "open_clip_model.safetensors" for run in (story.run, story.undisturbed)]
        assert files[0].read_bytes() == files[1].read_bytes(), name


def test_a_killed_worker_costs_no_launch(story: Story) -> None:
    runs = ["seed", *story.experts(), story.rotten]
    launches = sum(story.read(story.run, name, "status.json")["launches"] for name in runs)
    # A controller's kill costs its run one, a driver's those of its slots; and each driver tries the rotten one again.
    allowed = len(runs) + story.kills["controller"] + (SLOTS + 1) * story.kills["driver"]
    assert len(runs) < launches <= allowed


def test_lost_workers_and_launches_are_reported_with_rays_reason(story: Story) -> None:
    lost = [line for line in story.printed.splitlines() if "interrupted (" in line]
    # A loss just before a kill of the driver is not reported any more.
    assert len(lost) >= story.kills["worker"] + story.kills["controller"] - story.kills["driver"]
    assert any("samples: worker 0: Worker unexpectedly exits" in line for line in lost), lost
    assert any("samples: controller lost: " in line or "samples: launcher lost: " in line for line in lost), lost


def test_nothing_is_left_but_the_outcome(story: Story) -> None:
    experts = story.run / "experts"
    left = {str(folder.parent.relative_to(experts)) for folder in experts.glob(f"**/{CHECKPOINT_FOLDER}")}
    assert left <= {story.rotten}
    assert not (story.run / "experts/lease.json").exists()


def test_sigterm_writes_a_last_checkpoint_and_leaves_the_run_waiting(assigned: Path) -> None:
    run = assigned / "stopped"
    shutil.copytree(assigned / "assigned", run)
    changes = ["train.dense_samples=640000", "train.placement.checkpoint_interval_seconds=3600"]
    driver = command(assigned / "config.yaml", run, "train", *changes)
    try:
        wait_for(lambda: set(run.glob("experts/seed/progress.json")), driver)
        driver.process.terminate()
        assert driver.process.wait(120) != 0
    finally:
        if driver.process.poll() is None:
            driver.process.kill()
    status = json.loads((run / "experts/seed/status.json").read_text())
    (checkpoint,) = checkpoints_of(run)
    assert f"stopped; last checkpoints: seed at {status['checkpoint_samples']:,} samples" in driver.printed()
    assert status["state"] == "waiting"
    assert status["samples_seen"] == status["checkpoint_samples"] > 0
    assert checkpoint.name == checkpoint_name(status["checkpoint_samples"])
    assert not (run / "experts/lease.json").exists()


def victims_of(
    driver: Invocation, victim: str, named_below: Callable[["subprocess.Popen[bytes]", str], list[int]]
) -> set[int]:
    workers = set(named_below(driver.process, NAMES["worker"]))
    if victim == "driver":
        return {driver.process.pid} if workers else set()
    return workers if victim == "worker" else set(named_below(driver.process, NAMES[victim]))


def checkpoints_of(run: Path) -> set[Path]:
    """All checkpoints that stand."""
    return set(run.glob(f"experts/**/{CHECKPOINT_FOLDER}/*/checkpoint-*"))


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it may end by itself in this very moment
        os.kill(pid, signal.SIGKILL)


def running_with_checkpoint(run: Path) -> list[str]:
    """Runs under way that have a checkpoint to go on from."""
    return [
        str(checkpoints.relative_to(run))
        for checkpoints in run.glob(f"experts/**/{CHECKPOINT_FOLDER}/*")
        if whole_checkpoints(Location(str(checkpoints)))
    ]


def rot_one_expert(config: Path, run: Path) -> str:
    """Make the images of one expert undecodable, in files of the same size and time; returns its name."""
    clustering = Clustering.load(Location(str(run / "clusters")))
    group_m = clustering.coarse[EXPERTS]
    expert = clustering.widest_first(EXPERTS)[1]  # among the first to start, so that the others have to go on
    paths = load_config(str(config), []).captions.paths
    for tar in sorted(Path(paths[0]).parent.glob("*.tar")):
        times, content = tar.stat(), bytearray(tar.read_bytes())
        table = read_output(Location(str(run / "assignments")), unit_name(Location(str(tar))))
        for fine, offset in zip(table[FINE].to_pylist(), table["image_offset"].to_pylist(), strict=True):
            if group_m[fine] == expert:
                assert content[offset : offset + 4] == b"\x89PNG"
                content[offset : offset + 4] = b"\0\0\0\0"
        tar.write_bytes(content)
        os.utime(tar, ns=(times.st_atime_ns, times.st_mtime_ns))
    return f"n{EXPERTS}/{expert:02d}"
