"""Every command in a separate process, on one shared tiny run.

Other modules run the missing commands in the same way: `demo` (test_demo_job), `submit`
(test_jobs), `serve` (tests/serve/test_serve_drills and test_serve_command).
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import ray
from finished_run import write_run_inputs

from mode_ray.config.load import load_config

COMMAND = Path(sys.executable).with_name("mode-ray")
DEADLINE_SECONDS = 600.0
Command = Callable[..., "CompletedProcess[str]"]


pytestmark = pytest.mark.drill


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run_inputs(tmp_path_factory.mktemp("every-command"))


@pytest.fixture(scope="module")
def command(ray_session: None) -> Command:
    """Runs the installed command in the Ray of the session; it must succeed."""
    environment = {**os.environ, "RAY_ADDRESS": str(ray.get_runtime_context().gcs_address)}

    def run(*words: str) -> "CompletedProcess[str]":
        line = [str(COMMAND), *words]
        ended = subprocess.run(
            line, env=environment, capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert "Traceback" not in ended.stderr
        return ended

    return run


@pytest.fixture(scope="module")
def assigned(command: Command, config: Path) -> Command:
    """Runs a command on a run whose captions are assigned."""
    command("run", "--config", str(config), "--until", "assign")
    return command


@pytest.fixture(scope="module")
def finished(assigned: Command, config: Path) -> Command:
    """Runs a command on the finished run."""
    assigned("run", "--config", str(config))
    return assigned


def test_sweep_trains_its_trials_and_writes_the_best_config(assigned: Command, config: Path) -> None:
    """Ray Tune pickles the trials, so they must not refer to the console."""
    printed = assigned("sweep", "--config", str(config)).stdout
    folder = config.parent / "run/sweep"
    results = json.loads((folder / "results.json").read_text())
    assert [trial["state"] for trial in results["trials"]] == ["finished", "finished"]
    for trial in results["trials"]:
        for number in (1, 2):
            assert f"[sweep] {trial['trial'][:6]} {number}/2: recall@1 {trial['curve'][str(number)]:.2%}" in printed
        assert f"[sweep] {trial['trial'][:6]} finished" in printed
    assert load_config(str(folder / "best.yaml")).train.optimizer.learning_rate in (1e-3, 2e-3)
    assert not (folder / "tune").exists()


class TestTheOthers:
    @pytest.mark.usefixtures("finished")
    def test_run(self, config: Path) -> None:
        assert (config.parent / "run/evaluation/report.html").is_file()

    @pytest.mark.parametrize("stage", ["embed", "cluster", "assign", "train", "evaluate"])
    def test_a_stage_that_is_done(self, finished: Command, config: Path, stage: str) -> None:
        assert f"nothing to do: {stage} done before" in finished(stage, "--config", str(config)).stdout

    def test_atlas(self, finished: Command, config: Path) -> None:
        assert "atlas: " in finished("atlas", "--config", str(config)).stdout

    def test_drift(self, finished: Command, config: Path) -> None:
        assert "2 experts" in finished("drift", "--config", str(config)).stdout

    def test_cluster_extend(self, finished: Command, config: Path) -> None:
        target = config.parent / "extended"
        words = ("cluster", "extend", "--config", str(config), "--centers", "1", "--to", str(target))
        assert "7 centers" in finished(*words, "--far-quantile", "0.5").stdout

    def test_train_retry(self, finished: Command, config: Path) -> None:
        folder = config.parent / "run/experts/n2/00"
        status = json.loads((folder / "status.json").read_text())
        (folder / "status.json").write_text(json.dumps({**status, "state": "failed", "reason": "as a test"}))
        finished("train", "retry", "0", "--config", str(config))
        assert json.loads((folder / "status.json").read_text())["state"] == "finished"

    def test_index_and_search(self, finished: Command, config: Path) -> None:
        assert "24 images" in finished("index", "--config", str(config)).stdout
        assert "pairs.parquet" in finished("search", "--config", str(config), "--text", "a dog").stdout

    def test_evaluate_rules(self, finished: Command, config: Path) -> None:
        words = ("evaluate", "rules", "--config", str(config), "routing.rule=uniform")
        assert "report: " in finished(*words).stdout

    def test_export(self, finished: Command, config: Path) -> None:
        target = config.parent / "exported"
        finished("export", "--config", str(config), "--to", str(target), "--expert", "0")
        assert (target / "open_clip_config.json").is_file()

    def test_status(self, finished: Command, config: Path) -> None:
        run = str(config.parent / "run")
        assert "evaluate" in finished("status", run).stdout
        assert "done" in finished("status", run, "--watch").stdout

    def test_serve_config(self, finished: Command, config: Path) -> None:
        assert "mode_ray.serve.applications:" in finished("serve", "config", str(config.parent / "run")).stdout

    def test_cluster_config(self, finished: Command) -> None:
        values = Path(__file__).parents[2] / "cluster_configs"
        finished("cluster-config", "--values", str(values / "values.yaml"), "--to", str(values), "--check")

    def test_plan_with_the_rates_of_the_run(self, finished: Command, config: Path) -> None:
        words = ("plan", "--config", str(config), "--from", str(config.parent / "run"), "--rows", "1e6", "--json")
        plan = json.loads(finished(*words).stdout)
        assert [stage["stage"] for stage in plan["stages"]] == ["embed", "cluster", "assign", "train", "evaluate"]
