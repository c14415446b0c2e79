"""A program with two Ray sessions, one after the other; prints what the test asks of each as JSON."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import ray
from listeners import listeners_below

from mode_ray.config.run import RayConfig
from mode_ray.stages.session import ray_session


def main() -> None:
    before = dict(os.environ)
    sessions = [_session() for _ in range(2)]
    after = dict(os.environ)
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    json.dump({"sessions": sessions, "changed": changed}, sys.stdout)


def _session() -> dict[str, Any]:
    with ray_session(RayConfig(num_cpus=1, object_store_bytes=100_000_000, dashboard=False)):
        path = os.environ.get("RAY_AUTH_TOKEN_PATH")
        seen_by_a_worker: str = ray.get(ray.remote(lambda: os.environ["RAY_AUTH_MODE"]).remote())
        return {
            "token": Path(path).read_text() if path else None,
            "mode": seen_by_a_worker,
            "listeners": [(*entry, entry.is_loopback) for entry in listeners_below(os.getpid())],
        }


if __name__ == "__main__":
    main()
