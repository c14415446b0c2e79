"""`mode-ray run --until assign` on 100 captions takes less than 20 seconds on two cores, from the command to its end.

The peer is Ray alone: a process that starts the same session, runs one empty task and ends the session. What is above
it is ours: imports, three stages and the atlas. The first record is the first file of embeddings in the run directory.
Every round starts from an empty run directory.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from captions import STATIC_TABLE, real_captions
from frame import OURS, alternate, arguments, finish

CAPTIONS = 100
_POLL_SECONDS = 0.02
# As after an installation: without bytecode, every process would compile the package.
_ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
_RAY_ALONE = """
import ray
from mode_ray.config.run import RayConfig
from mode_ray.stages.session import ray_session

with ray_session(RayConfig()):
    ray.get(ray.remote(lambda: None).remote())
"""


class SmallRun:
    """Runs of the same captions, each in a directory of its own.

    Args:
        folder: Holds captions, config and run directories.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rounds = 0
        self.first_record_seconds: list[float] = []
        pq.write_table(pa.table({"caption": real_captions(CAPTIONS)}), folder / "captions.parquet")
        config = {
            "run": str(folder / "run"),
            "captions": {"paths": [str(folder / "captions.parquet")]},
            "encoder": {"kind": "static", "model": STATIC_TABLE},
            "cluster": {"fine": {"centers": 8}, "coarse": {"experts": [2]}},
        }
        self._config = folder / "config.yaml"
        self._config.write_text(yaml.safe_dump(config))

    def __call__(self) -> None:
        """Run once, from the command to the end of its process."""
        self._rounds += 1
        run = self._folder / f"run-{self._rounds}"
        command = [sys.executable, "-m", "mode_ray", "run", "--config", str(self._config), "--until", "assign"]
        ended = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(run / "embeddings", ended))
        watcher.start()
        try:
            subprocess.run([*command, f"run={run}"], check=True, stdout=subprocess.DEVNULL, env=_ENVIRONMENT)
        finally:
            ended.set()
            watcher.join()
        manifest = json.loads((run / "assignments" / "manifest.json").read_text())
        if manifest["rows_out"] != CAPTIONS:
            raise RuntimeError(f"{manifest['rows_out']} of {CAPTIONS} captions were assigned")

    def _watch(self, embeddings: Path, ended: threading.Event) -> None:
        began = time.perf_counter()
        while not ended.wait(_POLL_SECONDS):
            # A file has its name only when it is complete.
            if any(file.name != "units.parquet" for file in embeddings.glob("[!.]*.parquet")):
                self.first_record_seconds.append(time.perf_counter() - began)
                return


def ray_alone() -> None:
    """Start a session, run a task, and end the session."""
    subprocess.run([sys.executable, "-c", _RAY_ALONE], check=True, env=_ENVIRONMENT)


def main() -> None:
    """Measure and print."""
    options = arguments(__doc__ or "").parse_args()
    rounds = options.repeats or (1 if options.quick else 5)
    with tempfile.TemporaryDirectory() as folder:
        run = SmallRun(Path(folder))
        timings = alternate(run, {"ray_alone": ray_alone}, rounds, warm_up=not options.quick)
    first_record_seconds = run.first_record_seconds[-rounds:]
    finish(
        "small_run",
        {
            "first_record_seconds": statistics.median(first_record_seconds),
            "run_100_captions_seconds": timings.median_seconds[OURS],
        },
        {
            "rounds": rounds,
            "captions": CAPTIONS,
            "seconds": dict(timings.seconds),
            "first_record_seconds": first_record_seconds,
            "vs_ray_alone": 1.0 / timings.speed_up("ray_alone"),
        },
    )


if __name__ == "__main__":
    main()
