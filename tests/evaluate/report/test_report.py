"""The report as a page and as a table: complete, escaped, small and deterministic."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from PIL import Image
from report_example import RULES, TASKS, metrics
from rich.console import Console
from terminal import require_words, shown_at_80_columns

from mode_ray.errors import DataError
from mode_ray.evaluate.report.plots import Curve, loss_figure, pruning_figure, size_histogram
from mode_ray.evaluate.report.pruning import pruning_steps
from mode_ray.evaluate.report.render import (
    compact,
    direction,
    duration,
    render_report,
    result_rows,
    results_table,
    signed,
    verdict,
)
from mode_ray.evaluate.report.schema import check_report


def png(color: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), color).save(buffer, "png")
    return buffer.getvalue()


def test_page_names_every_task_rule_model_and_stage(report: dict[str, Any]) -> None:
    page = render_report(report, {0: [png((200, 30, 30))]})
    for name in (
        *TASKS,
        *RULES,
        "Random-4",
        "Best single expert",
        "embed",
        "quarantined",
        "OpenMoji",
        "entropy",
    ):
        assert name.lower() in page.lower()
    assert base64.b64encode(png((200, 30, 30))).decode() in page
    assert "32.7" in page  # mean of soft: (33.9 + 46.9 + 41.0 + 13.6 + 27.9) / 5 = 32.66
    assert "+2.6" in page  # dense: (31.2 + 40.7 + 38.1 + 12.9 + 27.4) / 5 = 30.06


def test_page_is_well_formed_small_and_needs_no_network(report: dict[str, Any]) -> None:
    page = render_report(report)
    assert len(page.encode()) < 3_000_000
    assert "<script" not in page
    assert not re.search(r"""(src|href|url)\s*[=(]\s*["']?(https?:)?//""", page)
    assert not re.search(r"@import|<link|<base|<iframe", page)
    parser = TagBalance()
    parser.feed(page)
    assert parser.open_tags == []
    assert len(parser.ids) == len(set(parser.ids))


class TagBalance(HTMLParser):
    """Fails on a closing tag that does not match; collects ids."""

    void = frozenset({"meta", "img", "br", "link", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.open_tags: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value for name, value in attrs if name == "id" and value]
        if tag not in self.void:
            self.open_tags.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in self.void
        self.ids += [value for name, value in attrs if name == "id" and value]

    def handle_endtag(self, tag: str) -> None:
        assert self.open_tags.pop() == tag


def test_hostile_texts_are_escaped_everywhere(report: dict[str, Any]) -> None:
    hostile = "</svg><script>alert('$x_1')</script>"
    report["title"] = report["run"] = report["machine"] = report["licences"] = hostile
    report["experts"][0]["captions"] = [hostile]
    report["fine_clusters"][0]["captions"] = [hostile]
    report["losses"][0]["name"] = hostile
    report["stages"][0]["refused"] = {hostile: 1}
    report["models"][0]["name"] = hostile
    report["nearest"]["cifar"][0]["text"] = hostile
    page = render_report(report)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 8


def test_a_thumbnail_that_is_no_picture_is_left_out(report: dict[str, Any]) -> None:
    page = render_report(report, {0: [b"<svg onload=alert(1)>", png((1, 2, 3))]})
    assert page.count("data:image/png;base64,") == 1
    assert base64.b64encode(b"<svg onload=alert(1)>").decode() not in page


def test_thumbnails_stay_within_the_budget_of_the_page(report: dict[str, Any]) -> None:
    large = png((1, 2, 3)) + bytes(100_000)
    assert len(render_report(report, {expert: [large] * 20 for expert in range(4)}).encode()) < 3_000_000


def test_only_the_required_fields_make_a_page() -> None:
    bare = {
        "title": "Small run",
        "run": "runs/small",
        "created": "today",
        "rule": "soft",
        "tasks": [{"name": "emoji", "metric": "top1", "items": 100}],
        "models": [{"name": "MoDE-2", "kind": "mode", "rule": "soft", "metrics": {"emoji": {"top1": 0.5}}}],
    }
    page = render_report(bare)
    assert "No dense baseline was trained" in page
    assert "50.0" in page
    assert "<h2>Experts" not in page


def test_a_report_of_before_loads_with_the_names_of_now(report: dict[str, Any]) -> None:
    for model in report["models"]:
        model["kind"] = model["kind"].replace("oracle", "best_single")
    kinds = [model["kind"] for model in check_report(report)["models"]]
    assert "oracle" in kinds
    assert "best_single" not in kinds
    assert render_report(report)


def test_the_other_controls_say_where_the_gain_comes_from(report: dict[str, Any]) -> None:
    dense = next(model for model in report["models"] if model["kind"] == "dense")
    report["models"] += [
        {**dense, "name": "dense, equal total", "kind": "dense_equal_total"},
        {**dense, "name": "dense, as wide as all experts", "kind": "wide"},
        {**dense, "name": "dense, batches of one cluster", "kind": "clustered"},
        {**dense, "name": "Full-4 (uniform)", "kind": "full"},
        {**dense, "name": "best single expert (1)", "kind": "best_expert"},
    ]
    remarks = " ".join(verdict(check_report(report)).remarks)
    assert "At equal total samples: " in remarks
    assert "At equal trained parameters: " in remarks
    assert "Experts beyond such batches: " in remarks
    assert "Specialisation: " in remarks
    competing = {row.model["kind"]: row.competes for row in result_rows(check_report(report))}
    assert not competing["best_expert"]
    assert competing["dense_equal_total"]


def test_without_random_control_dense_or_a_tasks_result(report: dict[str, Any]) -> None:
    report["models"] = [model for model in report["models"] if model["kind"] == "mode"]
    del report["models"][0]["metrics"]["cifar"]
    page = render_report(report)
    assert "Random-4" not in page
    result = verdict(check_report(report))
    assert result.outcome == "unknown"
    assert result.sentence == "No dense baseline was trained, so there is no comparison."


def test_a_report_with_a_thousand_clusters_and_classes_stays_small(report: dict[str, Any]) -> None:
    report["fine_clusters"] = [
        {**report["fine_clusters"][0], "fine": fine, "captions": ["x" * 500] * 10} for fine in range(4096)
    ]
    report["nearest"]["cifar"] = report["nearest"]["cifar"] * 200
    assert len(render_report(report).encode()) < 3_000_000


def test_an_oracle_is_never_the_best_of_a_column(report: dict[str, Any]) -> None:
    report["models"][5]["metrics"] = metrics("best", 0.5)
    page = render_report(report)
    assert '<td class="n best">46.9</td>' in page
    assert '<td class="n">96.1</td>' in page


def test_a_page_of_an_oracle_alone_has_no_best(report: dict[str, Any]) -> None:
    report["models"] = [model for model in report["models"] if model["kind"] == "oracle"]
    assert 'class="n best' not in render_report(report)


@pytest.mark.parametrize(
    ("change", "shown", "css"),
    [
        (0.019, "+1.9", "up"),
        (0.0, "0.0", ""),
        (-0.0004, "0.0", ""),
        (-0.019, "\N{MINUS SIGN}1.9", "down"),
        (None, "\N{EN DASH}", ""),
    ],
)
def test_a_difference_of_zero_is_neither_up_nor_down(change: float | None, shown: str, css: str) -> None:
    assert (signed(change), direction(change)) == (shown, css)


def test_the_terminal_table_fits_80_columns(report: dict[str, Any]) -> None:
    shown = shown_at_80_columns(results_table(report))
    names = [task["name"] for task in report["tasks"]]
    require_words(shown, [*names, *(model["name"] for model in report["models"]), "vs dense", "in all"])


def test_terminal_table_has_the_same_rows(report: dict[str, Any]) -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    report["models"][0]["name"] = "[bold]Dense[/nothing]"
    console.print(results_table(report))
    text = console.export_text()
    assert "[bold]Dense[/nothing]" in text
    line = next(line for line in text.splitlines() if "MoDE-4 (soft)" in line)
    assert re.findall(r"[+\d.]+ ?k?", line)[1:] == [
        "33.9 ",
        "46.9 ",
        "41.0 ",
        "13.6 ",
        "27.9 ",
        "32.7 ",
        "+2.6 ",
        "256 k",
        "512 k",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"title": None}, "title"),
        ({"losses": [{"name": "seed", "samples": [1.0, 2.0], "loss": [3.0]}]}, "losses, seed"),
        (
            {"models": [{"name": "x", "kind": "mode", "metrics": {"nope": {}}}]},
            "task 'nope' is not one of tasks",
        ),
        ({"models": [{"name": "x", "kind": "other", "metrics": {}}]}, "models.0.kind"),
    ],
)
def test_what_is_wrong_in_the_data_is_named(report: dict[str, Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        render_report({**report, **change})


def test_report_survives_json(report: dict[str, Any]) -> None:
    assert render_report(json.loads(json.dumps(report))) == render_report(report)


def test_figures_are_deterministic_and_without_dates() -> None:
    curves = [Curve([1, 2, 3], [3.0, None, 1.0], 0), Curve(list(range(5000)), [1.0] * 5000, dashed=True)]
    assert loss_figure(curves) == loss_figure(curves)
    assert size_histogram([3, 4, 5]) == size_histogram([3, 4, 5])
    assert "date" not in loss_figure(curves).lower()
    assert "var(--expert-0)" in loss_figure(curves)
    assert len(loss_figure(curves)) < 60_000


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, "–"), (999, "999"), (1_000, "1 k"), (999_900, "1 M"), (12_800_000_000, "12.8 B")],  # noqa: RUF001
)
def test_counts_have_three_digits(count: int | None, text: str) -> None:
    assert compact(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(9.44, "9.44 s"), (71, "71 s"), (200, "3 min"), (3599, "1 h 00 min"), (4210, "1 h 10 min")],
)
def test_times_read_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_pruning_curve_is_a_mean_over_tasks(report: dict[str, Any]) -> None:
    report["pruning"] = [
        {"task": task, "keep": keep, "value": value, "experts_run": run, "score": score + shift}
        for task, shift in (("cifar", 0.0), ("flickr", 0.2))
        for keep, value, run, score in (("top", 1.0, 1.0, 0.25), ("top", 4.0, 4.0, 0.3), ("share", 0.9, 1.6, 0.28))
    ]
    steps = pruning_steps(check_report(report)["pruning"])
    assert [(step.name, step.experts_run) for step in steps] == [
        ("top 1", 1.0),
        ("top 4", 4.0),
        ("90% of the weight", 1.6),
    ]
    assert [step.change for step in steps] == pytest.approx([-0.05, 0.0, -0.02])
    page = render_report(report)
    assert "Running fewer experts" in page
    assert 'aria-label="Mean score over experts run"' in page
    assert "−5.0" in page  # noqa: RUF001
    assert pruning_figure(steps) == pruning_figure(steps)


