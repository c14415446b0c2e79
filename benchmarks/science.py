"""MoDE-4 beats one dense model of the same total samples, beyond what training seeds differ by.

The benchmark is a study (`mode-ray study`) over `science.yaml`. For every training seed, all from one fine clustering:
the seed model; the dense model (1.0x); MoDE-4 at the shared budget (1.0x) and at the full one; the dense model with as
many samples as the latter, on a schedule of its own; Full-4 and Random-4; MoDE-2 and MoDE-8. The peers are these
controls: all models see the same pairs with the same towers and optimizer. Scores are macro means of the main metric
over all tasks, in points (per cent). Differences are paired by seed. `mode4_minus_dense_equal_total_mean` compares the
full budget with the dense model of as many samples; the other results are of the shared budget.

`--explore` tries settings on the development split with seeds 0, 1, 2. `--final` runs the frozen setting on the test
split with seeds 10, 11, 12, which nothing else uses. Without either, the frozen setting runs on the development split.
`--heads` runs the study of linear heads on locked, pretrained trunks instead (`science_heads.yaml`), with eight seeds:
other n, seed shares, batches and budgets, and the controls `wide` and `clustered` besides. Its final seeds are 10
to 17. All of them resume; everything is stored below `--directory`. `--quick` runs all steps on a few hundred images
to check that they work: its figures mean nothing.

Pairs: the demo's emoji and icons, or with `--emoji` and `--photos` other vendors' emoji and 32 px photos. The photos'
sentences are machine-written and describe the class, not the photo, so there is no retrieval on the photos.
"""

import argparse
import math
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from frame import arguments, finish
from rich.console import Console
from science_data import ScienceData, build_science_data

from mode_ray.config.study import StudyConfig
from mode_ray.study.results import LinePoint, StudyResults, lines
from mode_ray.study.run import run_study

Points = Mapping[str, Mapping[str, Any]]

SEEDS = (0, 1, 2)
FINAL_SEEDS = (10, 11, 12)
SETTING = Path(__file__).resolve().with_suffix(".yaml")
# Copied into `--directory`, so that the runs there can resume from any checkout.
TOWER = Path(__file__).resolve().parent / "science-vit"
DIRECTORY = Path("science-runs")
# The models that are compared. The first trains seed and dense for all of them.
COMPARED: Points = {
    "mode4": {"train.controls": ["dense", "full", "random"]},
    "mode4-full": {"train.expert_budget": "full", "train.controls": ["dense", "dense_equal_total"]},
    "mode2": {"train.experts": 2},
    "mode8": {"train.experts": 8},
}
HEADS_SEEDS = tuple(range(8))
HEADS_FINAL_SEEDS = tuple(range(10, 18))
HEADS_SETTING = SETTING.with_name("science_heads.yaml")
# The study of heads. First the number of samples at which the dense model is best on the development split; then one
# respect at a time. All have the dense model beside them.
HEADS: Points = {
    "mode4": {"train.controls": ["dense", "wide", "clustered", "full", "random"]},
    "mode4-full": {"train.expert_budget": "full", "train.controls": ["dense", "dense_equal_total"]},
    **{f"mode{n}": {"train.experts": n} for n in (2, 8, 16)},
    **{
        f"seed share {name}": {"train.seed_share": share}
        for name, share in (("0", 0.0), ("0.5", 0.5), ("27/32", 27 / 32))
    },
    "seed share 27/32, continued": {"train.seed_share": 27 / 32, "train.expert_schedule": "continue"},
    **{f"batch {size}": {"train.batch_size": size} for size in (64, 1024, 2048)},
    **{
        f"samples {samples}": {"train.dense_samples": samples}
        for samples in (32_768, 65_536, 262_144, 524_288, 1_048_576)
    },
}
HEADS_QUICK: Mapping[str, Any] = {"train.dense_samples": 4096, "cluster.fine.centers": 32, "features.views": 2}
# The settings of `--explore`: each differs from the frozen one in one respect.
EXPLORED: Points = {
    "base": {},
    "full budget": {"train.expert_budget": "full"},
    "seed share 0.3": {"train.seed_share": 0.3},
    "seed share 0.7": {"train.seed_share": 0.7},
    "seed share 27/32": {"train.seed_share": 27 / 32},
    "half the samples": {"train.dense_samples": 131_072},
    "twice the samples": {"train.dense_samples": 524_288},
    "batch 32": {"train.batch_size": 32},
    "batch 256": {"train.batch_size": 256},
    "batch 1024": {"train.batch_size": 1024},
    "equal captions masked": {"train.loss.mask_equal_captions": True},
    "m 64": {"cluster.fine.centers": 64},
    "m 1024": {"cluster.fine.centers": 1024},
    "one step": {"cluster.fine.centers": 4, "cluster.coarse.experts": [4]},
    "n 2": {"train.experts": 2},
    "n 8": {"train.experts": 8},
    "word vectors": {"encoder.kind": "static", "encoder.model": "package:wordllama"},
    "out of cluster 0.1": {"train.out_of_cluster_share": 0.1},
}
QUICK: Mapping[str, Any] = {
    "train.dense_samples": 1024,
    "train.optimizer.warmup_samples": 64,
    "cluster.fine.centers": 32,
}
QUICK_IMAGES = 300


