"""The stages as jobs on a Ray cluster: `ray job submit … python jobs/<stage>.py`, and our own submit."""

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from fault_runs import COMMAND
from local_cluster import RAY, local_cluster, shell_environment

pytestmark = pytest.mark.drill

REPOSITORY = Path(__file__).resolve().parents[2]
JOB_DEADLINE_SECONDS = 240.0
CAPTIONS = 400


@pytest.fixture(scope="module")
def dashboard(
    tmp_path_factory: pytest.TempPathFactory, kill_tree: Callable[["subprocess.Popen[bytes]", float], list[str]]
) -> Iterator[str]:
    """Address of a cluster's dashboard, which takes the jobs."""
    with local_cluster(tmp_path_factory.mktemp("cluster"), kill_tree, num_cpus=2) as cluster:
        yield cluster.dashboard


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config, its captions and the place of its run."""
    folder = tmp_path_factory.mktemp("jobs")
    things = ("cat", "dog", "tree", "train", "violin", "harbour", "pizza", "castle")
    captions = [f"{things[number % 8]} number {number} on a table" for number in range(CAPTIONS)]
    pq.write_table(pa.table({"caption": captions}), folder / "captions.parquet")
    values = {
        "run": str(folder / "run"),
        "captions": {"paths": [str(folder / "captions.parquet")]},
        "encoder": {"kind": "static", "model": "package:wordllama"},
        "embed": {"pool": {"max_actors": 1}},
        "cluster": {"fine": {"centers": 16}, "coarse": {"experts": [2]}, "placement": {"threads": 1}},
        "train": {"experts": 2, "dense_samples": 1024, "batch_size": 32},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    return folder


def submit(dashboard: str, script: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Submit a job from the repository, as its README says, and follow it to its end."""
    return subprocess.run(
        [
            *(str(RAY), "job", "submit", "--address", dashboard, "--working-dir", ".", "--"),
            *("python", f"jobs/{script}.py", *arguments),
        ],
        cwd=REPOSITORY,
        env=shell_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=JOB_DEADLINE_SECONDS,
        check=False,
    )


@pytest.fixture(scope="module")
def embedded(dashboard: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    return submit(dashboard, "embed", "--config", str(folder / "config.yaml"))


def test_an_embed_job_succeeds_and_its_log_ends_with_what_was_done(
    embedded: "subprocess.CompletedProcess[str]", folder: Path
) -> None:
    assert embedded.returncode == 0, embedded.stdout
    assert f"[embed] done: {CAPTIONS} rows of {CAPTIONS}, 0 refused" in embedded.stdout
    assert json.loads((folder / "run/embeddings/manifest.json").read_text())["rows_out"] == CAPTIONS


def test_a_cluster_job_goes_on_from_it(
    dashboard: str, embedded: "subprocess.CompletedProcess[str]", folder: Path
) -> None:
    ended = submit(dashboard, "cluster", "--config", str(folder / "config.yaml"), "ray.log_to_driver=false")
    assert ended.returncode == 0, ended.stdout
    assert f"[cluster] done: {CAPTIONS} rows of {CAPTIONS}" in ended.stdout
    assert {file.name for file in (folder / "run/clusters").iterdir()} >= {
        "fine.safetensors",
        "coarse-n2.safetensors",
        "manifest.json",
    }


def own_submit(dashboard: str, folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """`mode-ray submit` in the config's folder, to its end."""
    return subprocess.run(
        [str(COMMAND), "submit", "--address", dashboard, *words],
        cwd=folder,
        env=shell_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=JOB_DEADLINE_SECONDS,
        check=False,
    )


def test_our_own_submit_follows_the_job_and_ends_with_its_exit_code(
    dashboard: str, embedded: "subprocess.CompletedProcess[str]", folder: Path
) -> None:
    ended = own_submit(dashboard, folder, "--id", "too-early", "evaluate", "--config", "config.yaml")
    assert ended.returncode == 2, ended.stdout
    assert "mode-ray: evaluate needs the " in ended.stdout
    assert ended.stdout.splitlines()[-1] == "too-early: failed, exit code 2"
    again = own_submit(dashboard, folder, "--follow", "too-early")
    assert again.returncode == 2
    assert again.stdout.splitlines()[-2:] == ended.stdout.splitlines()[-2:]


def test_a_job_that_is_not_there_and_an_id_that_was_used_are_refused(dashboard: str, folder: Path) -> None:
    absent = own_submit(dashboard, folder, "--follow", "absent")
    assert (absent.returncode, "absent does not exist" in absent.stdout) == (2, True), absent.stdout
    words = ("--id", "twice", "--no-wait", "embed", "--config", "config.yaml")
    assert own_submit(dashboard, folder, *words).returncode == 0
    twice = own_submit(dashboard, folder, *words)
    assert (twice.returncode, "already exists" in twice.stdout) == (2, True), twice.stdout


def test_a_job_that_fails_says_so_by_exit_code_and_message(dashboard: str, folder: Path) -> None:
    ended = submit(dashboard, "pipeline", "--config", str(folder / "config.yaml"), f"captions.paths=[{folder}/absent]")
    assert ended.returncode != 0
    assert f"mode-ray: captions.paths: {folder}/absent: no such file" in ended.stdout
    assert "Traceback" not in ended.stdout
