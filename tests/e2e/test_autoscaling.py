"""The assign stage under Ray's autoscaler (v2, nodes that are processes of this machine): it asks, and gives back.

The head has no CPUs, as in `cluster_configs/`: every actor needs a worker node.
"""

import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from fault_runs import COMMAND, Invocation, all_counted, manifest_of, write_config
from local_cluster import OBJECT_STORE_BYTES, free_ports, local_cluster

from mode_ray.cluster.clustering import Clustering
from mode_ray.config.load import load_config
from mode_ray.embed.encoder import encoder_name
from mode_ray.embed.load import load_encoder
from mode_ray.storage import Location

pytestmark = [pytest.mark.drill, pytest.mark.slow]

DEADLINE_SECONDS = 170.0
UNITS, CAPTIONS_PER_UNIT = 120, 2_000
WORKERS = 2
IDLE_SECONDS = 5.0
THINGS = ("cat", "dog", "tree", "train", "violin", "harbour", "pizza", "castle")
# Ray's own provider of nodes that are processes, and the name it knows the head by.
HEAD_ID = "f" * 51 + "00000"
COMMANDS = (
    *("initialization", "setup", "head_setup", "worker_setup"),
    *("head_start_ray", "worker_start_ray"),
)
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"


@dataclass(frozen=True)
class Story:
    """Numbers of nodes as they changed, and what was done."""

    nodes: list[int]
    nodes_at_end: int
    run: Path
    seconds: float


def test_it_grows_from_one_node_to_three_and_shrinks_to_one(story: Story) -> None:
    assert story.nodes[0] == 1
    assert max(story.nodes) == 1 + WORKERS
    assert story.nodes[-1] == 1
    assert story.seconds < DEADLINE_SECONDS


def test_it_gives_nothing_back_before_the_stage_ends(story: Story) -> None:
    assert story.nodes_at_end == 1 + WORKERS, story.nodes


def test_every_caption_is_assigned(story: Story) -> None:
    assert all_counted(manifest_of(Location(str(story.run)), "assign"), UNITS * CAPTIONS_PER_UNIT)


@pytest.fixture(scope="module")
def story(
    tmp_path_factory: pytest.TempPathFactory, kill_tree: Callable[["subprocess.Popen[bytes]", float], list[str]]
) -> Story:
    folder = tmp_path_factory.mktemp("autoscaling")
    config, run = write_run(folder), folder / "run"
    began = time.monotonic()
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
        nodes = [cluster.alive_nodes()]

        def look() -> int:
            if (alive := cluster.alive_nodes()) != nodes[-1]:
                nodes.append(alive)
            assert time.monotonic() - began < DEADLINE_SECONDS, (nodes, driver.printed())
            time.sleep(0.5)
            return alive

        words = [str(COMMAND), "run", "--until", "assign", "--config", str(config), f"ray.address={cluster.gcs}"]
        driver = Invocation(words, folder / "driver.log")
        try:
            while driver.process.poll() is None:
                nodes_at_end = look()
        finally:
            if driver.process.poll() is None:
                driver.process.kill()
        while look() > 1:
            pass
    assert driver.process.returncode == 0, driver.printed()
    seconds = time.monotonic() - began
    print(f"nodes {nodes}, {seconds:.0f} s")  # noqa: T201 - pytest shows it where the test fails
    return Story(nodes, nodes_at_end, run, seconds)


def write_run(folder: Path) -> Path:
    """A config with a reused clustering, so that `assign` alone reads and encodes the captions."""
    captions, reused = Location(str(folder / "captions")), Location(str(folder / "reused"))
    for unit in range(UNITS):
        texts = [f"{THINGS[row % len(THINGS)]} number {row} of {unit}" for row in range(CAPTIONS_PER_UNIT)]
        (captions / f"{unit:04d}.parquet").write_table(pa.table({"caption": texts}))
    changes: dict[str, Any] = {
        "embed": {"keep": "sample"},
        "cluster": {"reuse": reused.uri},
        "assign": {"pool": {"min_actors": WORKERS, "max_actors": WORKERS}},
    }
    file = write_config(folder / "config.yaml", captions, **changes)
    config = load_config(str(file), [])
    centers_md = load_encoder(config.encoder, config.embed.encoder).encode(list(THINGS))
    m = len(centers_md)
    Clustering(
        centers_md=centers_md,
        prices_m=np.zeros(m),
        mass_m=np.ones(m, np.int64),
        squared_distance_m=np.ones(m),
        encoder_name=encoder_name(config.encoder),
        coarse={2: (np.arange(m) % 2).astype(np.int32)},
        training={"squared_distance_quantiles": {"0.5": 1.0, "0.99": 1.5}},
    ).save(reused)
    return file


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
