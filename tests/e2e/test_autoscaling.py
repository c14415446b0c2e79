"""The assign stage under Ray's autoscaler (v2, nodes that are processes of this machine): it asks, and gives back.

The head has no CPUs, as in `cluster_configs/`: every actor needs a worker node.
"""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from autoscaled_run import CAPTIONS_PER_UNIT, IDLE_SECONDS, NodeCounts, assign_on, write_run
from fault_runs import all_counted, manifest_of
from local_cluster import OBJECT_STORE_BYTES, free_ports, local_cluster

from mode_ray.storage import Location

pytestmark = [pytest.mark.drill, pytest.mark.slow]

DEADLINE_SECONDS = 170.0
UNITS = 120
WORKERS = 2
# Ray's own provider of nodes that are processes, and the name it knows the head by.
HEAD_ID = "f" * 51 + "00000"
COMMANDS = (
    *("initialization", "setup", "head_setup", "worker_setup"),
    *("head_start_ray", "worker_start_ray"),
)
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"


class Story(NamedTuple):
    """Numbers of nodes, and the run."""

    nodes: NodeCounts
    run: Path


def test_it_grows_from_one_node_to_three_and_shrinks_to_one(story: Story) -> None:
    assert story.nodes.changes[0] == 1
    assert max(story.nodes.changes) == 1 + WORKERS
    assert story.nodes.changes[-1] == 1


def test_it_gives_nothing_back_before_the_stage_ends(story: Story) -> None:
    assert story.nodes.at_end == 1 + WORKERS, story.nodes


def test_every_caption_is_assigned(story: Story) -> None:
    assert all_counted(manifest_of(Location(str(story.run)), "assign"), UNITS * CAPTIONS_PER_UNIT)


@pytest.fixture(scope="module")
def story(
    tmp_path_factory: pytest.TempPathFactory, kill_tree: Callable[["subprocess.Popen[bytes]", float], list[str]]
) -> Story:
    folder = tmp_path_factory.mktemp("autoscaling")
    config = write_run(folder, UNITS, {"min_actors": WORKERS, "max_actors": WORKERS})
    (port,) = free_ports(1)
    (folder / "autoscaling.json").write_text(json.dumps(autoscaling(f"127.0.0.1:{port}")))
    further = {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }
    options = {"port": port, "num_cpus": 0, "autoscaling_config": folder / "autoscaling.json"}
    with local_cluster(folder, kill_tree, further, **options) as cluster:
        return Story(assign_on(cluster, config, DEADLINE_SECONDS), folder / "run")


def autoscaling(gcs_address: str) -> dict[str, Any]:
    """The autoscaler's config: a head without CPUs, and workers with one each."""
    return {
        "cluster_name": "drill",
        "max_workers": WORKERS,
        "idle_timeout_minutes": IDLE_SECONDS / 60,
        "provider": {
            "type": "external",
            "module": PROVIDER,
            "gcs_address": gcs_address,
            "head_node_id": HEAD_ID,
            "launch_multiple": True,
        },
        "auth": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "rsync_exclude": [],
        "rsync_filter": [],
        **{f"{when}_commands": [] for when in COMMANDS},
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "cpu": {
                "resources": {"CPU": 1, "object_store_memory": OBJECT_STORE_BYTES},
                "node_config": {},
                "min_workers": 0,
                "max_workers": WORKERS,
            },
        },
    }
