"""A driver with a metrics port: runs all stages, says so, and keeps what it exports until its input ends.

python pipeline_metrics_driver.py CONFIG METRICS_PORT
"""

import sys

import ray
from rich.console import Console

from mode_ray.cluster import stage as cluster_stage
from mode_ray.config.load import load_config
from mode_ray.observe.progress import Progress
from mode_ray.pipeline import Pipeline
from mode_ray.run_directory import STAGE_NAMES
from mode_ray.train.runs import scheduler

LOOK_SECONDS = 0.02


def main(config_file: str, port: int) -> None:
    """Run the stages, then say `ready` and wait for the end of the input."""
    # So small a fit and so small training runs are over before anyone looks as seldom as for real ones.
    cluster_stage._LOOK_SECONDS = scheduler._POLL_SECONDS = scheduler._PROGRESS_SECONDS = LOOK_SECONDS
    ray.init(address="local", num_cpus=2, object_store_memory=100_000_000, _metrics_export_port=port)
    pipeline = Pipeline.open(load_config(config_file), Progress(Console(stderr=True)))
    pipeline.run(STAGE_NAMES)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.read()
    del pipeline  # its metrics lived as long
    ray.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
