"""A spot machine is announced to end while an expert trains on it; later its worker is killed twice without progress.

The cloud is a metadata server of the test; the cluster is a head without CPUs and worker nodes of this machine.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from expert_runs import BATCH, command, ended, write_small_run
from fault_runs import Invocation, wait_for
from local_cluster import local_cluster
from metadata_server import metadata_server

from mode_ray.deploy.spot_watcher import local_ray_nodes
from mode_ray.run_directory import CHECKPOINT_FOLDER

pytestmark = [pytest.mark.drill, pytest.mark.slow]

NOTICE_SECONDS = 30.0
"""The shortest notice of a cloud. Watcher, Ray and worker look for it every five seconds each."""
NamedBelow = Callable[["subprocess.Popen[bytes]", str], list[int]]
KillTree = Callable[["subprocess.Popen[bytes]", float], list[str]]


@dataclass(frozen=True)
class Story:
    """What the run's directory held at each point."""

    watcher: str
    checkpoints_at_notice: int
    checkpoint_samples: int
    notes: list[str]
    launches: int
    code: int
    printed: str
    reason: str
    states: dict[str, str]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, kill_tree: KillTree, named_below: NamedBelow) -> Story:
    folder = tmp_path_factory.mktemp("spot")
    config, run = write_small_run(folder, 96), folder / "run"
    before = {number.node_id for number in local_ray_nodes()}
    with (
        metadata_server() as cloud,
        local_cluster(folder, kill_tree, {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}, num_cpus=0) as cluster,
    ):
        before |= {node.node_id for node in local_ray_nodes()}
        spot = cluster.add_node(num_cpus=2)
        changes = [
            f"ray.address={cluster.gcs}",
            f"train.dense_samples={400_000 * BATCH}",
            "train.placement.checkpoint_interval_seconds=3600",
            "train.placement.max_failures=1",
        ]
        driver = command(config, run, "run --until train", *changes)
        try:
            wait_for((run / "experts/seed/progress.json").exists, driver)
            (spot_id,) = {node.node_id for node in local_ray_nodes()} - before
            watcher = subprocess.Popen(
                [
                    *(sys.executable, "-m", "mode_ray.deploy.spot_watcher", "--cloud", "aws"),
                    *("--endpoint", cloud.url, "--node-id", spot_id),
                ],
                stderr=subprocess.PIPE,
                text=True,
                env=cluster.environment,
            )
            at_notice = len(checkpoints_of(run))
            cluster.add_node(num_cpus=2)
            cloud.end_unix_seconds = time.time() + NOTICE_SECONDS
            wait_for(lambda: checkpoints_of(run), driver)
            _, said = watcher.communicate(timeout=30)
            time.sleep(max(0.0, cloud.end_unix_seconds - time.time()))
            cluster.kill_node(spot)
            kill_next_worker = partial(kill_when_it_trains, run, cluster.nodes[0], named_below, driver)
            kill_next_worker(time.time())
            notes = json.loads((run / "experts/seed/interruptions.json").read_text())
            launches = status_of(run, "seed")["launches"]
            kill_next_worker(time.time())
            code = ended(driver)
        finally:
            if driver.process.poll() is None:
                kill_tree(driver.process, 5.0)
    statuses = {name: status_of(run, name) for name in ("seed", "n2/00")}
    return Story(
        said,
        at_notice,
        int(checkpoints_of(run)[-1].name.split("-")[1]),
        notes,
        launches,
        code,
        driver.printed(),
        statuses["seed"]["reason"],
        {name: status["state"] for name, status in statuses.items()},
    )


def test_the_watcher_drains_the_node_after_the_notice(story: Story) -> None:
    assert "drained " in story.watcher


def test_the_notice_is_worth_one_more_checkpoint(story: Story) -> None:
    assert story.checkpoints_at_notice == 0
    assert story.notes[0] == f"a machine is preempted; checkpoint at {story.checkpoint_samples:,} samples"
    assert all("preempted" not in note for note in story.notes[1:])


def test_the_preemption_costs_neither_a_launch_nor_a_failure(story: Story) -> None:
    assert story.launches == 1
    assert "2 failures without a newer checkpoint, more than train.placement.max_failures=1" in story.reason


def test_the_run_that_fails_without_progress_ends_with_its_reason(story: Story) -> None:
    assert story.code == 1, story.printed
    assert story.states == {"seed": "failed", "n2/00": "failed"}
    assert "Traceback" not in story.printed


def status_of(run: Path, name: str) -> dict[str, Any]:
    status: dict[str, Any] = json.loads((run / f"experts/{name}/status.json").read_text())
    return status


def kill_when_it_trains(
    run: Path, node: "subprocess.Popen[bytes]", named_below: NamedBelow, driver: Invocation, since: float
) -> None:
    """Kill the training worker on a node once it has written progress after a point in time."""
    progress = run / "experts/seed/progress.json"
    wait_for(lambda: progress.exists() and progress.stat().st_mtime > since, driver)
    (worker,) = named_below(node, "ray::RayTrainWo")
    os.kill(worker, signal.SIGKILL)


def checkpoints_of(run: Path) -> list[Path]:
    return sorted(run.glob(f"experts/seed/{CHECKPOINT_FOLDER}/*/checkpoint-*"))
