"""A small finished run, written as by its stages, and two untrained models."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from report_example import example_report

from mode_ray.assign.table import DISTANCE, FINE
from mode_ray.atlas.data import AtlasFacts, atlas_data
from mode_ray.atlas.sample import summarise
from mode_ray.atlas.summary import write_summary
from mode_ray.captions.listing import list_work_units
from mode_ray.cluster.calibration import calibration_of
from mode_ray.cluster.clustering import Clustering
from mode_ray.config.run import RunConfig
from mode_ray.config.train import ModelConfig
from mode_ray.embed.encoder import encoder_name
from mode_ray.evaluate.measure.measurements import TaskCosines, TaskSummary
from mode_ray.evaluate.report.compare import Router, compare
from mode_ray.evaluate.report.sources import ReportSources
from mode_ray.evaluate.tasks.task import load_tasks
from mode_ray.models.clip import build_clip, save_clip
from mode_ray.routing.router import expert_centers
from mode_ray.run_directory import METRICS_FILE, stage_directories
from mode_ray.stages.manifest import Stage, UnitRecord
from mode_ray.stages.run import Run
from mode_ray.storage import Location
from mode_ray.train.plan import Trial, expert_name
from mode_ray.train.stage import planned_trials

PAIRS, CENTERS, BATCH = 16, 4, 8
CLASSES = ("cat", "dog", "bus")


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (200, 100), (number * 10, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def report() -> dict[str, Any]:
    """The data of a report with all optional fields."""
    return example_report()


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Location]:
    """Two untrained models of different seeds."""
    root = tmp_path_factory.mktemp("models")
    vision = {"image_size": 16, "patch_size": 8, "layers": 1, "width": 16, "head_width": 8}
    text = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    model = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    (root / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": {}}))
    folders = {name: Location.parse(str(root / name)) for name in ("dense", "n2/00")}
    for seed, folder in enumerate(folders.values()):
        save_clip(folder, build_clip(ModelConfig(architecture=str(root), precision="float32"), seed))
    return folders


@pytest.fixture
def sources(tmp_path: Path) -> ReportSources:
    """A small finished run, written as by its stages."""
    data, root = tmp_path / "data", Location.parse(str(tmp_path / "run"))
    data.mkdir()
    (data / "LICENSE.txt").write_text("Drawings\n by nobody\n")
    (tmp_path / "pets.yaml").write_text(
        f"{{name: pets, kind: classification, paths: [x.parquet], classes: [{', '.join(CLASSES)}]}}"
    )
    images = [png(n) for n in range(PAIRS)]
    pq.write_table(pa.table({"image": images, "caption": [f"caption {n}" for n in range(PAIRS)]}), data / "a.parquet")
    config = RunConfig.model_validate(
        {
            "run": root.uri,
            "captions": {"paths": [str(data)]},
            "cluster": {"sample_rows": PAIRS, "fine": {"centers": CENTERS}, "coarse": {"experts": [2]}},
            "train": {
                "experts": 2,
                "dense_samples": 8 * BATCH,
                "seed_share": 0.5,
                "batch_size": BATCH,
                "controls": ["dense", "dense_equal_total", "clustered", "full", "random"],
            },
            "routing": {"rule": "soft"},
            "evaluate": {"rules": ["soft", "uniform"], "tasks": [str(tmp_path / "pets.yaml")]},
        }
    )
    work_units = list_work_units(config.captions)
    directories = stage_directories(root)
    clustering = Clustering(
        centers_md=np.eye(CENTERS, dtype=np.float32),
        prices_m=np.zeros(CENTERS),
        mass_m=np.array([8, 4, 4, 0]),
        squared_distance_m=np.array([1.0, 1.0, 4.0, 0.0]),
        encoder_name=encoder_name(config.encoder),
        coarse={2: np.array([0, 0, 1, 1], np.int32)},
    )
    fine = np.array([0] * 8 + [1] * 4 + [2] * 4, np.int32)
    rows = np.arange(PAIRS)
    # The higher the row, the nearer to its center.
    distance = (PAIRS - rows).astype(np.float32)
    sample = summarise(fine, distance, [f"caption {n}" for n in range(PAIRS)], per_end=5)
    summary = atlas_data(clustering, sample, AtlasFacts(about={}, slack=0.1, first_map=2, refused={}, versions={}))
    write_summary(directories["cluster"], summary)
    table = {"row": rows, "caption_index": rows * 0, FINE: fine, DISTANCE: distance}
    assign = Stage("assign", directories["assign"], {})
    assign.begin(1)
    record = UnitRecord(
        unit=work_units[0].unit, source="a.parquet", rows_in=PAIRS + 1, rows_out=PAIRS, refused={"empty": 1}
    )
    assign.finish([assign.write_unit(pa.table(table), record)], {})
    trials, pairs_n = planned_trials(Run(config, work_units), clustering)
    for trial in trials:
        history = [{"samples": float(trial.samples), "loss": 1.0 + len(trial.name)}]
        (directories["train"] / trial.name / METRICS_FILE).write_text(json.dumps({"history": history}))
    (task,) = load_tasks(config.evaluate.tasks)
    measured = _measured(trials)
    experts = [expert_name(2, expert) for expert in range(2)]
    controls = {
        "full": [expert_name(2, expert, "full") for expert in range(2)],
        "random": [expert_name(2, expert, "random") for expert in range(2)],
    }
    calibration = calibration_of(clustering, 2)
    router = Router(centers=expert_centers(clustering, 2), config=config.routing)
    results = compare(task, measured, experts, controls, router, config.evaluate.rules)
    return ReportSources(
        config=config,
        work_units=work_units,
        directories=directories,
        clustering=clustering,
        captions=summary["clusters"]["near"],
        trials=trials,
        pairs_n=pairs_n,
        tasks=[task],
        measured={"pets": measured},
        results={"pets": results},
        calibration=calibration,
    )


def _measured(trials: list[Trial]) -> TaskCosines:
    """Every model answers four of five images; expert 1 all of them."""
    names = [trial.name for trial in trials if trial.name != "seed"]
    labels = np.array([0, 1, 2, 0, 1])
    right = np.eye(3, dtype=np.float32)[labels]
    wrong = right.copy()
    wrong[4] = [0, 0, 1]
    summary = TaskSummary(
        task="pets",
        models=tuple(names),
        logit_scales=dict.fromkeys(names, 14.0),
        images=5,
        texts=CLASSES,
        skipped={},
        examples={},
    )
    cosines = {name: right if name == "n2/01" else wrong for name in names}
    return TaskCosines(summary, cosines, labels, np.eye(CENTERS, dtype=np.float32)[:3])
