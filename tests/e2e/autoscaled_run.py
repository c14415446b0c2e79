"""The assign stage on a cluster that an autoscaler grows and shrinks: the run, and the numbers of nodes meanwhile."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from fault_runs import COMMAND, Invocation, write_config
from local_cluster import LocalCluster

from mode_ray.cluster.clustering import Clustering
from mode_ray.config.load import load_config
from mode_ray.embed.encoder import encoder_name
from mode_ray.embed.load import load_encoder
from mode_ray.storage import Location

CAPTIONS_PER_UNIT = 2_000
IDLE_SECONDS = 5
THINGS = ("cat", "dog", "tree", "train", "violin", "harbour", "pizza", "castle")


@dataclass(frozen=True)
class NodeCounts:
    """Numbers of nodes as they changed, and when the stage ended."""

    changes: list[int]
    at_end: int
    seconds: float


def assign_on(cluster: LocalCluster, config: Path, deadline_seconds: float) -> NodeCounts:
    """Run `assign`, and wait until the cluster has only its head again."""
    began = time.monotonic()
    nodes = [cluster.alive_nodes()]
    words = [str(COMMAND), "run", "--until", "assign", "--config", str(config), f"ray.address={cluster.gcs}"]
    driver = Invocation(words, config.parent / "driver.log")

    def look() -> int:
        if (alive := cluster.alive_nodes()) != nodes[-1]:
            nodes.append(alive)
        assert time.monotonic() - began < deadline_seconds, (nodes, driver.printed())
        time.sleep(0.5)
        return alive

    try:
        while driver.process.poll() is None:
            at_end = look()
    finally:
        if driver.process.poll() is None:
            driver.process.kill()
    while look() > 1:
        pass
    assert driver.process.returncode == 0, driver.printed()
    seconds = time.monotonic() - began
    print(f"nodes {nodes}, {seconds:.0f} s")  # noqa: T201 - pytest shows it where the test fails
    return NodeCounts(nodes, at_end, seconds)


def write_run(folder: Path, units: int, pool: dict[str, Any]) -> Path:
    """A config with a reused clustering, so that `assign` alone reads and encodes the captions."""
    captions, reused = Location(str(folder / "captions")), Location(str(folder / "reused"))
    for unit in range(units):
        texts = [f"{THINGS[row % len(THINGS)]} number {row} of {unit}" for row in range(CAPTIONS_PER_UNIT)]
        (captions / f"{unit:04d}.parquet").write_table(pa.table({"caption": texts}))
    changes: dict[str, Any] = {
        "embed": {"keep": "sample"},
        "cluster": {"reuse": reused.uri},
        "assign": {"pool": pool},
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
