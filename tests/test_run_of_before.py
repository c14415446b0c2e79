"""A run directory, a served application, a config and a job of version 0.1.0 still work.

The expected outputs are those of version 0.1.0 on the same run.
"""

import asyncio
import base64
import io
import json
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import httpx
import pytest
import yaml
from run_of_before import COLOURS, read_held_out

import mode_ray
from mode_ray.cli import main
from mode_ray.serve.http.api import create_app
from mode_ray.serve.in_process import local_service
from mode_ray.serve.service.metrics import prometheus_metrics
from mode_ray.serve.service.served_run import ServedRun
from mode_ray.storage import Location

ROOT = Path(__file__).resolve().parents[1]
SERVE_CONFIG = Path(__file__).parent / "fixtures" / "serve_config_0_1_0.yaml"
FOUND = [("60", "60", "0.5607"), ("12", "12", "0.5605"), ("92", "92", "0.5599")]  # image, row, score
STAGES = ("embed", "cluster", "assign", "train", "evaluate")
# Written by every command that runs a stage, also by one that has nothing to do.
RECORDS = ("config.yaml", "versions.json")


@pytest.fixture(scope="module")
def config(run_of_before: Path) -> str:
    return str(run_of_before / "config.yaml")


@pytest.fixture(scope="module")
def copy(run_of_before: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run directory for commands that write."""
    return shutil.copytree(run_of_before / "run", tmp_path_factory.mktemp("before") / "run")


def contents(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file() and file.name not in RECORDS)
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def run_python(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Ray instance" not in done.stderr
    return done.stdout


def figures(report: Path, rules: set[str]) -> dict[str, object]:
    models = json.loads(report.read_text())["models"]
    return {model["name"]: model["metrics"] for model in models if model["rule"] in (None, *rules)}


def test_status(run_of_before: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(run_of_before / "run")]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert {row[0]: row[1] for row in rows if row and row[0] in STAGES} == dict.fromkeys(STAGES, "done")
    assert {row[0]: row[1] for row in rows if row and row[0] in ("seed", "dense", "n2/00", "n2/01")} == dict.fromkeys(
        ("seed", "dense", "n2/00", "n2/01"), "finished"
    )


@pytest.mark.parametrize("command", [["-m", "mode_ray", "run"], ["jobs/cluster.py"]])
def test_what_is_done_is_not_done_again(config: str, copy: Path, command: list[str]) -> None:
    before = contents(copy)
    run_python(*command, "--config", config, f"run={copy}")
    assert contents(copy) == before


def test_evaluate_rules(run_of_before: Path, config: str, copy: Path, tmp_path: Path) -> None:
    own = shutil.copytree(copy, tmp_path / "run")
    fields = [f"run={own}", "evaluate.rules=[calibrated, released]", "routing.temperature=0.2"]
    assert main(["evaluate", "rules", "--config", config, *fields]) == 0
    [report] = (own / "evaluation/rules").glob("*/report.json")
    rules = {"calibrated", "released"}
    found = figures(report, rules)
    assert set(found) >= {"MoDE-2 (calibrated)", "MoDE-2 (released)", "dense", "expert 0 alone"}
    assert found == figures(run_of_before / "run/evaluation/report.json", rules)


def test_search(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "--config", config, "--text", "a red apple", "--count", "3"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "pairs/" in line]
    assert [(row[1], row[-1], row[0]) for row in rows] == FOUND


def test_export(run_of_before: Path, config: str, tmp_path: Path) -> None:
    target = tmp_path / "exported"
    assert main(["export", "--config", config, "--to", str(target)]) == 0
    folders = {"README.md", "clustering", "expert-00", "expert-01"}
    assert {file.name for file in target.iterdir()} == folders | {"mode_ray.json"}
    for expert in ("00", "01"):
        weights = "open_clip_model.safetensors"
        trained = run_of_before / "run/experts/n2" / expert / weights
        assert (target / f"expert-{expert}" / weights).read_bytes() == trained.read_bytes()
    task = mode_ray.load(target, device="cpu").task(COLOURS)
    assert task.weights.tolist() == mode_ray.load(run_of_before / "run", device="cpu").task(COLOURS).weights.tolist()


def test_serve_config(run_of_before: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "config", str(run_of_before / "run")]) == 0
    assert capsys.readouterr().out == SERVE_CONFIG.read_text()


def test_a_deployment_file_of_before_names_applications_that_exist(run_of_before: Path) -> None:
    from pydantic import TypeAdapter
    from ray.serve import Application
    from ray.serve.schema import ServeDeploySchema

    document = yaml.safe_load(SERVE_CONFIG.read_text())
    for application in ServeDeploySchema.model_validate(document).applications:
        module, builder = application.import_path.split(":")
        build = getattr(import_module(module), builder)
        # As Ray Serve does it: the builder's annotation is the type of its arguments.
        arguments = TypeAdapter(build.__annotations__["arguments"]).validate_python(application.args)
        assert isinstance(build(arguments), Application)


def test_serving_in_one_process(run_of_before: Path) -> None:
    served = ServedRun.load(Location.parse(str(run_of_before / "run")))
    images = read_held_out(run_of_before).images[:4]
    body = {"images": [{"base64": png_base64(image)} for image in images], "labels": list(COLOURS)}

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(lambda: service, service.config))
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            return await client.post("/v1/classify", json=body)

    with local_service(served, served.config.serve, prometheus_metrics()) as service:
        answer = asyncio.run(ask())
    assert answer.status_code == 200, answer.text
    expected = mode_ray.load(run_of_before / "run", device="cpu").classify(images, COLOURS, ["a photo of a {}."])
    assert [result["labels"][0] for result in answer.json()["results"]] == expected.labels


def png_base64(image: object) -> str:
    from PIL.Image import Image

    assert isinstance(image, Image)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
