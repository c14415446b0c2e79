"""KubeRay's autoscaler on the chart's RayCluster: it asks for CPU pods for assign, and gives them back.

Kubernetes is an API of the test whose pods are Ray nodes of this machine. It has no spot machines, so the pods of the
spot pool wait, until the autoscaler asks for the on-demand pool instead.
"""

import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from autoscaled_run import CAPTIONS_PER_UNIT, IDLE_SECONDS, NodeCounts, assign_on, write_run
from fault_runs import all_counted, manifest_of, wait_for
from helm_chart import render, required_helm
from kubernetes_api import HEAD_GROUP, HEAD_POD, KubeRay, kubernetes_api, start_options
from local_cluster import free_ports, local_cluster

from mode_ray.storage import Location

pytestmark = [pytest.mark.drill, pytest.mark.slow]

DEADLINE_SECONDS = 800.0
UNITS, WORKERS = 120, 2
SPOT_TIMEOUT_SECONDS = 40
"""Also of the machines that do come: longer than Ray takes to start."""
AUTOSCALER = """
import sys
from ray.autoscaler._private.kuberay.run_autoscaler import run_kuberay_autoscaler
run_kuberay_autoscaler(*sys.argv[1:])
"""


class Story(NamedTuple):
    """Numbers of nodes, the run, and the RayCluster at the end."""

    nodes: NodeCounts
    run: Path
    kuberay: KubeRay


def test_it_grows_from_the_head_to_three_nodes_and_shrinks_to_the_head(story: Story) -> None:
    assert story.nodes.changes[0] == 1
    assert max(story.nodes.changes) == 1 + WORKERS
    assert story.nodes.changes[-1] == 1


def test_it_gives_nothing_back_before_the_stage_ends(story: Story) -> None:
    assert story.nodes.at_end == 1 + WORKERS, story.nodes


def test_it_asks_for_spot_machines_first_and_never_for_gpus(story: Story) -> None:
    first, *_ = groups = story.kuberay.groups_by_time
    assert first == "cpu-spot"
    assert set(groups) == {"cpu-spot", "cpu-on-demand"}


def test_no_pod_is_left(story: Story) -> None:
    assert list(story.kuberay.pods) == [HEAD_POD]
    assert {group["replicas"] for group in story.kuberay.ray_cluster["spec"]["workerGroupSpecs"]} == {0}


def test_every_caption_is_assigned(story: Story) -> None:
    assert all_counted(manifest_of(Location(str(story.run)), "assign"), UNITS * CAPTIONS_PER_UNIT)


@pytest.fixture(scope="module")
def story(
    tmp_path_factory: pytest.TempPathFactory, kill_tree: Callable[["subprocess.Popen[bytes]", float], list[str]]
) -> Story:
    ray_cluster, pool = rendered(required_helm())
    folder = tmp_path_factory.mktemp("kuberay")
    config = write_run(folder, UNITS, {**pool, "min_actors": WORKERS, "max_actors": WORKERS})
    kuberay = KubeRay(ray_cluster, {"cpu-spot": 0})
    # KubeRay sets these in the pod of the head.
    head = {
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD_POD,
        "RAY_NODE_TYPE_NAME": HEAD_GROUP,
    }
    options = start_options(ray_cluster["spec"]["headGroupSpec"]) | {"no_monitor": None}
    with ExitStack() as stack:
        api = stack.enter_context(kubernetes_api(kuberay, folder))
        cluster = stack.enter_context(local_cluster(folder, kill_tree, {}, head, **options))
        kuberay.nodes = cluster
        given = {one["name"]: one["value"] for one in ray_cluster["spec"]["autoscalerOptions"]["env"]}
        (metrics_port,) = free_ports(1)
        ours = {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "AUTOSCALER_METRIC_PORT": str(metrics_port)}
        with (folder / "autoscaler.log").open("wb") as log:
            autoscaler = subprocess.Popen(
                [sys.executable, "-c", AUTOSCALER, kuberay.name, kuberay.namespace, cluster.gcs],
                env={**cluster.environment, **head, **api, **given, **ours},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        stack.callback(kill_tree, autoscaler, 0.0)
        nodes = assign_on(cluster, config, DEADLINE_SECONDS)
        # Pods are deleted some seconds after their drained nodes have left, and those without a machine at a timeout.
        wait_for(lambda: len(kuberay.pods) == 1)
        assert autoscaler.poll() is None, (folder / "autoscaler.log").read_text()
    return Story(nodes, folder / "run", kuberay)


def rendered(helm: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The chart's RayCluster for GKE with pods of one CPU, and the pool of `assign` in its config of a run."""
    sizes = [f"pools.{pool}.{field}" for pool in ("cpu-spot", "cpu-on-demand") for field in ("cpus=1", "max=2")]
    settings = (f"idleSeconds={IDLE_SECONDS}", f"spotTimeoutSeconds={SPOT_TIMEOUT_SECONDS}", *sizes)
    objects = render(helm, "values-gke.yaml", settings)
    (ray_cluster,) = (part for part in objects if part["kind"] == "RayCluster")
    (run,) = (part for part in objects if part["kind"] == "ConfigMap" and "run.yaml" in part["data"])
    return ray_cluster, yaml.safe_load(run["data"]["run.yaml"])["assign"]["pool"]
