"""A study of two points, end to end: one clustering and seed model for both, table and picture; again at once."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from mode_ray.cli import main

pytestmark = pytest.mark.drill

BATCH = 16
MODEL = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 16, "patch_size": 8, "layers": 1, "width": 16, "head_width": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    },
    "preprocess_cfg": {},
}
ANIMALS = ("cat", "dog", "horse", "whale", "frog", "eagle")
CAPTIONS = [f"a {animal} {deed}" for animal in ANIMALS for deed in ("sleeping", "running", "eating", "in the snow")]


def picture(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 255, (20, 20, 3)).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def study(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "open_clip_config.json").write_text(json.dumps(MODEL))
    images = [picture(number) for number in range(len(CAPTIONS))]
    pq.write_table(pa.table({"image": images, "caption": CAPTIONS}), tmp_path / "pairs.parquet")
    pq.write_table(pa.table({"image": images[:8], "label": ["cat", "dog"] * 4}), tmp_path / "task.parquet")
    task = {"name": "kind", "kind": "classification", "paths": ["task.parquet"], "classes": ["cat", "dog"]}
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(task))
    base: dict[str, Any] = {
        "run": "not used",
        "captions": {"paths": [str(tmp_path / "pairs.parquet")]},
        "encoder": {"kind": "static", "model": "package:wordllama"},
        "embed": {"pool": {"max_actors": 1}},
        "assign": {"pool": {"max_actors": 1}},
        "cluster": {"fine": {"centers": 8}, "coarse": {"experts": [1, 2]}, "sample_rows": 1000},
        "train": {
            "model": {"architecture": str(tmp_path / "model"), "precision": "float32"},
            "dense_samples": 8 * BATCH,
            "seed_share": 0.5,
            "batch_size": BATCH,
            "placement": {"workers_per_run": 0, "concurrent_runs": 2},
        },
        "evaluate": {"tasks": [str(tmp_path / "task.yaml")], "rules": ["calibrated", "uniform"]},
    }
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({**base, "train": {**base["train"], "experts": 2}}))
    about = {"study": str(tmp_path / "study"), "base": str(tmp_path / "base.yaml"), "title": "How many experts"}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({**about, "field": "train.experts", "values": [1, 2]}))
    return tmp_path


def test_two_points_share_what_they_can_and_end_in_one_table(
    study: Path, ray_session: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", "--config", str(study / "study.yaml")]) == 0
    points = study / "study/points"
    assert sorted(point.name for point in points.iterdir()) == ["1-seed0", "2-seed0"]
    centers = [(points / name / "clusters/fine.safetensors").read_bytes() for name in ("1-seed0", "2-seed0")]
    assert centers[0] == centers[1]
    for model in ("seed", "dense"):
        taken = json.loads((points / f"2-seed0/experts/{model}/status.json").read_text())
        assert taken["taken_from"] == str(points / "1-seed0/experts" / model)
    results = json.loads((study / "study/study.json").read_text())
    found = {(row["label"], row["line"]) for row in results["measured"]}
    assert {(label, line) for label in "12" for line in ("dense", "MoDE-n (calibrated)", "MoDE-n (uniform)")} <= found
    means = {(row["label"], row["line"]): row["mean"] for row in results["measured"]}
    assert results["tasks"] == ["kind"]
    for row in results["differences"]:
        ahead = means[row["label"], "MoDE-n (calibrated)"] - means[row["label"], row["line"]]
        assert row["mean"] == row["tasks"]["kind"] == ahead
    page = (study / "study/study.html").read_text()
    assert "MoDE minus dense, by task" in page
    assert "How many experts" in page
    assert "2 of 2 runs are evaluated" in page
    assert Image.open(study / "study/study.png").format == "PNG"

    before = {file: file.stat().st_mtime_ns for file in points.rglob("metrics.json")}
    capsys.readouterr()
    assert main(["study", "--config", str(study / "study.yaml")]) == 0
    assert {file: file.stat().st_mtime_ns for file in points.rglob("metrics.json")} == before
    assert "begins" not in capsys.readouterr().out


def test_points_on_locked_towers_share_their_features_and_leave_no_weights(study: Path, ray_session: None) -> None:
    changes = {
        "train.data.mode": "features",
        "train.model.lock": {"image": {"groups": 1}, "text": {"groups": 1}},
        "train.controls": ["dense", "wide", "clustered"],
        "features.views": 2,
    }
    about = {"study": str(study / "heads"), "base": str(study / "base.yaml"), "changes": changes, "keep_models": False}
    (study / "heads.yaml").write_text(yaml.safe_dump({**about, "field": "cluster.fine.centers", "values": [8, 6]}))
    assert main(["study", "--config", str(study / "heads.yaml")]) == 0
    first, second = (study / f"heads/points/{m}-seed0" for m in (8, 6))
    assert not (first / "clusters/fine.safetensors").samefile(second / "clusters/fine.safetensors")
    outputs = sorted((first / "features").glob("*.parquet"))
    assert len(outputs) == 2  # one unit, and the list of units
    assert all(file.samefile(second / "features" / file.name) for file in outputs)
    results = json.loads((study / "heads/study.json").read_text())
    compared = {row["line"] for row in results["differences"] if row["label"] == "6"}
    assert {"dense", "dense, as wide as all experts", "dense, batches of one cluster"} <= compared
    left = {str(file.parent.relative_to(study / "heads/points")) for file in study.glob("heads/**/open_clip_model.*")}
    assert left == {"8-seed0/experts/seed", "8-seed0/experts/dense"}
    assert main(["status", str(second)]) == 0
