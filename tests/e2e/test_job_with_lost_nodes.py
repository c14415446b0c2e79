"""The pipeline as a job, with a token, on a head without CPUs and two workers: nodes are lost, the report is not.

One worker node is killed in `assign` and one, with a training worker on it, in `train`; each is replaced, as an
autoscaler would. The report must be that of a run that was left in peace, and so must the bytes of the models.
"""

import json
import secrets
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from expert_runs import BATCH, command, ended, picture, write_config
from fault_runs import Ended, Invocation, wait_for
from local_cluster import RAY, LocalCluster, local_cluster

from mode_ray.run_directory import CHECKPOINT_FOLDER
from mode_ray.stages.manifest import unit_outputs
from mode_ray.storage import Location

pytestmark = [pytest.mark.drill, pytest.mark.slow]

JOB = "pipeline-with-lost-nodes"
UNITS, CAPTIONS_PER_UNIT, STEPS = 48, 8, 80
MODELS = ("seed", "n2/00", "n2/01")
# What differs between two runs in any case: where and when they ran, how long, and at which steps the loss of a run
# that was started anew was written down.
OF_THE_RUN = {"run", "created", "stages", "machine", "versions", "losses"}

NamedBelow = Callable[["subprocess.Popen[bytes]", str], list[int]]


@dataclass(frozen=True)
class Story:
    """Both runs, and what happened."""

    undisturbed: Path
    run: Path
    last: Ended
    assigned_at_first_kill: int
    refused_without_token: str
    interrupted: Ended

    def report(self, run: Path) -> dict[str, Any]:
        report: dict[str, Any] = json.loads((run / "evaluation/report.json").read_text())
        return {key: value for key, value in report.items() if key not in OF_THE_RUN}


@pytest.fixture(scope="module")
def story(
    tmp_path_factory: pytest.TempPathFactory,
    kill_tree: Callable[["subprocess.Popen[bytes]", float], list[str]],
    named_below: NamedBelow,
) -> Story:
    folder = tmp_path_factory.mktemp("lost-nodes")
    config, run, undisturbed = write_run(folder), folder / "run", folder / "undisturbed"
    assert ended(command(config, undisturbed, "run", "train.placement.workers_per_run=0", "ray.dashboard=false")) == 0
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    further = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token.read_text(),
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    }
    began = time.monotonic()
    with local_cluster(folder, kill_tree, further, num_cpus=0) as cluster:
        for _ in range(2):
            cluster.add_node()
        submit = [
            *("submit", "--submission-id", JOB, "--working-dir", str(folder / "model")),
            *("--", "mode-ray", "run", "--config", str(config)),
        ]
        refused = ray_job(cluster, None, *submit).ended().printed
        job = ray_job(cluster, token, *submit)
        try:
            assigned = wait_for(lambda: len(unit_outputs(Location(str(run / "assignments")))), job)
            lose(cluster, cluster.nodes[0])
            job.process.send_signal(signal.SIGINT)
            interrupted = job.ended()
            job = ray_job(cluster, token, "logs", "--follow", JOB)
            wait_for(lambda: whole_checkpoints(run), job)
            training = next(node for node in cluster.nodes if named_below(node, "ray::RayTrainWo"))
            lose(cluster, training)
            last = job.ended()
        finally:
            if job.process.poll() is None:
                job.process.kill()
    seconds = time.monotonic() - began
    print(f"{last.printed}\nassigned at first kill: {assigned} of {UNITS}; {seconds:.0f} s")  # noqa: T201
    return Story(undisturbed, run, last, assigned, refused, interrupted)


def test_the_job_ends_well(story: Story) -> None:
    assert story.last.exit_code == 0, story.last.printed
    assert "report: " in story.last.printed


def test_the_first_node_was_lost_in_the_middle_of_assign(story: Story) -> None:
    assert 0 < story.assigned_at_first_kill < UNITS


def test_the_second_was_lost_with_a_training_worker_at_no_launchs_cost(story: Story) -> None:
    statuses = [json.loads((story.run / "experts" / model / "status.json").read_text()) for model in MODELS]
    assert [(status["state"], status["launches"]) for status in statuses] == [("finished", 1)] * len(MODELS)


def test_the_report_is_that_of_the_undisturbed_run(story: Story) -> None:
    mine, theirs = story.report(story.run), story.report(story.undisturbed)
    assert mine.keys() == theirs.keys()
    for key in mine:
        assert mine[key] == theirs[key], key


def test_so_are_the_bytes_of_the_models(story: Story) -> None:
    for model in MODELS:
        files = [run / "experts" / model / "open_clip_model.safetensors" for run in (story.run, story.undisturbed)]
        assert files[0].read_bytes() == files[1].read_bytes(), model


def test_without_the_token_nothing_is_submitted(story: Story) -> None:
    assert "Missing authentication token" in story.refused_without_token


def test_ctrl_c_leaves_the_job_alone(story: Story) -> None:
    assert story.interrupted.exit_code != 0
    assert story.last.exit_code == 0


def write_run(folder: Path) -> Path:
    """A config with two experts, its pairs in many small shards, and a retrieval task over some of them."""
    things = ("cat", "whale", "oven", "violin", "tractor", "rocket", "tram", "stapler")
    rows = [(f"a {things[row % 8]} in place {row}", picture(row)) for row in range(UNITS * CAPTIONS_PER_UNIT)]
    for unit in range(UNITS):
        captions, images = zip(*rows[unit::UNITS], strict=True)
        table = pa.table({"caption": captions, "image": pa.array(images, pa.binary())})
        Location(str(folder / f"pairs/{unit:03d}.parquet")).write_table(table)
    task = {
        "name": "pairs",
        "kind": "retrieval",
        "paths": [str(folder / "pairs/00*.parquet")],
    }
    (folder / "task.yaml").write_text(yaml.safe_dump(task))
    file = write_config(folder)
    values = yaml.safe_load(file.read_text())
    values["captions"]["paths"] = [str(folder / "pairs/*.parquet")]
    values["cluster"] = {"sample_rows": 320, "fine": {"centers": 16, "iterations": 5}, "coarse": {"experts": [2]}}
    values["assign"]["pool"] = {"min_actors": 2, "max_actors": 2}
    values["train"] |= {"experts": 2, "dense_samples": 2 * STEPS * BATCH}
    values["train"]["placement"] |= {"max_failures": 3, "max_launches": 3}
    values["evaluate"] = {"tasks": [str(folder / "task.yaml")], "placement": {"threads_per_task": 1}}
    file.write_text(yaml.safe_dump(values))
    return file


def ray_job(cluster: LocalCluster, token: Path | None, *words: str) -> Invocation:
    """`ray job` with these words, and with the token in its environment only if it is given."""
    kept = {name: value for name, value in cluster.environment.items() if not name.startswith("RAY_AUTH")}
    access = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)} if token else {"RAY_AUTH_MODE": "disabled"}
    line = [str(RAY), "job", *words[:1], "--address", cluster.dashboard, *words[1:]]
    log = cluster.folder / f"job-{time.monotonic_ns()}.log"
    return Invocation(line, log, {**kept, **access, "PYTHONUNBUFFERED": "1"})


def lose(cluster: LocalCluster, node: "subprocess.Popen[bytes]") -> None:
    """Kill a node, and start another in its place."""
    cluster.kill_node(node)
    cluster.add_node()


def whole_checkpoints(run: Path) -> int:
    return len(list(run.glob(f"experts/seed/{CHECKPOINT_FOLDER}/*/checkpoint-*")))
