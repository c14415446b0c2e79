"""Where pairs are read, and in which blocks."""

import subprocess
from collections.abc import Callable

import pytest
from python_process import python_command

from mode_ray.config.run import RunConfig
from mode_ray.train.source import read_block_pairs, sample_order_fields, source_mode


def config_of(make_config: Callable[..., RunConfig], path: str, data: dict[str, object], gpu: bool) -> RunConfig:
    config = make_config(data=data, placement={"use_gpu": gpu, "workers_per_run": 1})
    return config.model_copy(update={"captions": config.captions.model_copy(update={"paths": (path,)})})


@pytest.mark.parametrize(
    ("path", "gpu", "expected"),
    [
        ("s3://bucket/a.tar", True, "materialised"),
        ("gs://bucket/a/*.tar", True, "materialised"),
        ("s3://bucket/a.tar", False, "index"),
        ("/data/a.tar", True, "index"),
        ("file:///data/a.tar", True, "index"),
    ],
)
def test_gpus_read_copies_of_what_is_in_an_object_store(
    make_config: Callable[..., RunConfig], path: str, gpu: bool, expected: str
) -> None:
    assert source_mode(config_of(make_config, path, {}, gpu)) == expected
    for mode in ("index", "materialised"):
        assert source_mode(config_of(make_config, path, {"mode": mode}, gpu)) == mode


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"mode": "index", "block_pairs": 3}, 3),
        ({"mode": "materialised", "block_pairs": 3}, 512),
        ({"mode": "materialised", "read_block_pairs": 300}, 300),
        ({"mode": "materialised", "block_pairs": 3, "read_block_pairs": None}, 3),
    ],
)
def test_copies_are_read_in_blocks_of_their_own(
    make_config: Callable[..., RunConfig], data: dict[str, object], expected: int
) -> None:
    assert read_block_pairs(config_of(make_config, "/data/a.tar", data, gpu=False)) == expected


def test_the_order_of_version_0_1_0_has_the_fields_of_then(make_config: Callable[..., RunConfig]) -> None:
    def fields(**data: object) -> dict[str, object]:
        return sample_order_fields(config_of(make_config, "s3://bucket/a.tar", data, gpu=True))

    assert fields(mode="index") == {"train.data.mode": "index"}
    assert fields(mode="materialised", read_block_pairs=None) == {"train.data.mode": "materialised"}
    assert fields() == {"train.data.mode": "materialised", "train.data.read_block_pairs": 512}


WITHOUT_RAY = """
import importlib, sys

class NoRay:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "ray":
            raise ImportError(f"{name} is not installed")

sys.meta_path.insert(0, NoRay())
for module in sys.argv[1:]:
    importlib.import_module(module)
"""


def test_training_sets_loader_and_loop_work_without_ray() -> None:
    modules = [
        *(f"mode_ray.pairs.{name}" for name in ("index", "members", "training_set", "reader", "materialise")),
        *("mode_ray.train.data", "mode_ray.train.step.loop", "mode_ray.models.clip", "mode_ray.models.encode"),
    ]
    command = python_command(WITHOUT_RAY, *modules)
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
