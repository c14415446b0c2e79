"""An elastic training run on a cluster that loses a node and gets another."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from expert_runs import BATCH, DEADLINE_SECONDS, assigned_run, command, ended
from fault_runs import Invocation
from ray.cluster_utils import Cluster

pytestmark = [pytest.mark.drill, pytest.mark.slow]

STEPS = 3_000  # more than a fast machine trains while a node starts
ELASTIC = (
    "train.placement.max_workers_per_run=2",
    "train.placement.resize_interval_seconds=3",
    # The seed alone is trained.
    f"train.dense_samples={2 * STEPS * BATCH}",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a config and a run whose captions are assigned."""
    folder = tmp_path_factory.mktemp("train-elastic")
    assigned_run(folder)
    return folder


@pytest.fixture(scope="module")
def told(folder: Path) -> tuple[list[int], dict[str, Any], dict[str, Any]]:
    """Numbers of workers in the order they were seen, and the metrics of this run and of an undisturbed one."""
    config, run, undisturbed = folder / "config.yaml", folder / "elastic", folder / "inelastic"
    for copy in (run, undisturbed):
        shutil.copytree(folder / "assigned", copy)
    retry = ("train retry", "seed")
    alone = ("train.placement.workers_per_run=0", ELASTIC[-1])
    assert ended(command(config, undisturbed, *retry, *alone)) == 0
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 200_000_000})
    try:
        node = cluster.add_node(num_cpus=1, object_store_memory=200_000_000)
        driver = command(config, run, *retry, *ELASTIC, f"ray.address={cluster.address}")
        seen = [wait_for_workers(driver, run, 2)]
        cluster.remove_node(node, allow_graceful=False)
        seen.append(wait_for_workers(driver, run, 1))
        cluster.add_node(num_cpus=1, object_store_memory=200_000_000)
        seen.append(wait_for_workers(driver, run, 2))
        assert ended(driver) == 0
    finally:
        cluster.shutdown()  # type: ignore[no-untyped-call]
    metrics = [json.loads((one / "experts/seed/metrics.json").read_text()) for one in (run, undisturbed)]
    return seen, metrics[0], metrics[1]


def test_it_shrank_with_the_lost_node_and_grew_with_the_new_one(told: tuple[list[int], Any, Any]) -> None:
    assert told[0] == [2, 1, 2]


def test_it_saw_the_very_samples_of_an_undisturbed_run(told: tuple[Any, dict[str, Any], Any]) -> None:
    _, elastic, undisturbed = told
    for fact in ("ledger", "samples_seen", "skipped"):
        assert elastic[fact] == undisturbed[fact], fact
    assert elastic["samples_seen"] == STEPS * BATCH


def test_its_loss_is_that_of_the_undisturbed_run(told: tuple[Any, dict[str, Any], Any]) -> None:
    # Two workers add the same numbers in another order than one; after so many steps that shows.
    first, last = [[metrics["history"][place]["loss"] for metrics in told[1:]] for place in (0, -1)]
    assert first[0] > 3.0
    assert last[0] == pytest.approx(last[1], abs=0.2)


@pytest.mark.usefixtures("told")
def test_a_lost_node_costs_no_launch(folder: Path) -> None:
    status = json.loads((folder / "elastic/experts/seed/status.json").read_text())
    assert (status["state"], status["launches"]) == ("finished", 1)


def wait_for_workers(driver: Invocation, run: Path, workers: int) -> int:
    """Poll until the seed is trained by so many workers, and has got on with them."""
    file, first, began = run / "experts/seed/progress.json", None, time.monotonic()
    while True:
        assert driver.process.poll() is None, driver.printed()
        assert time.monotonic() - began < DEADLINE_SECONDS / 3, driver.printed()
        time.sleep(0.2)
        progress = json.loads(file.read_text()) if file.exists() else {"workers": 0}
        if progress["workers"] != workers:
            continue
        first = progress["samples"] if first is None else first
        if progress["samples"] > first:
            return workers
