"""A tiny CLIP, two shards of coloured pictures, and their assignment to four fine clusters and two experts."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_clip
from PIL import Image

from mode_ray.assign.table import DISTANCE, FINE
from mode_ray.captions.listing import list_work_units
from mode_ray.captions.read import read_captions
from mode_ray.cluster.clustering import Clustering
from mode_ray.config.run import RunConfig
from mode_ray.embed.table import place_columns
from mode_ray.pairs.index import PairIndex, load_index
from mode_ray.run_directory import WORK_UNITS_FILE
from mode_ray.stages.manifest import Stage, UnitRecord
from mode_ray.stages.work_unit import WorkUnit, write_work_units
from mode_ray.storage import Location
from mode_ray.train.plan import Trial
from mode_ray.train.runs.trial import TrialJob

architecture, new_clip = tiny_clip.architecture, tiny_clip.new_clip

COLOURS = {"red": (230, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 230), "yellow": (230, 220, 20)}
EXPERT_OF_FINE = [0, 0, 1, 1]
PAIRS_PER_SHARD = 24
BATCH = 8


def picture(number: int) -> bytes:
    """A noisy PNG of the number's colour, larger than the model's input so that crops differ."""
    colour = list(COLOURS.values())[number % len(COLOURS)]
    noise = np.random.default_rng(number).integers(-20, 20, (24, 24, 3))
    buffer = io.BytesIO()
    Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def caption(number: int) -> str:
    """A caption that names the colour."""
    return f"a {list(COLOURS)[number % len(COLOURS)]} square number {number}"


@pytest.fixture
def data_folder(tmp_path: Path) -> Path:
    """One tar and one parquet file with two row groups: pairs 0 to 23, and 24 to 47."""
    folder = tmp_path / "data"
    folder.mkdir()
    with tarfile.open(folder / "a.tar", "w") as archive:
        for number in range(PAIRS_PER_SHARD):
            for suffix, content in (("png", picture(number)), ("txt", caption(number).encode())):
                member = tarfile.TarInfo(f"{number:06d}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    numbers = range(PAIRS_PER_SHARD, 2 * PAIRS_PER_SHARD)
    table = pa.table({"image": [picture(n) for n in numbers], "caption": [caption(n) for n in numbers]})
    pq.write_table(table, folder / "b.parquet", row_group_size=PAIRS_PER_SHARD // 2)
    return folder


@pytest.fixture
def make_config(tmp_path: Path, data_folder: Path, architecture: Path) -> Callable[..., RunConfig]:
    """Makes a config of the tiny run; arguments replace fields of `train` (and of its placement, one by one)."""

    def make(limits: dict[str, Any] | None = None, **train: Any) -> RunConfig:  # noqa: ANN401
        fields: dict[str, Any] = {
            "model": {"architecture": str(architecture), "precision": "float32"},
            "optimizer": {"learning_rate": 3e-3, "warmup_samples": 2 * BATCH},
            "experts": 2,
            "dense_samples": 8 * BATCH,
            "seed_share": 0.5,
            "batch_size": BATCH,
            "out_of_cluster_share": 0.0,
        }
        placement = {"workers_per_run": 0, "log_interval_steps": 2} | train.pop("placement", {})
        return RunConfig.model_validate(
            {
                "run": str(tmp_path / "run"),
                "captions": {"paths": [f"{data_folder}/a.tar", f"{data_folder}/b.parquet"]},
                "limits": limits or {},
                "cluster": {"sample_rows": 48, "fine": {"centers": 4}, "coarse": {"experts": [2]}},
                "train": fields | train | {"placement": placement},
            }
        )

    return make


@pytest.fixture
def work_units(make_config: Callable[..., RunConfig]) -> list[WorkUnit]:
    """The tar and the parquet file."""
    return list_work_units(make_config().captions)


@pytest.fixture
def run_folder(make_config: Callable[..., RunConfig], work_units: list[WorkUnit]) -> Location:
    """A run directory as it is before training: the fine cluster of a pair is its colour."""
    config = make_config()
    centers_md = np.eye(4, dtype=np.float32)
    Clustering(
        centers_md=centers_md,
        prices_m=np.zeros(4),
        mass_m=np.full(4, 12),
        squared_distance_m=np.array([1.0, 1.0, 2.0, 2.0]),
        encoder_name="tiny",
        coarse={2: np.array(EXPERT_OF_FINE, np.int32)},
    ).save(config.directory / "clusters")
    assign = Stage("assign", config.directory / "assignments", {})
    assign.begin(len(work_units))
    records = []
    for work_unit in work_units:
        table = read_captions(work_unit, config.captions).table
        colours = [list(COLOURS).index(text.split()[1]) for text in table["caption"].to_pylist()]
        columns = {FINE: pa.array(colours, pa.int32()), DISTANCE: pa.array(np.zeros(len(colours), np.float32))}
        record = UnitRecord(unit=work_unit.unit, source=work_unit.uri, rows_in=len(colours), rows_out=len(colours))
        records.append(assign.write_unit(pa.table({**place_columns(table), **columns}), record))
    assign.finish(records, {})
    write_work_units(config.directory / "experts" / WORK_UNITS_FILE, work_units)
    return config.directory


@pytest.fixture
def all_pairs(run_folder: Location, work_units: list[WorkUnit]) -> PairIndex:
    """The index of all 48 pairs."""
    return load_index(run_folder / "assignments", work_units)


@pytest.fixture
def make_job(run_folder: Location, make_config: Callable[..., RunConfig]) -> Callable[..., TrialJob]:
    """Makes the job of a trial; further arguments as for `make_config`."""

    def make(trial: Trial, **config: Any) -> TrialJob:  # noqa: ANN401
        return TrialJob(
            trial=trial,
            config=make_config(**config),
            assignments=run_folder / "assignments",
            clusters=run_folder / "clusters",
            experts=run_folder / "experts",
        )

    return make
