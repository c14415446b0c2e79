"""A driver with a metrics port: runs three stages, tells of a fit, of training and of routing, and waits.

python pipeline_metrics_driver.py CONFIG METRICS_PORT
"""

import sys
import time
from dataclasses import asdict

import ray
from rich.console import Console

from mode_ray.cluster.kmeans import IterationReport
from mode_ray.config_file import load_config
from mode_ray.metrics import PipelineMetrics
from mode_ray.pipeline import Pipeline
from mode_ray.progress import Progress
from mode_ray.train.trial_status import TrialStatus


def main(config_file: str, port: int) -> None:
    """Run the stages, then say `ready` and wait for the end of the input."""
    ray.init(address="local", num_cpus=2, object_store_memory=100_000_000, _metrics_export_port=port)
    config = load_config(config_file)
    Pipeline(config, Progress(Console(stderr=True))).run(("embed", "cluster", "assign"))
    metrics = PipelineMetrics(config.directory.uri)
    metrics.begin("cluster", 1, 0, 0)  # a fit as small as this one is over before anyone looks
    metrics.iteration(asdict(IterationReport(3, 12.5, 1.2, 1.01, 0.9, 0)))
    metrics.begin("train", 1, 0, 0)
    running = TrialStatus(
        trial="n2/00",
        state="running",
        samples=8000,
        launches=2,
        samples_seen=400,
        workers=1,
        samples_per_second=100.0,
        loss=1.5,
        data_wait_share=0.25,
        checkpoint_unix_seconds=time.time(),
    )
    metrics.trials({"n2/00": running})
    metrics.begin("evaluate", 1, 0, 0)
    metrics.routing({"pets": 0.5})
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.read()
    ray.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
