"""A run on spot machines loses the only one while an on-demand machine is idle; later experts find no spot machine.

The cluster is a head without CPUs and nodes of this machine with the labels of both markets.
"""

import json
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from expert_runs import BATCH, command, ended, write_small_run
from fault_runs import COMMAND, Invocation, wait_for
from local_cluster import local_cluster

from mode_ray.run_directory import CHECKPOINT_FOLDER

pytestmark = [pytest.mark.drill, pytest.mark.slow]

WAIT_SECONDS = 4
STEPS = 600  # of the seed: more than a fast machine trains until the first checkpoint is found and its node killed
KillTree = Callable[["subprocess.Popen[bytes]", float], list[str]]
NAMES = ("seed", "n2/00", "n2/01")


@dataclass(frozen=True)
class Story:
    """What the run's directory held, and what its driver printed."""

    code: int
    printed: str
    shown: str
    saved_samples: int
    first_samples: int
    statuses: Mapping[str, Mapping[str, Any]]
    metrics: Mapping[str, Any]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, kill_tree: KillTree) -> Story:
    folder = tmp_path_factory.mktemp("on-demand")
    config, run = write_small_run(folder, 96), folder / "run"
    with local_cluster(folder, kill_tree, {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}, num_cpus=0) as cluster:
        cluster.add_node(num_cpus=2, labels="ray.io/market-type=on-demand")
        # Two nodes that start at the same time disturb each other.
        wait_for(lambda: cluster.alive_nodes() == 2)
        spot = cluster.add_node(num_cpus=2, labels="ray.io/market-type=spot")
        changes = [
            f"ray.address={cluster.gcs}",
            # Few steps for the experts: they only have to start.
            f"train.dense_samples={round(STEPS * BATCH / 0.98)}",
            "train.seed_share=0.98",
            "train.placement.checkpoint_interval_seconds=1",
            'train.placement.label_selector={"ray.io/market-type": "spot"}',
            f"train.placement.on_demand_after_seconds={WAIT_SECONDS}",
            # A relaunch that counted as a failed launch would end the run.
            "train.placement.max_launches=1",
            "train.placement.max_failures=1",
        ]
        driver = command(config, run, "run --until train", *changes)
        try:
            wait_for(lambda: checkpoints_of(run), driver)
            cluster.kill_node(spot)
            saved, progress = int(checkpoints_of(run)[-1].name.split("-")[1]), run / "experts/seed/progress.json"
            progress.unlink(missing_ok=True)
            wait_for(lambda: status_of(run, "seed").get("on_demand", False), driver)
            shown = Invocation([str(COMMAND), "status", str(run)], folder / "status.log")
            ended(shown)
            wait_for(progress.exists, driver)
            first_samples = int(json.loads(progress.read_text())["samples"])
            code = ended(driver)
        finally:
            if driver.process.poll() is None:
                kill_tree(driver.process, 5.0)
    metrics = json.loads((run / "experts/seed/metrics.json").read_text())
    statuses = {name: status_of(run, name) for name in NAMES}
    return Story(code, driver.printed(), shown.printed(), saved, first_samples, statuses, metrics)


def test_every_run_finishes_on_the_on_demand_machine(story: Story) -> None:
    assert story.code == 0, story.printed
    assert {name: status["state"] for name, status in story.statuses.items()} == dict.fromkeys(NAMES, "finished")
    assert all(status["on_demand"] for status in story.statuses.values())


def test_each_is_launched_twice_and_only_the_lost_machine_is_an_interruption(story: Story) -> None:
    launches = {name: (status["launches"], status["interruptions"]) for name, status in story.statuses.items()}
    assert launches == {"seed": (2, 1), "n2/00": (2, 0), "n2/01": (2, 0)}


def test_the_run_that_lost_its_machine_resumes_from_its_checkpoint(story: Story) -> None:
    assert 0 < story.saved_samples < story.first_samples
    assert story.metrics["samples_seen"] == STEPS * BATCH


def test_log_and_status_report_it(story: Story) -> None:
    for name in NAMES:
        line = (
            f"{name}: no machine for its workers within {WAIT_SECONDS} s; it is launched again on on-demand machines"
        )
        assert line in story.printed
    assert "requests on-demand machines" in " ".join(story.shown.split())
    assert "Traceback" not in story.printed


def status_of(run: Path, name: str) -> dict[str, Any]:
    file = run / f"experts/{name}/status.json"
    status: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return status


def checkpoints_of(run: Path) -> list[Path]:
    return sorted(run.glob(f"experts/seed/{CHECKPOINT_FOLDER}/*/checkpoint-*"))
