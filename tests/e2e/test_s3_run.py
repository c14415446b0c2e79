"""A whole run on S3: input, tasks, config and the run directory lie there, Ray Train's checkpoints included."""

import json
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

import boto3
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from mode_ray.cli import main
from mode_ray.run_directory import CHECKPOINT_FOLDER
from mode_ray.stages.manifest import Manifest, read_manifest, read_units
from mode_ray.storage import Location

STAGES = {
    "embed": "embeddings",
    "cluster": "clusters",
    "assign": "assignments",
    "train": "experts",
    "evaluate": "evaluation",
}
TRIALS = ("seed", "n2/00", "n2/01")
PAIRS, HELD_OUT, CLASSES = 300, 120, 8
MODEL = {
    "model_cfg": {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "layers": 1, "width": 32, "head_width": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    },
    "preprocess_cfg": {},
}
EMPTY_CAPTIONS = 5


@dataclass(frozen=True)
class FinishedRun:
    """A run after its first invocation: where it and its config lie, and what it printed."""

    directory: Location
    config: Location
    exit_code: int
    printed: str

    def stage(self, name: str) -> Location:
        """Directory of a stage."""
        return self.directory / STAGES[name]

    def manifest(self, name: str) -> Manifest:
        """Manifest of a finished stage."""
        manifest = read_manifest(self.stage(name))
        assert manifest is not None
        return manifest

    def objects(self) -> dict[str, tuple[str, str]]:
        """Content hash and time of every object of the run's stages."""
        bucket, prefix = self.directory.path.split("/", 1)
        pages = boto3.client("s3").get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/")
        found = [entry for page in pages for entry in page.get("Contents", [])]
        return {
            entry["Key"]: (entry["ETag"], str(entry["LastModified"]))
            for entry in found
            if entry["Key"].removeprefix(f"{prefix}/").count("/")
        }


pytestmark = pytest.mark.drill


@pytest.fixture(scope="module")
def run(
    s3_server: str,
    shared_data: Path,
    ray_session: None,
    tmp_path_factory: pytest.TempPathFactory,
) -> FinishedRun:
    """Every stage by one command, on slices of the emoji and of the small photos."""
    bucket = f"mode-ray-{secrets.token_hex(4)}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    root = Location.parse(f"s3://{bucket}")
    write_input(root, shared_data)
    model = tmp_path_factory.mktemp("tiny-clip")
    (model / "open_clip_config.json").write_text(json.dumps(MODEL))
    config = root / "config.yaml"
    config.write_text(yaml.safe_dump(settings(root, model)))
    console = tmp_path_factory.mktemp("console") / "stdout"
    with pytest.MonkeyPatch.context() as patch, console.open("w") as stdout:
        patch.setattr("sys.stdout", stdout)
        exit_code = main(["run", "--config", config.uri])
    return FinishedRun(root / "run", config, exit_code, console.read_text())


def settings(root: Location, model: Path) -> dict[str, object]:
    """A config whose every path but the architecture's is on S3."""
    return {
        "run": f"{root}/run",
        "captions": {"paths": [f"{root}/input/*.parquet"], "key_field": "key"},
        "encoder": {"kind": "static", "model": "package:wordllama"},
        "embed": {"pool": {"max_actors": 1}},
        "cluster": {"fine": {"centers": 16}, "coarse": {"experts": [2]}, "placement": {"threads": 1}},
        "assign": {"pool": {"max_actors": 1}},
        "train": {
            "model": {"architecture": str(model), "precision": "float32"},
            "experts": 2,
            "controls": [],
            "dense_samples": 256,
            "seed_share": 0.5,
            "batch_size": 32,
            "optimizer": {"warmup_samples": 32},
            # Shorter than any step, so that each one leaves a checkpoint.
            "placement": {"concurrent_runs": 2, "checkpoint_interval_seconds": 0.001, "log_interval_steps": 1},
        },
        "evaluate": {
            "tasks": [f"{root}/tasks/photos.yaml", f"{root}/tasks/emoji.yaml"],
            "placement": {"threads_per_task": 1},
        },
    }


def write_input(root: Location, shared_data: Path) -> None:
    """Two parquet shards of pairs, two held-out ones, and their tasks."""
    emoji = read_slice(shared_data / "emoji.parquet", ["image", "caption", "key"])
    photos = read_slice(shared_data / "photos32.parquet", ["image", "caption", "key", "label"])
    captions = emoji["caption"].to_pylist()[:PAIRS]
    without = pa.array([""] * EMPTY_CAPTIONS + captions[EMPTY_CAPTIONS:])
    pairs = emoji.slice(0, PAIRS)
    (root / "input/emoji.parquet").write_table(pairs.set_column(1, "caption", without))
    (root / "input/photos.parquet").write_table(photos.slice(0, PAIRS).select(["image", "caption", "key"]))
    (root / "held-out/emoji.parquet").write_table(emoji.slice(PAIRS))
    (root / "held-out/photos.parquet").write_table(photos.slice(PAIRS))
    classes = sorted(set(photos.slice(PAIRS)["label"].to_pylist()))[:CLASSES]
    photos_task = {
        "name": "photos",
        "kind": "classification",
        "paths": ["../held-out/photos.parquet"],
        "classes": classes,
        "templates": ["a photo of a {}.", "a small {}."],
    }
    emoji_task = {"name": "emoji", "kind": "retrieval", "paths": ["../held-out/emoji.parquet"]}
    (root / "tasks/photos.yaml").write_text(yaml.safe_dump(photos_task))
    (root / "tasks/emoji.yaml").write_text(yaml.safe_dump(emoji_task))


