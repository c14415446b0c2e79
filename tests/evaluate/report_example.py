"""Example data of a report, which tests change."""

import copy
from typing import Any

import numpy as np

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


def example_report() -> dict[str, Any]:
    """The data of a report with all optional fields."""
    generator = np.random.default_rng(7)
    samples = {"samples_seen": 256_000, "samples_total": 512_000}
    clusters: list[dict[str, Any]] = [
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


def shifted(report: dict[str, Any], points: float) -> dict[str, Any]:
    """The report with the chosen ensemble `points` above (or below) the dense model on every task."""
    changed = copy.deepcopy(report)
    changed["models"][1]["metrics"] = metrics("dense", points / 100)
    return changed