def test_a_report_without_pruning_has_no_curve(report: dict[str, Any]) -> None:
    assert pruning_steps([]) == []
    assert "Running fewer experts" not in render_report(report)


class TestIntervals:
    @pytest.fixture
    def intervals(self, report: dict[str, Any]) -> dict[str, Any]:
        """The report with intervals of two lines and linear probes of one task."""
        rows: list[dict[str, Any]] = [
            {"model": model, "task": task, "score": score, "low": score - 0.011, "high": score + 0.012}
            for model, score in (("Dense", 0.301), ("MoDE-4 (soft)", 0.327))
            for task in (*TASKS, None)
        ]
        for row in rows[len(TASKS) + 1 :]:
            row["against_dense"] = {"change": 0.026, "low": -0.004, "high": 0.053}
        return {**report, "intervals": rows, "linear_probes": {"experts side by side": {"cifar": 0.713}}}

    def test_they_stand_below_the_results_with_a_figure(self, intervals: dict[str, Any]) -> None:
        page = render_report(intervals)
        assert "29.0–31.3" in page  # noqa: RUF001
        assert "−0.4 to +5.3" in page  # noqa: RUF001
        assert 'aria-label="Differences from the dense model with intervals"' in page

    def test_linear_probes_have_a_table_of_the_tasks_that_have_one(self, intervals: dict[str, Any]) -> None:
        page = render_report(intervals)
        table = page[page.index("<h3>Linear probes") :].partition("</table>")[0]
        assert "experts side by side" in table
        assert "71.3" in table
        assert "flickr" not in table

    def test_without_them_the_page_has_neither(self, report: dict[str, Any]) -> None:
        page = render_report(report)
        assert "Confidence intervals" not in page
        assert "Linear probes" not in page

    def test_without_a_dense_model_there_is_no_figure(self, intervals: dict[str, Any]) -> None:
        for row in intervals["intervals"]:
            row.pop("against_dense", None)
        assert "Differences from the dense model" not in render_report(intervals)
