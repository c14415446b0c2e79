"""A finished run of untrained experts with tiny towers, as its stages leave it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mode_ray.cluster.clustering import Clustering
from mode_ray.config.load import dump_config
from mode_ray.config.run import RunConfig
from mode_ray.config.train import ModelConfig
from mode_ray.embed.load import load_encoder
from mode_ray.models.clip import build_clip, save_clip
from mode_ray.run_directory import stage_directories
from mode_ray.stages.manifest import Stage
from mode_ray.storage import Location
from mode_ray.train.plan import expert_name
from mode_ray.train.runs.status import TrialStatus, write_status

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
    owners_m = np.arange(len(topics)) * experts // len(topics)
    config = _write_run(folder, topics, owners_m, serve, architecture)
    for expert in range(experts):
        save_expert(expert_folder(config, expert), seed=expert, architecture=architecture)
    return config


def grow_run(before: RunConfig, folder: Path, elsewhere: Mapping[int, Location], topics: Sequence[str]) -> RunConfig:
    """Write below a folder the run that has one more expert, of further topics, and took over the others.

    Args:
        before: The run that they are taken over from, of the default topics and towers.
        folder: Where to write.
        elsewhere: Folders of experts that are not taken from that run.
        topics: The new expert's.
    """
    n = before.train.experts
    owners_m = np.append(np.arange(len(TOPICS)) * n // len(TOPICS), np.full(len(topics), n))
    config = _write_run(folder, [*TOPICS, *topics], owners_m, before.serve.model_dump(), ARCHITECTURE)
    for expert in range(n):
        source, target = elsewhere.get(expert, expert_folder(before, expert)), expert_folder(config, expert)
        for file in source.files():
            file.copy_to(target / file.name)
        name = expert_name(n + 1, expert)
        write_status(target, TrialStatus(trial=name, state="finished", samples=1, taken_from=source.uri))
    save_expert(expert_folder(config, n), seed=n)
    return config


def expert_folder(config: RunConfig, expert: int) -> Location:
    """Where an expert of a run lies."""
    return stage_directories(config.directory)["train"] / expert_name(config.train.experts, expert)


def _write_run(
    folder: Path,
    topics: Sequence[str],
    owners_m: npt.NDArray[np.integer],
    serve: Mapping[str, object],
    architecture: str,
) -> RunConfig:
    experts = int(owners_m.max()) + 1
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
        coarse={experts: owners_m.astype(np.int32)},
    ).save(places["cluster"])
    for stage in ("cluster", "train"):
        Stage(stage, places[stage], {}).finish([], {})
    (config.directory / "config.yaml").write_text(dump_config(config))
    return config


def save_expert(folder: Location, seed: int, architecture: str = ARCHITECTURE) -> None:
    """Write an untrained model."""
    save_clip(folder, build_clip(ModelConfig(architecture=architecture, precision="float32"), seed=seed))
