import base64
import copy
import io
import json
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from mode_ray.errors import DataError
from mode_ray.evaluate.plots import Curve, loss_figure, pruning_figure, size_histogram
from mode_ray.evaluate.pruning import pruning_steps
from mode_ray.evaluate.report import compact, duration, render_report, result_rows, results_table, verdict
from mode_ray.evaluate.report_schema import check_report

TASKS = {"emoji groups": 1906, "cloud icons": 1200, "product photos": 2400, "flickr": 1000, "cifar": 5000}
RULES = ("soft", "paper", "released", "uniform")
NOUNS = (
    "waving hand",
    "storage bucket",
    "running shoe",
    "dog on a beach",
    "red truck",
    "load balancer",
    "cup",
)
LEVELS = {
    "dense": (31.2, 40.7, 38.1, 12.9, 27.4),
    "soft": (33.9, 46.9, 41.0, 13.6, 27.9),
    "paper": (33.1, 45.2, 40.4, 13.1, 28.2),
    "released": (31.8, 42.0, 38.9, 12.7, 27.2),
    "uniform": (31.7, 41.8, 38.8, 12.6, 27.1),
    "best": (33.0, 46.1, 40.2, 12.0, 26.0),
    "random": (30.1, 39.2, 37.0, 12.2, 26.6),
}


def metrics(level: str, shift: float = 0.0) -> dict[str, dict[str, float]]:
    values = [value / 100 + shift for value in LEVELS[level]]
    return {
        task: {"top1": value, "top5": min(1.0, value + 0.25), "mean_per_class": value - 0.02}
        if task != "flickr"
        else {"text_to_image_r1": value, "image_to_text_r1": value + 0.01}
        for task, value in zip(TASKS, values, strict=True)
    }


def caption(generator: np.random.Generator) -> str:
    first, second = generator.choice(NOUNS, 2, replace=False)
    return f"a {first} beside a {second}, drawing number {generator.integers(1, 999)}"


@pytest.fixture
def report() -> dict[str, Any]:
    generator = np.random.default_rng(7)
    samples = {"samples_seen": 256_000, "samples_total": 512_000}
    clusters = [
        {
            "fine": fine,
            "expert": int(generator.integers(0, 4)),
            "rows": int(generator.normal(1060, 90)),
            "captions": [caption(generator) for _ in range(5)],
        }
        for fine in range(64)
    ]
    weights = {task: generator.dirichlet([0.8] * 4) for task in TASKS}
    flatness = {"soft": 0.0, "paper": 0.3, "released": 0.9, "uniform": 1.0}
    mixed = {(task, rule): (1 - flat) * weights[task] + flat / 4 for task in TASKS for rule, flat in flatness.items()}
    steps = np.linspace(4_000, 256_000, 700)
    falling = 4.2 * np.exp(-steps / 160_000)
    curves = [
        {
            "name": "seed",
            "samples": steps.tolist(),
            "loss": (falling + generator.normal(0, 0.06, 700)).tolist(),
        },
        {
            "name": "dense",
            "kind": "dense",
            "samples": (steps + 256_000).tolist(),
            "loss": (0.86 * np.exp(-steps / 400_000) + generator.normal(0, 0.04, 700)).tolist(),
        },
    ]
    curves += [
        {
            "name": f"expert {number}",
            "kind": "single",
            "expert": number,
            "samples": (steps / 4 + 256_000).tolist(),
            "loss": ((0.95 + 0.1 * number) * np.exp(-steps / 500_000) + generator.normal(0, 0.03, 700)).tolist(),
        }
        for number in range(4)
    ]
    return {
        "title": "MoDE-4 on 68,000 pairs",
        "run": "s3://runs/demo-2026-11",
        "created": "2026-11-23 01:20 UTC",
        "machine": "2 cores, 24 GB, no GPU",
        "versions": {"python": "3.12.7", "ray": "2.60.0", "torch": "2.14.0", "faiss-cpu": "1.15.0"},
        "rule": "soft",
        "licences": "Emoji art: OpenMoji, CC BY-SA 4.0. Icons: their owners' trademarks.",
        "tasks": [
            {
                "name": task,
                "metric": "text_to_image_r1" if task == "flickr" else "top1",
                "items": items,
                "texts": 20,
                "chance": 0.05,
            }
            for task, items in TASKS.items()
        ],
        "models": [
            {
                "name": "Dense",
                "kind": "dense",
                "metrics": metrics("dense"),
                "samples_seen": 256_000,
                "samples_total": 512_000,
            },
            *(
                {
                    "name": f"MoDE-4 ({rule})",
                    "kind": "mode",
                    "rule": rule,
                    "metrics": metrics(rule),
                    **samples,
                }
                for rule in RULES
            ),
            {"name": "Best single expert", "kind": "oracle", "metrics": metrics("best"), **samples},
            {
                "name": "Random-4",
                "kind": "random",
                "rule": "uniform",
                "metrics": metrics("random"),
                **samples,
            },
        ],
        "stages": [
            {
                "name": "embed",
                "seconds": 71.3,
                "rows_in": 68_240,
                "rows_out": 68_004,
                "refused": {"empty": 211, "too long": 25},
            },
            {"name": "cluster", "seconds": 9.4, "rows_in": 68_004, "rows_out": 64},
            {"name": "assign", "seconds": 12.8, "rows_in": 68_004, "rows_out": 68_004},
            {
                "name": "train",
                "seconds": 4210.0,
                "quarantined": {"s3://pairs/00017.tar": "truncated after member 212"},
            },
            {"name": "evaluate", "seconds": 96.0},
        ],
        "routing": [
            {
                "task": task,
                "rule": rule,
                "weights": p.tolist(),
                "normalised_entropy": float(-(p * np.log(p)).sum() / np.log(4)),
            }
            for (task, rule), p in mixed.items()
        ],
        "nearest": {
            task: [
                {
                    "text": f"{noun}",
                    "clusters": [
                        {
                            "fine": int(c["fine"]),
                            "expert": c["expert"],
                            "squared_distance": 0.31 + 0.07 * i,
                            "caption": c["captions"][0],
                        }
                        for i, c in enumerate(clusters[row : row + 3])
                    ],
                }
                for row, noun in enumerate(NOUNS)
            ]
            for task in TASKS
        },
        "experts": [
            {
                "rows": rows,
                "share": rows / 68_004,
                "spread": spread,
                "samples_seen": 64_000,
                "captions": [caption(generator) for _ in range(5)],
            }
            for rows, spread in ((18_214, 0.612), (16_020, 0.541), (17_655, 0.583), (16_115, 0.498))
        ],
        "fine_clusters": clusters,
        "losses": curves,
    }


