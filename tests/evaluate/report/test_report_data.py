"""The data of the report agree with the files of the run: budgets, results, captions and pictures."""

import io
import json
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from PIL import Image

from mode_ray.evaluate.report.data import report_data
from mode_ray.evaluate.report.render import render_report
from mode_ray.evaluate.report.schema import ReportData, check_report
from mode_ray.evaluate.report.sources import ReportSources, read_thumbnails

PAIRS = 16
CLASSES = ("cat", "dog", "bus")
SHOWN = 7  # this pair is the nearest to its center
EMPTY = 3  # this fine cluster has no pair


@pytest.fixture
def data(sources: ReportSources) -> ReportData:
    return report_data(sources)


def test_it_is_a_report_that_can_be_rendered(sources: ReportSources, data: ReportData) -> None:
    again = json.loads(json.dumps(data))
    check_report(again)
    assert "No captions are shown" not in render_report(again)
    page = render_report(again, read_thumbnails(sources))
    assert "MoDE-2: 4 fine clusters, 2 experts" in page
    assert "caption 15" in page


def test_every_model_states_what_it_cost(data: ReportData) -> None:
    costs = {row["name"]: (row["kind"], row["samples_seen"], row["samples_total"]) for row in data["models"]}
    # 64 samples dense; half of them the seed; the experts share the other half in proportion 12 : 4.
    assert costs == {
        "dense": ("dense", 64, 64),
        "dense, equal total": ("dense_equal_total", 64, 64),
        "dense, batches of one cluster": ("clustered", 64, 64),
        "MoDE-2 (soft)": ("mode", 32, 64),
        "MoDE-2 (uniform)": ("mode", 32, 64),
        "best single expert (1)": ("best_expert", 32, 64),
        "oracle: best expert per task": ("oracle", 32, 64),
        "expert 0 alone": ("single", 24, 56),
        "expert 1 alone": ("single", 8, 40),
        "Full-2 (uniform)": ("full", 32, 64),
        "Random-2 (uniform)": ("random", 32, 64),
    }


def test_the_results_are_those_of_the_comparison(data: ReportData, sources: ReportSources) -> None:
    top1 = {row["name"]: row["metrics"]["pets"]["top1"] for row in data["models"]}
    assert (top1["dense"], top1["expert 0 alone"], top1["expert 1 alone"]) == (0.8, 0.8, 1.0)
    assert top1["best single expert (1)"] == top1["oracle: best expert per task"] == 1.0
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


def test_a_run_without_an_atlas_has_a_report_that_says_so(sources: ReportSources) -> None:
    without = report_data(replace(sources, captions=[[] for _ in range(4)]))
    assert [row["captions"] for row in without["fine_clusters"]] == [[], [], [], []]
    assert "No captions are shown because the run has no atlas." in render_report(without)


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
        "dense-equal-total": ("dense_equal_total", None),
        "clustered": ("clustered", None),
        "n2/00": ("single", 0),
        "n2/01": ("single", 1),
        "full-n2/00": ("full", None),
        "full-n2/01": ("full", None),
        "random-n2/00": ("random", None),
        "random-n2/01": ("random", None),
    }


def test_only_stages_that_are_done_have_figures(data: ReportData) -> None:
    assert [row["name"] for row in data["stages"]] == ["assign"]
    assert (data["stages"][0]["rows_in"], data["stages"][0]["rows_out"]) == (PAIRS + 1, PAIRS)
    assert data["stages"][0]["refused"] == {"empty": 1}


def test_thumbnails_are_small_and_broken_images_are_left_out(sources: ReportSources) -> None:
    pictures = read_thumbnails(sources)
    assert [len(pictures[expert]) for expert in range(2)] == [6, 3]
    for picture in (*pictures[0], *pictures[1]):
        assert max(Image.open(io.BytesIO(picture)).size) == 64
    file = sources.work_units[0].location.path
    table = pq.read_table(file)
    images = [b"broken" if row == SHOWN else image for row, image in enumerate(table["image"].to_pylist())]
    pq.write_table(table.set_column(0, "image", [images]), file)
    again = read_thumbnails(sources)
    assert [len(again[expert]) for expert in range(2)] == [5, 3]


def test_the_licence_beside_the_data_is_shown(data: ReportData) -> None:
    assert data["licences"] == "Drawings by nobody"


def test_the_configs_rule_says_why_these_experts(data: ReportData) -> None:
    soft, uniform = data["routing"]
    assert "why" not in uniform
    by_fine = {why["fine"]: why for why in soft["why"]}
    assert {why["fine"] for why in soft["why"][:3]} == {0, 1, 2}
    assert (by_fine[0]["expert"], by_fine[0]["caption"]) == (0, "caption 7")
    assert by_fine[0]["weight"] == pytest.approx(1 / 3, abs=1e-6)
    assert sum(why["weight"] for why in soft["why"]) == pytest.approx(1.0)
    assert "no fitted temperature" in data["calibration"]


def test_the_pruning_curve_is_that_of_the_comparison(data: ReportData, sources: ReportSources) -> None:
    top = [row for row in data["pruning"] if row["keep"] == "top"]
    assert [(row["task"], row["value"], row["experts_run"]) for row in top] == [("pets", 1.0, 1.0), ("pets", 2.0, 2.0)]
    assert top[-1]["score"] == sources.results["pets"].rules["soft"]["top1"]
    page = render_report(data)
    assert "Running fewer experts" in page
    assert "Why these experts" in page


def test_every_line_that_may_be_compared_has_intervals(sources: ReportSources, data: ReportData) -> None:
    assert {row["model"] for row in data["intervals"]} == {
        "dense",
        "dense, equal total",
        "dense, batches of one cluster",
        "MoDE-2 (soft)",
        "MoDE-2 (uniform)",
        "Full-2 (uniform)",
        "Random-2 (uniform)",
    }
    dense = next(row for row in data["intervals"] if row["model"] == "dense" and row["task"] == "pets")
    assert dense["low"] <= dense["score"] == 0.8 <= dense["high"]
    assert "against_dense" not in dense
    equal_total = next(row for row in data["intervals"] if row["model"] == "dense, equal total")
    assert equal_total["against_dense"]["change"] == 0.0  # the same answers in this run


def test_linear_probes_of_an_expert_that_is_left_out_are_not_shown(sources: ReportSources) -> None:
    measured = sources.measured["pets"]
    probes = {"dense": {"top1": 0.5}, "n2/00": {"top1": 0.4}, "n2/01": {"top1": 0.6}, "n2": {"top1": 0.7}}
    probed = replace(measured, summary=replace(measured.summary, linear_probe=probes))
    evaluate = sources.config.evaluate.model_copy(update={"leave_out_experts": (0,)})
    config = sources.config.model_copy(update={"evaluate": evaluate})
    shown = report_data(replace(sources, config=config, measured={"pets": probed}))["linear_probes"]
    assert shown == {"dense": {"pets": 0.5}, "expert 1 alone": {"pets": 0.6}}


def test_linear_probes_are_named_like_the_models(sources: ReportSources) -> None:
    measured = sources.measured["pets"]
    probes = {"dense": {"top1": 0.5}, "n2/01": {"top1": 0.6}, "n2": {"top1": 0.7}}
    probed = replace(measured, summary=replace(measured.summary, linear_probe=probes))
    shown = report_data(replace(sources, measured={"pets": probed}))["linear_probes"]
    assert shown == {
        "dense": {"pets": 0.5},
        "expert 1 alone": {"pets": 0.6},
        "experts side by side": {"pets": 0.7},
    }
