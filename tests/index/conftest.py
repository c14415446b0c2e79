"""Two untrained experts, a clustering of a real encoder, and images in a parquet file and a tar."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from copied_run import copy_of
from PIL import Image
from tiny_clip import architecture

from mode_ray.captions.listing import list_work_units
from mode_ray.cluster.clustering import Clustering
from mode_ray.config.run import RunConfig
from mode_ray.config.train import ModelConfig
from mode_ray.embed.load import load_encoder
from mode_ray.models.clip import build_clip, save_clip
from mode_ray.pipeline import build_stages
from mode_ray.run_directory import stage_directories
from mode_ray.stages.run import Run

__all__ = ["architecture"]  # a fixture

PARQUET_ROWS, TAR_SAMPLES = 9, 4
BROKEN_ROW, EMPTY_ROW = 2, 5
TOPICS = ("a cat", "a dog", "a horse", "a bus", "a train", "a tram")


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 24, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, architecture: Path) -> RunConfig:
    """A run of two experts whose train stage is done, over one parquet file and one tar; tests only read it."""
    folder = tmp_path_factory.mktemp("trained")
    data = folder / "data"
    data.mkdir()
    images = [png(row) for row in range(PARQUET_ROWS)]
    images[BROKEN_ROW] = b"no image"
    column = pa.array([None if row == EMPTY_ROW else image for row, image in enumerate(images)], pa.binary())
    captions = pa.array([f"caption {row}" for row in range(PARQUET_ROWS)])
    pq.write_table(pa.table({"image": column, "caption": captions}), data / "a.parquet", row_group_size=3)
    with tarfile.open(data / "b.tar", "w") as archive:
        for sample in range(TAR_SAMPLES):
            for name, content in ((f"s{sample}.png", png(100 + sample)), (f"s{sample}.txt", b"a caption")):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    config = RunConfig.model_validate(
        {
            "run": str(folder / "run"),
            "captions": {"paths": [f"{data}/*.tar", f"{data}/*.parquet"]},
            "encoder": {"kind": "static", "model": "package:wordllama"},
            "cluster": {"sample_rows": 100, "fine": {"centers": len(TOPICS)}, "coarse": {"experts": [2]}},
            "train": {"model": {"architecture": str(architecture)}, "experts": 2, "dense_samples": 64},
            "index": {"rows_per_part": 4, "pool": {"max_actors": 1}, "placement": {"batch_size": 2}},
            "limits": {"max_refused_share": 0.5},
        }
    )
    places = stage_directories(config.directory)
    encoder = load_encoder(config.encoder, config.embed.encoder)
    Clustering(
        centers_md=encoder.encode(list(TOPICS)),
        prices_m=np.zeros(len(TOPICS)),
        mass_m=np.full(len(TOPICS), 5),
        squared_distance_m=np.ones(len(TOPICS)),
        encoder_name=encoder.name,
        coarse={2: np.array([0, 0, 0, 1, 1, 1], np.int32)},
    ).save(places["cluster"])
    for expert in range(2):
        model = build_clip(ModelConfig(architecture=str(architecture), precision="float32"), seed=expert)
        save_clip(places["train"] / f"n2/{expert:02d}", model)
    train = build_stages(Run(config, list_work_units(config.captions)))["train"]
    train.begin(1)
    train.finish([], {"trials": [], "pairs_by_expert": []})
    return config


@pytest.fixture
def config(trained: RunConfig, tmp_path: Path) -> RunConfig:
    """A copy of the trained run, for one test."""
    return copy_of(trained, tmp_path)