def read_slice(file: Path, columns: list[str]) -> pa.Table:
    """Rows to train on, then rows to hold out."""
    return pq.read_table(file, columns=columns).slice(0, PAIRS + HELD_OUT).combine_chunks()


def test_the_command_ends_well_and_names_the_report(run: FinishedRun) -> None:
    assert run.exit_code == 0, run.printed
    assert run.printed.rstrip().endswith(f"report: {run.directory}/evaluation/report.html")


@pytest.mark.parametrize("stage", STAGES)
def test_rows_in_are_rows_out_and_refused_ones(run: FinishedRun, stage: str) -> None:
    manifest = run.manifest(stage)
    assert manifest.rows_in == manifest.rows_out + sum(manifest.refused.values())
    assert manifest.quarantined == {}
    units = read_units(run.stage(stage))
    assert len(units) == manifest.units
    assert sum(unit.rows_out for unit in units) == manifest.rows_out


def test_every_caption_is_accounted_for_from_input_to_assignment(run: FinishedRun) -> None:
    embedded, assigned = run.manifest("embed"), run.manifest("assign")
    assert embedded.rows_in == 2 * PAIRS
    assert embedded.refused == {"empty caption": EMPTY_CAPTIONS}
    assert embedded.rows_out == assigned.rows_in == assigned.rows_out == 2 * PAIRS - EMPTY_CAPTIONS
    tables = [
        (run.stage("assign") / f"{unit.unit}.parquet").read_table(["row", "key", "fine", "distance"])
        for unit in read_units(run.stage("assign"))
    ]
    assert sum(table.num_rows for table in tables) == assigned.rows_out
    fine = pa.concat_tables(tables)["fine"].to_pylist()
    assert set(fine) <= set(range(16))
    assert sum(run.manifest("train").summary["pairs_by_expert"]) == assigned.rows_out


def test_the_samples_of_seed_and_experts_add_up_to_the_budget(run: FinishedRun) -> None:
    samples = {unit.unit: unit.rows_out for unit in read_units(run.stage("train"))}
    assert set(samples) == set(TRIALS)
    assert samples["seed"] == 128
    # Each expert's share is rounded to whole batches.
    assert abs(samples["n2/00"] + samples["n2/01"] - 128) <= 32


@pytest.mark.parametrize("trial", TRIALS)
def test_open_clip_itself_loads_every_model(run: FinishedRun, trial: str, tmp_path: Path) -> None:
    for name in ("open_clip_config.json", "open_clip_model.safetensors"):
        (tmp_path / name).write_bytes((run.stage("train") / trial / name).read_bytes())
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path}")(["a cat"])
    with torch.inference_mode():
        embedding = model.encode_text(tokens, normalize=True)
    assert embedding.shape == (1, 32)
    assert torch.isfinite(embedding).all()


def test_experts_went_on_from_the_seed_and_apart(run: FinishedRun) -> None:
    weights = {trial: (run.stage("train") / trial / "open_clip_model.safetensors").read_bytes() for trial in TRIALS}
    assert len(set(weights.values())) == 3
    status = {trial: json.loads((run.stage("train") / trial / "status.json").read_text()) for trial in TRIALS}
    assert {trial: (entry["state"], entry["launches"]) for trial, entry in status.items()} == dict.fromkeys(
        TRIALS, ("finished", 1)
    )


def test_no_checkpoint_is_left_once_the_models_stand(run: FinishedRun) -> None:
    # Every step left one on S3, or the runs could not have ended: their storage is nowhere else.
    left = [file.uri for file in run.stage("train").files(recursive=True) if f"/{CHECKPOINT_FOLDER}/" in file.uri]
    assert left == []


def test_the_report_shows_the_tasks(run: FinishedRun) -> None:
    page = (run.stage("evaluate") / "report.html").read_text()
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert "photos" in page
    assert "emoji" in page
    photos = json.loads((run.stage("evaluate") / "tasks/photos/task.json").read_text())
    assert len(photos["texts"]) == CLASSES
    assert photos["images"] + sum(photos["skipped"].values()) == HELD_OUT


def test_status_shows_all_stages_done(run: FinishedRun, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", run.directory.uri]) == 0
    printed = capsys.readouterr().out
    for stage in STAGES:
        line = next(line.split() for line in printed.splitlines() if line.split()[:1] == [stage])
        assert line[1] == "done"
    for trial in TRIALS:
        line = next(line.split() for line in printed.splitlines() if line.split()[:1] == [trial])
        assert line[1] == "finished"


def test_a_second_invocation_has_nothing_to_do_at_once(run: FinishedRun, capsys: pytest.CaptureFixture[str]) -> None:
    before = run.objects()
    began = time.monotonic()
    assert main(["run", "--config", run.config.uri]) == 0
    assert time.monotonic() - began < 10
    assert "nothing to do" in capsys.readouterr().out
    assert run.objects() == before
