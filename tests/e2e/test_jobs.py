"""The stages as jobs on a Ray cluster: `ray job submit … python jobs/<stage>.py`."""

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from expert_runs import write_small_run
from local_cluster import RAY, local_cluster, shell_environment

pytestmark = pytest.mark.drill

REPOSITORY = Path(__file__).resolve().parents[2]
JOB_DEADLINE_SECONDS = 240.0
PAIRS, SAMPLES = 96, 384


@pytest.fixture(scope="module")
def dashboard(
    tmp_path_factory: pytest.TempPathFactory, kill_tree: Callable[["subprocess.Popen[bytes]", float], list[str]]
) -> Iterator[str]:
    """Address of a cluster's dashboard, which takes the jobs."""
    with local_cluster(tmp_path_factory.mktemp("cluster"), kill_tree, num_cpus=2) as cluster:
        yield cluster.dashboard


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config, its pairs and the place of its run."""
    folder = tmp_path_factory.mktemp("jobs")
    write_small_run(folder, PAIRS)
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


@pytest.fixture(scope="module")
def clustered(
    dashboard: str, embedded: "subprocess.CompletedProcess[str]", folder: Path
) -> "subprocess.CompletedProcess[str]":
    return submit(dashboard, "cluster", "--config", str(folder / "config.yaml"), "ray.log_to_driver=false")


def test_an_embed_job_succeeds_and_its_log_ends_with_what_was_done(
    embedded: "subprocess.CompletedProcess[str]", folder: Path
) -> None:
    assert embedded.returncode == 0, embedded.stdout
    assert f"[embed] done: {PAIRS} rows of {PAIRS}, 0 refused" in embedded.stdout
    assert json.loads((folder / "run/embeddings/manifest.json").read_text())["rows_out"] == PAIRS


def test_a_cluster_job_goes_on_from_it(clustered: "subprocess.CompletedProcess[str]", folder: Path) -> None:
    assert clustered.returncode == 0, clustered.stdout
    last_line = own_lines(clustered.stdout)[-1]
    assert last_line.startswith(f"[cluster] done: {PAIRS} rows of {PAIRS}, 0 refused"), clustered.stdout
    assert {file.name for file in (folder / "run/clusters").iterdir()} >= {
        "fine.safetensors",
        "coarse-n2.safetensors",
        "manifest.json",
    }


def test_the_jobs_of_the_later_stages_succeed_too_and_say_at_last_what_was_done(
    dashboard: str, clustered: "subprocess.CompletedProcess[str]", folder: Path
) -> None:
    last_lines = {
        "assign": f"[assign] done: {PAIRS} rows of {PAIRS}, 0 refused",
        "train": f"[train] done: {SAMPLES} rows of {SAMPLES}, 0 refused",
        "evaluate": f"report: {folder}/run/evaluation/report.html",
    }
    for stage, last_line in last_lines.items():
        ended = submit(dashboard, stage, "--config", str(folder / "config.yaml"))
        assert ended.returncode == 0, ended.stdout
        assert own_lines(ended.stdout)[-1].startswith(last_line), ended.stdout
    for model in ("seed", "n2/00", "n2/01"):
        assert (folder / f"run/experts/{model}/open_clip_model.safetensors").is_file()


def own_lines(printed: str) -> list[str]:
    """What the job wrote, without the lines of Ray's command line, processes and nodes."""
    of_ray = re.compile(r"(\x1b\[\d+m)?(\d{4}-|\[\d{4}-|\()|\s*$")
    return [line for line in printed.splitlines() if not of_ray.match(line)]


def test_a_job_that_fails_says_so_by_exit_code_and_message(dashboard: str, folder: Path) -> None:
    ended = submit(dashboard, "pipeline", "--config", str(folder / "config.yaml"), f"captions.paths=[{folder}/absent]")
    assert ended.returncode != 0
    assert f"mode-ray: captions.paths: {folder}/absent: no such file" in ended.stdout
    assert "Traceback" not in ended.stdout
