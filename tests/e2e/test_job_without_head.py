"""The head is killed while a job trains an expert, and its worker node survives it; the job is submitted again.

As with KubeRay, the new head has the address of the old one and knows nothing of it. The training worker on the old
node still runs when the new head starts.
"""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from expert_runs import BATCH, command, ended, write_small_run
from fault_runs import Invocation, wait_for
from local_cluster import RAY, LocalCluster, local_cluster

from mode_ray.run_directory import CHECKPOINT_FOLDER

pytestmark = [pytest.mark.drill, pytest.mark.slow]

PAIRS, STEPS = 96, 40
"""Steps of the seed model; the experts take a quarter of that."""
MODELS = ("seed", "n2/00", "n2/01")
NamedBelow = Callable[["subprocess.Popen[bytes]", str], list[int]]


class Story(NamedTuple):
    """Both runs, and what happened to the first."""

    undisturbed: Path
    run: Path
    samples_at_loss: int
    workers_that_survived: int
    samples_at_resubmission: int
    first_samples: int
    exit_code: int
    printed: str


def test_the_head_was_lost_in_the_middle_and_a_training_worker_survived_it(story: Story) -> None:
    assert 0 < story.samples_at_loss < STEPS * BATCH
    assert story.workers_that_survived == 1


def test_the_job_that_is_submitted_again_ends_well(story: Story) -> None:
    assert story.exit_code == 0, story.printed
    launches = [json.loads((story.run / f"experts/{model}/status.json").read_text())["launches"] for model in MODELS]
    assert launches == [2, 1, 1]


def test_it_resumed_from_the_checkpoint(story: Story) -> None:
    assert story.first_samples > story.samples_at_resubmission >= story.samples_at_loss


@pytest.mark.parametrize("model", MODELS)
def test_the_models_are_those_of_the_undisturbed_run(story: Story, model: str) -> None:
    name = f"experts/{model}/open_clip_model.safetensors"
    assert (story.run / name).read_bytes() == (story.undisturbed / name).read_bytes()


@pytest.fixture(scope="module")
def story(
    tmp_path_factory: pytest.TempPathFactory,
    kill_tree: Callable[["subprocess.Popen[bytes]", float], list[str]],
    named_below: NamedBelow,
) -> Story:
    folder = tmp_path_factory.mktemp("lost-head")
    config, run, undisturbed = write_small_run(folder, PAIRS), folder / "run", folder / "undisturbed"
    values = yaml.safe_load(config.read_text())
    values["train"] |= {"dense_samples": 5 * STEPS * BATCH // 4, "seed_share": 0.8}
    config.write_text(yaml.safe_dump(values))
    quiet = ("train.placement.workers_per_run=0", "ray.dashboard=false")
    assert ended(command(config, undisturbed, "run --until train", *quiet)) == 0
    with local_cluster(folder, kill_tree, {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}, num_cpus=0) as cluster:
        old = cluster.add_node(num_cpus=2)
        job = submit(cluster, config)
        wait_for(lambda: checkpoint_samples(run) > 0, job)
        cluster.kill_head()
        at_loss, survived = checkpoint_samples(run), len(named_below(old, "ray::RayTrainWo"))
        ended(job)

        cluster.run_head()
        old.wait(600)  # the new head refuses it
        cluster.add_node(num_cpus=2)
        wait_for(lambda: cluster.alive_nodes() == 2)
        progress = run / "experts/seed/progress.json"
        at_resubmission, written = checkpoint_samples(run), written_at(progress)
        again = submit(cluster, config)
        wait_for(lambda: written_at(progress) not in (None, written), again)
        first = int(json.loads(progress.read_text())["samples"])
        code = ended(again)
    return Story(undisturbed, run, at_loss, survived, at_resubmission, first, code, again.printed())


def submit(cluster: LocalCluster, config: Path) -> Invocation:
    """`ray job submit` of all stages up to `train`; it follows the job's log."""
    words = ["mode-ray", "run", "--until", "train", "--config", str(config)]
    line = [str(RAY), "job", "submit", "--address", cluster.dashboard, "--", *words]
    return Invocation(line, config.parent / f"job-{time.monotonic_ns()}.log", cluster.environment)


def checkpoint_samples(run: Path) -> int:
    """The samples of the newest checkpoint of the seed model."""
    found = run.glob(f"experts/seed/{CHECKPOINT_FOLDER}/*/checkpoint-*")
    return max((int(folder.name.split("-")[1]) for folder in found), default=0)


def written_at(file: Path) -> int | None:
    """When a file was written, in nanoseconds; None if there is none."""
    return file.stat().st_mtime_ns if file.exists() else None
