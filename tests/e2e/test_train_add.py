"""A new expert for a finished run: extended clustering, `train add`, evaluation; the old run stays as it is.

Run A has two experts on captions of animals. Run B brings captions of which half are of another kind; its far ones
extend the clustering by an expert. Run C trains that expert alone, from A's seed, and evaluates all three.
"""

import io
import json
import shlex
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
import yaml
from PIL import Image

from mode_ray.cli import main
from mode_ray.cluster.clustering import Clustering
from mode_ray.models.clip import load_clip
from mode_ray.storage import Location
from mode_ray.train.runs.trial import read_metrics

pytestmark = pytest.mark.drill

ANIMALS = ("cat", "dog", "horse", "whale", "frog", "eagle", "bear", "sheep", "rabbit", "snake")
DEEDS = ("sleeping", "running", "eating", "hiding", "playing", "drinking")
PLACES = ("in the forest", "on the grass", "by the river", "in the snow", "near the barn")
COURTS = ("judge", "lawyer", "notary", "senator", "auditor", "clerk")
PAPERS = ("tax invoice", "contract clause", "court verdict", "bank statement", "insurance policy")
TIMES = ("signed quarterly", "filed for appeal", "under federal law")
OLD = [f"a {animal} {deed} {place}" for animal, deed, place in product(ANIMALS, DEEDS, PLACES)]
FOREIGN = [f"{person} {paper} {time}" for person, paper, time in product(COURTS, PAPERS, TIMES)]
MODEL = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 16, "patch_size": 8, "layers": 1, "width": 16, "head_width": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    },
    "preprocess_cfg": {},
}
BATCH = 16


class Runs(NamedTuple):
    """The folder with runs A, B and C, and A's files as they were before C."""

    folder: Path
    a_before: dict[str, tuple[bytes, int]]


def picture(number: int) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(number).integers(0, 255, (20, 20, 3)).astype(np.uint8)
    Image.fromarray(noise).save(buffer, "PNG")
    return buffer.getvalue()


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(file.relative_to(folder)): (file.read_bytes(), file.stat().st_mtime_ns)
        for file in folder.rglob("*")
        if file.is_file()
    }


def write_run(folder: Path, name: str, captions: list[str], experts: int, **changes: object) -> str:
    """Write the pairs and the config of a run; returns the config's path."""
    source = folder / f"{name}-pairs"
    source.mkdir()
    images = [picture(number) for number in range(len(captions))]
    pq.write_table(pa.table({"image": images, "caption": captions}), source / "0.parquet")
    values: dict[str, Any] = {
        "run": str(folder / name),
        "captions": {"paths": [str(source)]},
        "encoder": {"kind": "static", "model": "package:wordllama"},
        "embed": {"pool": {"max_actors": 1}},
        "assign": {"pool": {"max_actors": 1}},
        "cluster": {"fine": {"centers": 12}, "coarse": {"experts": [experts]}, "sample_rows": 1000},
        "train": {
            "model": {"architecture": str(folder / "model"), "precision": "float32"},
            "optimizer": {"learning_rate": 1e-3, "warmup_samples": BATCH},
            "experts": experts,
            "dense_samples": 16 * BATCH,
            "seed_share": 0.5,
            "batch_size": BATCH,
            "placement": {"workers_per_run": 0, "concurrent_runs": 2},
        },
        "evaluate": {"tasks": [str(folder / "task.yaml")]},
        **changes,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(values))
    return str(folder / f"{name}.yaml")


