"""The demo as a job on a cluster with a token, in the smallest settings: from packages' pictures to the report."""

import secrets
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from local_cluster import RAY, local_cluster

from mode_ray.cli.pipeline import next_steps

pytestmark = [pytest.mark.drill, pytest.mark.slow]

REPOSITORY = Path(__file__).resolve().parents[2]
DEADLINE_SECONDS = 400.0
SMALLEST = (
    "encoder.kind=static",
    "encoder.model=package:wordllama",
    "train.dense_samples=1024",
    "train.batch_size=64",
    "train.optimizer.warmup_samples=128",
    "train.controls=[]",
    "train.placement.workers_per_run=0",
)


def test_the_demo_runs_as_a_job(
    tmp_path: Path, kill_tree: Callable[["subprocess.Popen[bytes]", float], list[str]]
) -> None:
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    with local_cluster(tmp_path, kill_tree, token, num_cpus=2) as cluster:
        ended = subprocess.run(
            [
                *(str(RAY), "job", "submit", "--address", cluster.dashboard, "--working-dir", ".", "--"),
                *("mode-ray", "demo", "--directory", str(tmp_path / "demo"), *SMALLEST),
            ],
            cwd=REPOSITORY,
            env=cluster.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=DEADLINE_SECONDS,
            check=False,
        )
    assert ended.returncode == 0, ended.stdout
    report = tmp_path / "demo/run/evaluation/report.html"
    for line in next_steps(str(tmp_path / "demo/run"), "/evaluation/report.html"):
        assert line in ended.stdout
    assert report.is_file()
