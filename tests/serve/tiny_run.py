"""A finished run of untrained experts with tiny towers, as its stages leave it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mode_ray.cluster.clustering import Clustering
from mode_ray.config import RunConfig
from mode_ray.config_file import dump_config
from mode_ray.encoders.encoder import load_encoder
from mode_ray.pipeline import stage_directories
from mode_ray.stage import Stage
from mode_ray.storage import Location
from mode_ray.train.model import build_clip, save_clip
from mode_ray.train_config import ModelConfig

ARCHITECTURE = "package:mode_ray/presets/demo-vit"
TOPICS = ("a cat", "a dog", "a bus", "a train", "a red apple", "a banana", "a house", "a tall tower")


def build_run(
    folder: Path,
    experts: int,
    serve: Mapping[str, object],
    topics: Sequence[str] = TOPICS,
    architecture: str = ARCHITECTURE,
) -> RunConfig:
    """Write the run of `experts` experts below a folder; every topic is a fine center, `serve` its config section."""
    config = RunConfig.model_validate(
        {
            "run": str(folder / "run"),
            "captions": {"paths": [str(folder)]},
            "encoder": {"kind": "static", "model": "package:wordllama"},
            "cluster": {"sample_rows": 100, "fine": {"centers": len(topics)}, "coarse": {"experts": [experts]}},
            "train": {"model": {"architecture": architecture}, "experts": experts, "dense_samples": 64},
            "ray": {"object_store_bytes": 200_000_000},
            "serve": dict(serve),
        }
    )
    places = stage_directories(config.directory)
    encoder = load_encoder(config.encoder, config.embed.encoder)
    Clustering(
        centers_md=encoder.encode(list(topics)),
        prices_m=np.zeros(len(topics)),
        mass_m=np.full(len(topics), 5),
        squared_distance_m=np.ones(len(topics)),
        encoder_name=encoder.name,
        coarse={experts: (np.arange(len(topics)) * experts // len(topics)).astype(np.int32)},
    ).save(places["cluster"])
    for expert in range(experts):
        save_expert(places["train"] / f"n{experts}/{expert:02d}", seed=expert, architecture=architecture)
    for stage in ("cluster", "train"):
        Stage(stage, places[stage], {}).finish([], {})
    (config.directory / "config.yaml").write_text(dump_config(config))
    return config


def save_expert(folder: Location, seed: int, architecture: str = ARCHITECTURE) -> None:
    """Write an untrained model."""
    save_clip(folder, build_clip(ModelConfig(architecture=architecture, precision="float32"), seed=seed))