def png(color: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), color).save(buffer, "png")
    return buffer.getvalue()


def shifted(report: dict[str, Any], points: float) -> dict[str, Any]:
    """The report with the chosen ensemble `points` above (or below) the dense model on every task."""
    changed = copy.deepcopy(report)
    changed["models"][1]["metrics"] = metrics("dense", points / 100)
    return changed


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
        {**dense, "name": "Full-4 (uniform)", "kind": "full"},
        {**dense, "name": "best single expert (1)", "kind": "best_expert"},
    ]
    remarks = " ".join(verdict(check_report(report)).remarks)
    assert "At equal total samples: " in remarks
    assert "Against a mere ensemble: " in remarks
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
    assert result.sentence == "No dense baseline was trained, so nothing can be said about a gain."


def test_a_report_with_a_thousand_clusters_and_classes_stays_small(report: dict[str, Any]) -> None:
    report["fine_clusters"] = [
        {**report["fine_clusters"][0], "fine": fine, "captions": ["x" * 500] * 10} for fine in range(4096)
    ]
    report["nearest"]["cifar"] = report["nearest"]["cifar"] * 200
    assert len(render_report(report).encode()) < 3_000_000


def test_verdict_of_a_win_gives_the_gain_the_cost_and_the_noise(report: dict[str, Any]) -> None:
    result = verdict(check_report(shifted(report, 3.0)))
    assert result.outcome == "win"
    assert result.sentence == (
        "MoDE-4 (soft) beats the dense model by 3.0 points, for 1.00× the training samples "  # noqa: RUF001
        "(33.1 % against 30.1 % on average, ahead in 5 of 5 tasks)."
    )
    assert "One training seed" in result.remarks[0]
    assert any("Routing: +2.7 points against the uniform mean" in remark for remark in result.remarks)
    assert any("Clustering: +4.0 points against Random-4" in remark for remark in result.remarks)


def test_verdict_of_a_loss_says_so(report: dict[str, Any]) -> None:
    report = shifted(report, -3.0)
    report["models"][1]["samples_total"] = 1_280_000
    result = verdict(check_report(report))
    assert result.outcome == "loss"
    assert result.sentence.startswith(
        "MoDE-4 (soft) does not win: it stays 3.0 points below the dense model, for 2.50"
    )
    assert "ahead in 0 of 5" in result.sentence
    remarks = " ".join(result.remarks)
    assert "Routing does not help" in remarks
    assert "Clustering does not help" in remarks
    assert "MoDE-4 (paper) reaches more (32.0 %), but is not the rule that was chosen beforehand." in remarks


@pytest.mark.parametrize(("points", "side"), [(0.3, "above"), (-0.3, "below")])
def test_verdict_within_the_sampling_error_is_a_tie(report: dict[str, Any], points: float, side: str) -> None:
    result = verdict(check_report(shifted(report, points)))
    assert result.outcome == "tie"
    assert f"does not win clearly: it is 0.3 points {side} the dense model" in result.sentence
    assert "within sampling error" in result.sentence


def test_the_same_gain_on_larger_test_sets_is_a_win(report: dict[str, Any]) -> None:
    for task in report["tasks"]:
        task["items"] *= 100
    assert verdict(check_report(shifted(report, 0.3))).outcome == "win"


def test_the_verdict_is_about_the_rule_of_the_config(report: dict[str, Any]) -> None:
    report["rule"] = "released"
    assert verdict(check_report(report)).sentence.startswith("MoDE-4 (released) ")


def test_an_oracle_is_never_the_best_of_a_column(report: dict[str, Any]) -> None:
    report["models"][5]["metrics"] = metrics("best", 0.5)
    page = render_report(report)
    assert '<td class="n best">46.9</td>' in page
    assert '<td class="n">96.1</td>' in page


def test_a_page_of_an_oracle_alone_has_no_best(report: dict[str, Any]) -> None:
    report["models"] = [model for model in report["models"] if model["kind"] == "oracle"]
    assert 'class="n best' not in render_report(report)


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
