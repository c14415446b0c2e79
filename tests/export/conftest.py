"""A finished run of three tiny experts, as its stages leave it, without the time to train it."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from mode_ray.cluster.clustering import Clustering
from mode_ray.config.run import RunConfig
from mode_ray.config.train import ModelConfig
from mode_ray.models.clip import build_clip, save_clip
from mode_ray.run_directory import stage_directories
from mode_ray.stages.manifest import Manifest, Stage
from mode_ray.storage import Location

PAIRS = (600, 300, 100)
SAMPLES = {"seed": 4096, "dense": 8192, "n3/00": 2400, "n3/01": 1200, "n3/02": 496}
GROUP_M = [0, 0, 1, 1, 2, 2]
CENTERS_MD = np.eye(6, 8, dtype=np.float32)
TINY = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 16, "patch_size": 8, "layers": 1, "width": 16, "head_width": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    },
    "preprocess_cfg": {},
}
REPORT = {
    "rule": "soft",
    "tasks": [{"name": "shapes", "metric": "top1", "items": 100}],
    "models": [
        {"name": "dense", "kind": "dense", "metrics": {"shapes": {"top1": 0.5}}},
        {"name": "MoDE-3 (soft)", "kind": "mode", "rule": "soft", "metrics": {"shapes": {"top1": 0.625}}},
        {"name": "MoDE-3 (paper)", "kind": "mode", "rule": "paper", "metrics": {"shapes": {"top1": 0.99}}},
        *(
            {"name": f"expert {number} alone", "kind": "single", "metrics": {"shapes": {"top1": 0.25 + number / 8}}}
            for number in range(3)
        ),
    ],
}


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose train and evaluate stages are done; tests only read it."""
    folder = tmp_path_factory.mktemp("exported")
    (folder / "tiny").mkdir()
    (folder / "tiny" / "open_clip_config.json").write_text(json.dumps(TINY))
    directories = stage_directories(Location.parse(str(folder / "run")))
    Clustering(
        centers_md=CENTERS_MD,
        prices_m=np.zeros(6),
        mass_m=np.full(6, 10),
        squared_distance_m=np.ones(6),
        encoder_name="tiny-encoder",
        coarse={3: np.array(GROUP_M, np.int32), 2: np.array([0, 0, 0, 1, 1, 1], np.int32)},
    ).save(directories["cluster"])
    for number, (name, samples) in enumerate(SAMPLES.items()):
        own = directories["train"] / name
        save_clip(own, build_clip(ModelConfig(architecture=str(folder / "tiny"), precision="float32"), seed=number))
        pairs = PAIRS[int(name[-2:])] if name.startswith("n3/") else sum(PAIRS)
        (own / "metrics.json").write_text(json.dumps({"pairs": pairs, "samples": samples, "history": []}))
        (own / "status.json").write_text("{}")
    Stage("assign", directories["assign"], {}).finish([], {})
    manifest = json.loads((directories["assign"] / "manifest.json").read_text())
    counts = {"units": 7, "rows_in": 1004, "rows_out": 1000, "refused": {"empty | <caption>": 4}}
    (directories["assign"] / "manifest.json").write_text(json.dumps({**manifest, **counts}))
    assert asdict(Manifest(**{**manifest, **counts}))["rows_out"] == 1000
    Stage("train", directories["train"], {"train.experts": 3}).finish([], {})
    (directories["evaluate"] / "report.json").write_text(json.dumps(REPORT))
    return folder


@pytest.fixture(scope="session")
def directories(trained: Path) -> Mapping[str, Location]:
    """Of the run's stages."""
    return stage_directories(Location.parse(str(trained / "run")))


@pytest.fixture(scope="session")
def make_config(trained: Path) -> Callable[..., RunConfig]:
    """Makes the run's config; arguments replace fields of `train`."""

    def make(**train: object) -> RunConfig:
        return RunConfig.model_validate(
            {
                "run": str(trained / "run"),
                "captions": {"paths": [str(trained / "a`b|<c>.tar")]},
                "cluster": {"fine": {"centers": 6}, "coarse": {"experts": [2, 3, 4]}},
                "train": {
                    "model": {"architecture": str(trained / "tiny")},
                    "experts": 3,
                    "dense_samples": 8192,
                    "batch_size": 16,
                    **train,
                },
            }
        )

    return make


@pytest.fixture
def images() -> torch.Tensor:
    """Two prepared images."""
    return torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)
