"""A tiny run for tests of commands: pictures with captions, one task, a model of one layer, a config."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

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


def write_run_inputs(folder: Path) -> Path:
    """Write data, model and config below a folder; returns the config file of a run in `folder/run`."""
    (folder / "model").mkdir()
    (folder / "model" / "open_clip_config.json").write_text(json.dumps(MODEL))
    images = [_picture(number) for number in range(len(CAPTIONS))]
    pq.write_table(pa.table({"image": images, "caption": CAPTIONS}), folder / "pairs.parquet")
    pq.write_table(pa.table({"image": images[:8], "label": ["cat", "dog"] * 4}), folder / "task.parquet")
    task = {"name": "kind", "kind": "classification", "paths": ["task.parquet"], "classes": ["cat", "dog"]}
    (folder / "task.yaml").write_text(yaml.safe_dump(task))
    values = {
        "run": str(folder / "run"),
        "captions": {"paths": [str(folder / "pairs.parquet")]},
        "encoder": {"kind": "static", "model": "package:wordllama"},
        "embed": {"pool": {"max_actors": 1}},
        "assign": {"pool": {"max_actors": 1}},
        "cluster": {"sample_rows": 1000, "fine": {"centers": 6}, "coarse": {"experts": [2]}},
        "train": {
            "model": {"architecture": str(folder / "model"), "precision": "float32"},
            "experts": 2,
            "dense_samples": 8 * BATCH,
            "seed_share": 0.5,
            "batch_size": BATCH,
            "placement": {"workers_per_run": 0, "concurrent_runs": 2},
        },
        "sweep": {
            "fields": {"train.optimizer.learning_rate": [1e-3, 2e-3]},
            "model": "dense",
            "held_out_pairs": 4,
            "measurements": 2,
            # Otherwise ASHA may stop the trial that is measured last, if its recall is the lower one.
            "grace_share": 1.0,
        },
        "evaluate": {"tasks": [str(folder / "task.yaml")]},
    }
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def _picture(number: int) -> bytes:
    """A PNG of noise."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 255, (20, 20, 3)).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()
