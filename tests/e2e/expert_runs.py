"""What the drills of training share: pictures with captions of eight topics, a config for eight experts, commands."""

import io
import itertools
import json
import tarfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from fault_runs import COMMAND, Invocation
from PIL import Image

SEED = 20261125
EXPERTS, SLOTS = 8, 2
BATCH, STEPS = 32, 100
MAX_FAILURES = 9
DEADLINE_SECONDS = 900.0
ENVIRONMENT = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}
TOPICS = {
    "kitchen": ("pan", "oven", "spoon", "kettle", "fridge"),
    "sea": ("whale", "anchor", "lighthouse", "sailboat", "coral"),
    "sports": ("football", "goalkeeper", "racket", "marathon", "stadium"),
    "music": ("violin", "drummer", "orchestra", "trumpet", "choir"),
    "office": ("printer", "spreadsheet", "stapler", "meeting", "invoice"),
    "farm": ("tractor", "cow", "barn", "wheat", "piglet"),
    "space": ("rocket", "galaxy", "astronaut", "comet", "telescope"),
    "traffic": ("truck", "motorway", "bicycle", "crossroads", "tram"),
}
MODEL = {
    "model_cfg": {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "patch_size": 16, "layers": 1, "width": 32, "head_width": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    },
    "preprocess_cfg": {},
}


def assigned_run(folder: Path) -> Path:
    """Write captions and config, and assign them in `folder/assigned`; returns the config file."""
    config = write_config(folder)
    assert ended(command(config, folder / "assigned", "run --until assign")) == 0
    return config


def command(config: Path, run: Path, words: str, *arguments: str) -> Invocation:
    """A command of its own, with a Ray of its own where its arguments name none."""
    log = run.parent / f"{run.name}-{time.monotonic_ns()}.log"
    line = [str(COMMAND), *words.split(), "--config", str(config), *arguments, f"run={run}"]
    return Invocation(line, log, ENVIRONMENT)


def ended(invocation: Invocation) -> int:
    """Leave a command alone until it ends; its exit code."""
    try:
        return invocation.process.wait(DEADLINE_SECONDS)
    finally:
        if invocation.process.poll() is None:
            invocation.process.kill()
        print(invocation.printed())  # noqa: T201 - pytest shows it where the test fails


def write_config(folder: Path) -> Path:
    """Captions of eight topics with noisy pictures in four tars, and a config for eight experts."""
    captions = [
        f"a {noun} {place} {scene}"
        for nouns in TOPICS.values()
        for noun in nouns
        for place, scene in itertools.product(("seen", "drawn", "close by", "far away"), ("today", "at night"))
    ]
    order = np.random.default_rng(SEED).permutation(len(captions))
    (folder / "tars").mkdir()
    for number in range(4):
        with tarfile.open(folder / f"tars/{number}.tar", "w") as archive:
            for place in order[number::4]:
                for suffix, content in (("png", picture(int(place))), ("txt", captions[place].encode())):
                    member = tarfile.TarInfo(f"{place:04d}.{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    (folder / "model").mkdir()
    (folder / "model/open_clip_config.json").write_text(json.dumps(MODEL))
    values = {
        "run": str(folder / "run"),
        "captions": {"paths": [str(folder / "tars/*.tar")]},
        "limits": {"max_bad_image_share": 0.4},
        "encoder": {"kind": "static", "model": "package:wordllama"},
        "embed": {"pool": {"max_actors": 1}},
        "cluster": {"sample_rows": 320, "fine": {"centers": 24}, "coarse": {"experts": [EXPERTS]}},
        "assign": {"pool": {"max_actors": 1}},
        "train": {
            "model": {"architecture": str(folder / "model"), "precision": "float32"},
            "experts": EXPERTS,
            "controls": [],
            "expert_budget": "full",
            "dense_samples": 2 * STEPS * BATCH,
            "seed_share": 0.5,
            "batch_size": BATCH,
            "out_of_cluster_share": 0.02,
            "optimizer": {"warmup_samples": 8 * BATCH},
            "placement": {
                "concurrent_runs": SLOTS,
                "checkpoint_interval_seconds": 0.3,
                "log_interval_steps": 5,
                "max_failures": MAX_FAILURES,
                "max_launches": MAX_FAILURES,
            },
        },
        "ray": {"num_cpus": 2, "object_store_bytes": 200_000_000},
    }
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def write_small_run(folder: Path, pairs: int) -> Path:
    """Pairs in one file, and a config of all stages for two tiny experts; the task is retrieval in the same pairs."""
    file = write_config(folder)
    nouns = [noun for nouns in TOPICS.values() for noun in nouns]
    captions = [f"a {nouns[number % len(nouns)]} in place {number}" for number in range(pairs)]
    images = pa.array([picture(number) for number in range(pairs)], pa.binary())
    pq.write_table(pa.table({"caption": captions, "image": images}), folder / "pairs.parquet")
    task = {"name": "pairs", "kind": "retrieval", "paths": [str(folder / "pairs.parquet")]}
    (folder / "task.yaml").write_text(yaml.safe_dump(task))
    values = yaml.safe_load(file.read_text())
    values["captions"]["paths"] = [str(folder / "pairs.parquet")]
    values["cluster"] = {"sample_rows": 320, "fine": {"centers": 16, "iterations": 5}, "coarse": {"experts": [2]}}
    values["train"] |= {"experts": 2, "dense_samples": 8 * BATCH}
    values["evaluate"] = {"tasks": [str(folder / "task.yaml")], "placement": {"threads_per_task": 1}}
    file.write_text(yaml.safe_dump(values))
    return file


def picture(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