@pytest.fixture(scope="module")
def runs(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("train-add")
    (folder / "model").mkdir()
    (folder / "model" / "open_clip_config.json").write_text(json.dumps(MODEL))
    held_out = {"image": [picture(10_000 + number) for number in range(20)], "label": ["cat", "judge"] * 10}
    pq.write_table(pa.table(held_out), folder / "task.parquet")
    task = {"name": "kind", "kind": "classification", "paths": ["task.parquet"], "classes": ["cat", "judge"]}
    (folder / "task.yaml").write_text(yaml.safe_dump(task))
    assert main(["run", "--until", "train", "--config", write_run(folder, "A", OLD, 2)]) == 0

    new = OLD[:60] + FOREIGN
    b = write_run(folder, "B", new, 2, cluster={"reuse": str(folder / "A/clusters")})
    for stage in ("embed", "cluster", "assign"):
        assert main([stage, "--config", b]) == 0
    extended = str(folder / "extended")
    assert main(["cluster", "extend", "--config", b, "--centers", "3", "--to", extended, "--new-expert"]) == 0

    c = write_run(folder, "C", new, 3, cluster={"reuse": extended})
    for stage in ("embed", "cluster", "assign"):
        assert main([stage, "--config", c]) == 0
    before = contents(folder / "A")
    assert main(["train", "add", "--config", c, "--from", str(folder / "A")]) == 0
    assert main(["evaluate", "--config", c, f"train.reuse={folder / 'A'}"]) == 0
    return Runs(folder, before)


def test_the_old_run_is_byte_by_byte_and_second_by_second_as_it_was(runs: Runs) -> None:
    assert contents(runs.folder / "A") == runs.a_before


def test_old_experts_seed_and_dense_are_not_trained_again(runs: Runs) -> None:
    for name, before in (("seed", "seed"), ("dense", "dense"), ("n3/00", "n2/00"), ("n3/01", "n2/01")):
        new, old = runs.folder / "C/experts" / name, runs.folder / "A/experts" / before
        for file in ("open_clip_model.safetensors", "open_clip_config.json", "metrics.json"):
            assert (new / file).read_bytes() == (old / file).read_bytes()
        status = json.loads((new / "status.json").read_text())
        assert (status["state"], status["launches"], status["taken_from"]) == ("finished", 0, str(old))


def test_the_new_expert_went_on_from_the_old_seed_on_the_new_centers_alone(runs: Runs) -> None:
    status = json.loads((runs.folder / "C/experts/n3/02/status.json").read_text())
    assert (status["state"], status["launches"]) == ("finished", 1)
    metrics = read_metrics(Location.parse(str(runs.folder / "C/experts/n3/02")))
    fine = pa.concat_tables(
        [pq.read_table(file).replace_schema_metadata(None) for file in (runs.folder / "C/assignments").glob("0-*")]
    )["fine"].to_numpy()
    own = int((fine >= 12).sum())
    assert own > 0
    assert abs(metrics["pairs"] - own / 0.98) <= 1
    # Near to the seed still, by a few steps: as an expert of A is, and as a model trained from scratch is not.
    distances = {
        name: distance_to_seed(runs.folder / place)
        for name, place in (("new", "C/experts/n3/02"), ("old", "A/experts/n2/00"))
    }
    assert 0 < distances["new"] < 3 * distances["old"]


def distance_to_seed(folder: Path) -> float:
    seed = safetensors.torch.load_file(folder.parents[1] / "seed" / "open_clip_model.safetensors")
    own = safetensors.torch.load_file(folder / "open_clip_model.safetensors")
    return float(torch.stack([(own[name] - seed[name]).abs().mean() for name in seed]).mean())


def test_the_manifest_says_what_was_taken_over(runs: Runs) -> None:
    summary = json.loads((runs.folder / "C/experts/manifest.json").read_text())["summary"]["reuse"]
    assert summary["run"] == str(runs.folder / "A")
    assert sorted(summary["taken"]) == ["dense", "n3/00", "n3/01", "seed"]
    assert summary["trained"] == ["n3/02"]
    # JSON has no sets: what differs are n and nothing else.
    assert list(summary["fields_that_differ"]) == ["train.experts"]


def test_the_evaluation_is_of_three_experts_with_the_samples_they_saw(runs: Runs) -> None:
    report = json.loads((runs.folder / "C/evaluation/report.json").read_text())
    assert len(report["experts"]) == 3
    assert len(Clustering.load(Location.parse(str(runs.folder / "C/clusters"))).coarse[3]) == 15
    seen = {model["name"]: model["samples_seen"] for model in report["models"]}
    for number in range(3):
        metrics = read_metrics(Location.parse(str(runs.folder / f"C/experts/n3/{number:02d}")))
        assert seen[f"expert {number} alone"] == metrics["samples"]


def test_again_there_is_nothing_to_do(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(runs.folder / "C/experts")
    config, old = str(runs.folder / "C.yaml"), str(runs.folder / "A")
    assert main(["train", "add", "--config", config, "--from", old]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert contents(runs.folder / "C/experts") == before


def test_all_of_it_exports(runs: Runs, tmp_path: Path) -> None:
    target = tmp_path / "out"
    config = str(runs.folder / "C.yaml")
    assert main(["export", "--config", config, "--to", str(target)]) == 0
    assert (target / "expert-02/open_clip_model.safetensors").read_bytes() == (
        runs.folder / "C/experts/n3/02/open_clip_model.safetensors"
    ).read_bytes()
    assert main(["export", "--config", config, "--to", str(tmp_path / "mean"), "--average"]) == 0
    load_clip(Location.parse(str(tmp_path / "mean")))


def test_the_commands_of_the_readme_work_as_typed(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From README, "New data", in an empty directory with A and new pairs; only A's path and the sizes differ."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "new").symlink_to(runs.folder / "B-pairs")
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    section = readme.split("### New data\n")[1].split("\n### ")[0]
    commands = [line.strip() for line in section.splitlines() if line.startswith("    mode-ray")]
    assert [command.split()[1] for command in commands] == [
        *("run", "drift", "cluster", "run", "train", "evaluate", "serve", "serve")
    ]
    sizes = {"new/*.tar": "new/*.parquet", "--centers 8": "--centers 3", "train.experts=5": "train.experts=3"}
    typed = "\n".join(commands[:-2])  # tests/serve adds experts to a service
    for written, here in {**sizes, "$A": str(runs.folder / "A")}.items():
        assert written in typed
        typed = typed.replace(written, here)
    for command in typed.splitlines():
        assert main(shlex.split(command)[1:]) == 0, command
    new = tmp_path / "grown/C/experts/n3/02"
    assert (new / "open_clip_config.json").exists()
    assert json.loads((tmp_path / "grown/C/evaluation/report.json").read_text())["models"]


def test_heads_are_added_with_the_features_of_the_new_pairs(runs: Runs, tmp_path: Path) -> None:
    heads = ("train.data.mode=features", "train.model.lock={image: {groups: 1}, text: {groups: 1}}")
    a, c = (["--config", str(runs.folder / f"{name}.yaml"), f"run={tmp_path / name}", *heads] for name in "AC")
    assert main(["run", "--until", "train", *a]) == 0
    assert main(["run", "--until", "assign", *c]) == 0
    assert main(["train", "add", "--from", str(tmp_path / "A"), *c]) == 0
    assert (tmp_path / "C/features/manifest.json").exists()
    assert (tmp_path / "C/experts/n3/02/open_clip_config.json").exists()


def test_a_run_that_is_not_finished_is_refused(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = [f"run={runs.folder / 'D'}"]
    assert main(["run", "--until", "assign", "--config", str(runs.folder / "C.yaml"), *overrides]) == 0
    arguments = ["train", "add", "--config", str(runs.folder / "C.yaml"), "--from", str(runs.folder / "B")]
    assert main([*arguments, *overrides]) == 2
    assert "its train stage is not done" in capsys.readouterr().err
    assert not (runs.folder / "D/experts").exists()
