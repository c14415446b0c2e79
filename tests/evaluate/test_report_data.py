"""What the report says is what the run's files hold: budgets, results by task, captions and pictures by cluster."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mode_ray.assign import DISTANCE, FINE
from mode_ray.captions.shards import list_shards
from mode_ray.cluster.clustering import Clustering
from mode_ray.config import RunConfig
from mode_ray.evaluate.compare import compare
from mode_ray.evaluate.measurements import TaskCosines, TaskSummary
from mode_ray.evaluate.report import ReportData, check_report, render_report
from mode_ray.evaluate.report_data import ReportSources, report_data
from mode_ray.evaluate.tasks import Task
from mode_ray.stage import Stage, UnitRecord
from mode_ray.storage import Location
from mode_ray.train.budget import Trial, expert_name
from mode_ray.train.run import planned_trials
from mode_ray.train.trial import METRICS_FILE

PAIRS, CENTERS, BATCH = 16, 4, 8
CLASSES = ("cat", "dog", "bus")
SHOWN = 7  # this pair is the nearest to its center
EMPTY = 3  # this fine cluster has no pair


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (200, 100), (number * 10, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def sources(tmp_path: Path) -> ReportSources:
    """A finished small run, its parts written as the stages write them."""
    data, root = tmp_path / "data", Location.parse(str(tmp_path / "run"))
    data.mkdir()
    (data / "LICENSE.txt").write_text("Drawings\n by nobody\n")
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
                "random_control": True,
            },
            "evaluate": {"rules": ["soft", "uniform"]},
        }
    )
    shards = list_shards(config.captions)
    directories = {name: root / name for name in ("embed", "cluster", "assign", "train", "evaluate")}
    clustering = Clustering(
        centers_md=np.eye(CENTERS, dtype=np.float32),
        prices_m=np.zeros(CENTERS),
        mass_m=np.array([8, 4, 4, 0]),
        squared_distance_m=np.array([1.0, 1.0, 4.0, 0.0]),
        encoder_name="letters",
        coarse={2: np.array([0, 0, 1, 1], np.int32)},
    )
    fine = np.array([0] * 8 + [1] * 4 + [2] * 4, np.int32)
    rows = np.arange(PAIRS)
    # The higher the row, the nearer to its center.
    table = {"row": rows, "caption_index": rows * 0, FINE: fine, DISTANCE: (PAIRS - rows).astype(np.float32)}
    assign = Stage("assign", directories["assign"], {})
    assign.begin(1)
    record = UnitRecord(
        unit=shards[0].unit, source="a.parquet", rows_in=PAIRS + 1, rows_out=PAIRS, refused={"empty": 1}
    )
    assign.finish([assign.write_unit(pa.table(table), record)], {})
    trials, pairs_n = planned_trials(config, clustering, directories["assign"], shards)
    for trial in trials:
        history = [{"samples": float(trial.samples), "loss": 1.0 + len(trial.name)}]
        (directories["train"] / trial.name / METRICS_FILE).write_text(json.dumps({"history": history}))
    task = Task(name="pets", kind="classification", paths=("x",), classes=CLASSES)
    measured = _measured(trials)
    experts = [expert_name(2, expert) for expert in range(2)]
    random_models = [expert_name(2, expert, random=True) for expert in range(2)]
    results = compare(
        task,
        measured,
        experts,
        random_models,
        clustering.centers_md,
        clustering.coarse[2],
        config.routing,
        config.evaluate.rules,
    )
    return ReportSources(
        config, shards, directories, clustering, trials, pairs_n, [task], {"pets": measured}, {"pets": results}
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


@pytest.fixture
def data(sources: ReportSources) -> ReportData:
    return report_data(sources)


def test_it_is_a_report_that_can_be_rendered(sources: ReportSources, data: ReportData) -> None:
    again = json.loads(json.dumps(data))
    check_report(again)
    page = render_report(again, sources.thumbnails())
    assert "MoDE-2: 4 fine clusters, 2 experts" in page
    assert "caption 15" in page


def test_every_model_states_what_it_cost(data: ReportData) -> None:
    costs = {row["name"]: (row["kind"], row["samples_seen"], row["samples_total"]) for row in data["models"]}
    # 64 samples dense; half of them the seed; the experts share the other half in proportion 12 : 4.
    assert costs == {
        "dense": ("dense", 64, 64),
        "MoDE-2 (soft)": ("mode", 32, 64),
        "MoDE-2 (uniform)": ("mode", 32, 64),
        "best single expert per task": ("best_single", 32, 64),
        "expert 0 alone": ("single", 24, 56),
        "expert 1 alone": ("single", 8, 40),
        "Random-2 (uniform)": ("random", 32, 64),
    }


def test_the_results_are_those_of_the_comparison(data: ReportData, sources: ReportSources) -> None:
    top1 = {row["name"]: row["metrics"]["pets"]["top1"] for row in data["models"]}
    assert (top1["dense"], top1["expert 0 alone"], top1["expert 1 alone"]) == (0.8, 0.8, 1.0)
    assert top1["best single expert per task"] == 1.0
    assert top1["MoDE-2 (soft)"] == sources.results["pets"].rules["soft"]["top1"]
    assert data["tasks"] == [{"name": "pets", "metric": "top1", "items": 5, "texts": 3, "chance": 1 / 3}]


def test_routing_is_shown_for_every_rule(data: ReportData) -> None:
    assert [(row["task"], row["rule"]) for row in data["routing"]] == [("pets", "soft"), ("pets", "uniform")]
    assert data["routing"][1]["weights"] == pytest.approx([0.5, 0.5])
    assert data["routing"][1]["normalised_entropy"] == pytest.approx(1.0)


def test_clusters_show_their_nearest_captions_and_sizes(data: ReportData) -> None:
    clusters = data["fine_clusters"]
    assert [row["rows"] for row in clusters] == [8, 4, 4, 0]
    assert [row["expert"] for row in clusters] == [0, 0, 1, 1]
    assert clusters[0]["captions"] == ["caption 7", "caption 6", "caption 5"]
    assert clusters[EMPTY]["captions"] == []


def test_experts_show_size_spread_and_captions(data: ReportData, sources: ReportSources) -> None:
    first, second = data["experts"]
    assert (first["rows"], first["share"], second["rows"], second["share"]) == (12, 0.75, 4, 0.25)
    assert [first["spread"], second["spread"]] == pytest.approx(sources.clustering.spread(2).tolist())
    assert first["captions"] == ["caption 7", "caption 11"]
    assert second["captions"] == ["caption 15"]


def test_every_text_shows_its_nearest_clusters(data: ReportData) -> None:
    near = data["nearest"]["pets"]
    assert [row["text"] for row in near] == list(CLASSES)
    assert [row["clusters"][0]["fine"] for row in near] == [0, 1, 2]
    assert near[2]["clusters"][0] == {"fine": 2, "expert": 1, "squared_distance": 0.0, "caption": "caption 15"}


def test_the_experts_losses_begin_where_the_seeds_end(data: ReportData) -> None:
    losses = {row["name"]: row for row in data["losses"]}
    assert losses["seed"]["samples"] == [32.0]
    assert losses["dense"]["samples"] == [64.0]
    assert losses["n2/00"]["samples"] == [32.0 + 24.0]
    assert {name: (row["kind"], row["expert"]) for name, row in losses.items()} == {
        "seed": ("seed", None),
        "dense": ("dense", None),
        "n2/00": ("single", 0),
        "n2/01": ("single", 1),
        "random-n2/00": ("random", None),
        "random-n2/01": ("random", None),
    }


def test_only_stages_that_are_done_have_figures(data: ReportData) -> None:
    assert [row["name"] for row in data["stages"]] == ["assign"]
    assert (data["stages"][0]["rows_in"], data["stages"][0]["rows_out"]) == (PAIRS + 1, PAIRS)
    assert data["stages"][0]["refused"] == {"empty": 1}


def test_thumbnails_are_small_and_broken_images_are_left_out(sources: ReportSources) -> None:
    pictures = sources.thumbnails()
    assert [len(pictures[expert]) for expert in range(2)] == [6, 3]
    for picture in (*pictures[0], *pictures[1]):
        assert max(Image.open(io.BytesIO(picture)).size) == 64
    file = sources.shards[0].location.path
    table = pq.read_table(file)
    images = [b"broken" if row == SHOWN else image for row, image in enumerate(table["image"].to_pylist())]
    pq.write_table(table.set_column(0, "image", [images]), file)
    again = replace(sources).thumbnails()
    assert [len(again[expert]) for expert in range(2)] == [5, 3]


def test_the_licence_beside_the_data_is_shown(data: ReportData) -> None:
    assert data["licences"] == "Drawings by nobody"