def study_of(options: argparse.Namespace, data: ScienceData) -> StudyConfig:
    """The study that the options ask for; only `--final` evaluates the tasks of the test split."""
    name = "final" if options.final else "explore" if options.explore else "development"
    compared = HEADS if options.heads else COMPARED
    points: Points = EXPLORED if options.explore else compared
    if options.quick:
        points = {label: compared[label] for label in ("mode4", "mode4-full")}
    directory = options.directory.absolute()
    changes = {
        "captions.paths": [str(work_unit) for work_unit in data.work_units],
        "evaluate.tasks": [str(task) for task in data.tasks[split_of(options)]],
        **({} if options.heads else {"train.model.architecture": str(directory / TOWER.name)}),
        **(quick_of(options) if options.quick else {}),
    }
    own, final = (HEADS_SEEDS, HEADS_FINAL_SEEDS) if options.heads else (SEEDS, FINAL_SEEDS)
    seeds = final if options.final else (0,) if options.quick else tuple(options.seeds or own)
    return StudyConfig.model_validate(
        {
            "study": str(directory / (f"heads-{name}" if options.heads else name)),
            "base": str(HEADS_SETTING if options.heads else SETTING),
            "title": f"science{', heads' if options.heads else ''}, {name}",
            "changes": changes,
            "points": points,
            "seeds": seeds,
            "seed_clustering": True,
            "keep_models": not options.heads,  # 100 MB each, mostly the trunks
        }
    )


def split_of(options: argparse.Namespace) -> str:
    """The split that the options evaluate."""
    return "test" if options.final else "development"


def quick_of(options: argparse.Namespace) -> Mapping[str, Any]:
    """What `--quick` makes smaller."""
    return HEADS_QUICK if options.heads else QUICK


def heads_results_of(results: StudyResults) -> dict[str, float]:
    """The figures of the result line of `--heads`, in points; standard errors are over the seeds."""
    found = {label: lines(results.differences, [label]) for label in ("mode4", "mode4-full")}

    def ahead(label: str, line: str) -> float:
        (point,) = found[label][line]
        return 100 * point.mean

    (dense,) = found["mode4"]["dense"]
    seeds = len({one.seed for one in results.differences if one.label == "mode4"})
    return {
        "mode4_minus_dense_mean": 100 * dense.mean,
        "mode4_minus_dense_stderr": 100 * (dense.deviation or 0.0) / math.sqrt(seeds),
        "mode4_minus_random4_mean": ahead("mode4", "Random-n"),
        "mode4_minus_full4_mean": ahead("mode4", "Full-n"),
        "mode4_minus_wide_mean": ahead("mode4", "dense, as wide as all experts"),
        "mode4_minus_clustered_mean": ahead("mode4", "dense, batches of one cluster"),
        "mode4_minus_dense_equal_total_mean": ahead("mode4-full", "dense, equal total"),
        "calibrated_minus_uniform_mean": ahead("mode4", "MoDE-n (uniform)"),
        "seeds": float(seeds),
        "tasks": float(len(results.tasks)),
    }


def results_of(results: StudyResults) -> dict[str, float]:
    """The figures of the result line, in points."""

    def ahead(label: str, line: str) -> LinePoint:
        (point,) = lines(results.differences, [label])[line]
        return point

    dense = ahead("mode4", "dense")
    return {
        "mode4_minus_dense_mean": 100 * dense.mean,
        "mode4_minus_dense_std": 100 * (dense.deviation or 0.0),
        "mode4_minus_dense_equal_total_mean": 100 * ahead("mode4-full", "dense, equal total").mean,
        "mode4_minus_random4_mean": 100 * ahead("mode4", "Random-n").mean,
        "calibrated_minus_uniform_mean": 100 * ahead("mode4", "MoDE-n (uniform)").mean,
        "tasks": float(len(results.tasks)),
    }


def main(given: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    options = options_of(given)
    limit = QUICK_IMAGES if options.quick else None
    data = build_science_data(options.directory.absolute() / "data", options.emoji, options.photos, limit)
    shutil.copytree(TOWER, options.directory / TOWER.name, dirs_exist_ok=True)
    study, began = study_of(options, data), time.monotonic()
    results = run_study(study, Console(file=sys.stderr))
    if options.explore:
        return
    details = {
        "setting": quick_of(options) if options.quick else {},
        "seeds": study.seeds,
        "split": split_of(options),
        "counts": dict(data.counts),
        "seconds": round(time.monotonic() - began, 1),
        "measured": [asdict(one) for one in results.measured],
    }
    if options.heads:
        finish("science_heads", heads_results_of(results), details)
    else:
        finish("science", results_of(results), details)


def options_of(given: Sequence[str] | None) -> argparse.Namespace:
    """The command line; `--final` cannot be changed by other options."""
    parser = arguments("How MoDE compares with dense models and controls, on drawings, icons and small photos.")
    parser.add_argument("--explore", action="store_true", help="many settings, development split")
    parser.add_argument("--heads", action="store_true", help="linear heads on locked, pretrained trunks")
    parser.add_argument("--final", action="store_true", help="the frozen setting, test split, seeds 10 to 12")
    parser.add_argument("--directory", type=Path, default=DIRECTORY, help="of data and runs; resumes there")
    parser.add_argument("--emoji", type=Path, help="emoji.parquet, in place of the demo's emoji")
    parser.add_argument("--photos", type=Path, help="photos32.parquet")
    parser.add_argument("--seeds", type=int, nargs="+", help="other seeds than 0, 1, 2 (not with --final)")
    options = parser.parse_args(given)
    if options.final and (options.seeds or options.explore or options.quick):
        parser.error("--final runs the frozen setting on its own seeds: leave out the other options")
    if options.final and not (options.emoji and options.photos):
        parser.error("--final takes --emoji and --photos: the demo's pairs alone are another benchmark")
    if options.heads and options.explore:
        parser.error("--explore is for full towers: leave out --heads")
    if options.quick and options.directory == DIRECTORY:
        options.directory = DIRECTORY / "quick"
    return options


if __name__ == "__main__":
    main()
