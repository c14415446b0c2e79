"""What is checked before the first stage: each wrong setting is named within seconds, and nothing is written."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from rich.console import Console

from mode_ray.config.load import with_values
from mode_ray.config.run import RunConfig
from mode_ray.errors import UsageError
from mode_ray.observe.progress import Progress
from mode_ray.pipeline import Pipeline, build_stages, open_run
from mode_ray.preflight import check_gpus, gpus_of_stages
from mode_ray.run_directory import STAGE_NAMES
from mode_ray.util.devices import CudaState

Checked = Callable[[Mapping[str, object]], None]
TASK = {"name": "colours", "kind": "classification", "paths": ["a.parquet"], "classes": ["red", "blue"]}


def values(folder: Path) -> dict[str, Any]:
    return {
        "run": str(folder / "run"),
        "captions": {"paths": [str(folder / "a.parquet")]},
        "encoder": {"kind": "static", "model": "package:wordllama"},
        "train": {"dense_samples": 8192},
        "evaluate": {"tasks": [str(folder / "task.yaml")]},
    }


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """A config of all stages that passes."""
    pq.write_table(pa.table({"caption": ["a cat"] * 100, "image": [b"x"] * 100}), tmp_path / "a.parquet")
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(TASK))
    return RunConfig.model_validate(values(tmp_path))


@pytest.fixture
def check(config: RunConfig) -> Checked:
    """Checks all stages of the config with changes, as `mode-ray run` does before it starts Ray."""

    def checked(changes: Mapping[str, object]) -> None:
        Pipeline.open(with_values(config, changes), Progress(Console(quiet=True)), STAGE_NAMES)

    return checked


def test_the_smallest_config_passes(check: Checked) -> None:
    check({})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train.dense_samples": None}, r"^train\.dense_samples is not set: set it to .*`--until assign`\)$"),
        ({"evaluate.tasks": []}, r"^evaluate\.tasks is empty: name at least one task file"),
        ({"train.batch_size": 32768}, r"^train\.batch_size=32,768 is above train\.dense_samples=8,192"),
        (
            {"captions.image_field": "img"},
            r"a\.parquet: no column 'img' with images; set captions\.image_field to one",
        ),
        ({"train.model.architecture": "ViT-B32"}, r"^train\.model\.architecture: ViT-B32: .*did you mean ViT-B-32\?"),
        ({"train.model.architecture": "./no/model"}, r"^train\.model\.architecture: .*/no/model: no such folder"),
        ({"train.model.pretrained": "no/epoch.pt"}, r"^train\.model\.pretrained: .*/no/epoch\.pt: no such file"),
        (
            {"train.model.pretrained": "hf-hub:a/b"},
            r"^train\.model\.pretrained: hf-hub:a/b: not in this machine's cache",
        ),
    ],
)
def test_what_training_and_evaluation_need(
    check: Checked, tmp_path: Path, changes: Mapping[str, object], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        check(changes)
    assert not (tmp_path / "run").exists()


GPUS = CudaState("2.14.1+cu130", wheel="13.0", driver="13.0", gpus=1)


@pytest.mark.parametrize(
    ("changes", "state", "said"),
    [
        (
            {"embed.pool.gpus_per_actor": 1.0},
            replace(GPUS, driver="12.8", gpus=0),
            r"^embed\.pool\.gpus_per_actor=1: the NVIDIA driver is too old",
        ),
        (
            {"train.placement.use_gpu": True},
            replace(GPUS, driver=None),
            r"^train\.placement\.gpus_per_worker=1: there is",
        ),
        ({"evaluate.placement.gpus_per_task": 2.0}, GPUS, r"gpus_per_task=2: this machine has 1 usable GPUs"),
        ({"cluster.placement.gpus": 2.0}, GPUS, r"^cluster\.placement\.gpus=2: this machine has 1 usable GPUs"),
    ],
)
def test_gpus_that_this_machine_does_not_have(
    config: RunConfig, changes: Mapping[str, object], state: CudaState, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        check_gpus(gpus_of_stages(with_values(config, changes)), cuda=lambda: state)
    check_gpus(gpus_of_stages(with_values(config, {"assign.pool.gpus_per_actor": 1.0})), cuda=lambda: GPUS)


def test_locks_without_features_are_said_before_the_first_stage(config: RunConfig, tmp_path: Path) -> None:
    locked = with_values(
        config,
        {
            "train.model.architecture": "package:mode_ray/presets/demo-vit",
            "train.model.lock": {"image": {"groups": 2}, "text": "all"},
            "train.data.mode": "features",
        },
    )
    with pytest.raises(
        UsageError, match=r"lock\.image: features can be shared only of a tower whose projection alone"
    ):
        Pipeline.open(locked, Progress(Console(quiet=True)), STAGE_NAMES)
    assert not (tmp_path / "run").exists()


def test_a_task_file_that_is_not_there(config: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^evaluate\.tasks: .*no\.yaml: no such file"):
        build_stages(open_run(with_values(config, {"evaluate.tasks": [str(tmp_path / "no.yaml")]})))
    assert not (tmp_path / "run").exists()


def test_the_stages_before_training_ask_for_nothing_of_it(config: RunConfig) -> None:
    alone = with_values(config, {"train.dense_samples": None, "evaluate.tasks": [], "captions.image_field": "img"})
    Pipeline.open(alone, Progress(Console(quiet=True)), ("embed", "cluster", "assign"))


def test_other_values_than_a_stage_was_begun_with_name_the_runs_own_config(config: RunConfig, tmp_path: Path) -> None:
    former = with_values(config, {"train.batch_size": 32})
    build_stages(open_run(former))["train"].begin(5)
    with pytest.raises(UsageError, match=r"train\.batch_size was 32, is 64") as caught:
        Pipeline.open(config, Progress(Console(quiet=True)))
    assert f"To resume with the values it was begun with, give --config {tmp_path}/run/config.yaml" in str(
        caught.value
    )


def test_an_encoder_that_cannot_be_had_is_said_before_ray_starts(config: RunConfig, tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text(yaml.safe_dump({**values(tmp_path), "encoder": {}}))
    # A hub that refuses connections, as behind a firewall; HF_HUB_OFFLINE would be answered without an attempt.
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HOME": str(tmp_path / "home"),
        "RAY_TMPDIR": str(tmp_path / "ray"),
    }
    command = [str(Path(sys.executable).with_name("mode-ray")), "embed", "--config", str(file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith(
        "mode-ray: encoder.model: princeton-nlp/sup-simcse-bert-base-uncased: not in this machine's"
    )
    assert "http://127.0.0.1:9 cannot be reached" in line
    assert "run `hf download princeton-nlp/sup-simcse-bert-base-uncased`" in line
    assert not (tmp_path / "ray").exists(), "Ray was started, which takes longer than the check"
    assert not (tmp_path / "run/embeddings").exists()
