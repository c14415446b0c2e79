"""One process of the head, restarted by `head.py`: prints its time, memory and bytes written to disk."""

import json
import sys
import time
from pathlib import Path

from mode_ray.config.run import RunConfig
from mode_ray.stages.manifest import Stage
from mode_ray.stages.run import Run

CENTERS = 64
CONCURRENT_RUNS = 4
BUCKET = "bench"


def run_config(shards: int, experts: int) -> RunConfig:
    """The config of a run over so many shards."""
    return RunConfig.model_validate(
        {
            "run": f"s3://{BUCKET}/run-{shards}-{experts}",
            "captions": {"paths": [f"s3://{BUCKET}/pairs-{shards}"]},
            "embed": {"keep": "all"},
            "cluster": {"fine": {"centers": CENTERS}, "coarse": {"experts": [experts]}},
            "train": {
                "model": {"architecture": "ViT-B-32"},
                "experts": experts,
                "dense_samples": 128_000_000,
                "batch_size": 4096,
                "controls": [],
                "placement": {"concurrent_runs": CONCURRENT_RUNS},
            },
        }
    )


def claimed(config: RunConfig, name: str) -> tuple[Run, Stage]:
    """A run and one of its stages, checked and claimed as by the driver of that stage."""
    from rich.console import Console

    from mode_ray.observe.progress import Progress
    from mode_ray.pipeline import Pipeline, build_stages, open_run

    run = open_run(config)
    stages = build_stages(run)
    pipeline = Pipeline(run, stages, Progress(Console(quiet=True)))
    pipeline.check([name])
    pipeline.claim()
    return run, stages[name]


def restart_assign(config: RunConfig) -> int:
    """What the driver of `assign` does before its actors get work; returns the units that are left."""
    from mode_ray.stages.resume import plan_units

    run, stage = claimed(config, "assign")
    return len(plan_units(stage, run.work_units).left)


def restart_train(config: RunConfig) -> int:
    """What the driver of `train` does before it launches runs; returns the runs."""
    from mode_ray.train.runs.lease import Lease
    from mode_ray.train.runs.status import initial_statuses
    from mode_ray.train.stage import begin_training

    run, stage = claimed(config, "train")
    training = begin_training(run, stage)
    with Lease(stage.directory, lambda _: None) as lease:
        statuses = initial_statuses(training.trials, stage.directory)
        lease.check()
    return len(statuses)


def restart_launcher(config: RunConfig) -> int:
    """What the launcher of an expert does before its trainer starts; returns the runs."""
    import mode_ray.train.runs.launcher  # noqa: F401 - the module of a launcher's task
    from mode_ray.stages.run import Run
    from mode_ray.train.runs.trial import TrialJob, planned_trials_of, training_summary
    from mode_ray.train.runs.trial_data import TrialData

    run = Run(config, ())
    summary = training_summary(run.experts)
    if summary is None:
        raise RuntimeError("train was not begun")
    trials = planned_trials_of(summary)
    TrialData(TrialJob(trials[-1], config, run.assignments, run.clusters, run.experts)).write_index()
    return len(trials)


def numbers_of(file: str) -> dict[str, int]:
    """The numbers in a file of Linux' /proc, by name."""
    words = (line.replace(":", " ").split() for line in Path(file).read_text().splitlines())
    return {found[0]: int(found[1]) for found in words if len(found) > 1 and found[1].isdecimal()}


def main() -> None:
    """Restart what the arguments name."""
    what, shards, experts = sys.argv[1:]
    restart = {"assign": restart_assign, "train": restart_train, "launcher": restart_launcher}[what]
    config = run_config(int(shards), int(experts))
    began = time.perf_counter()
    found = restart(config)
    figures = {
        "found": found,
        "seconds": time.perf_counter() - began,
        "processor_seconds": time.process_time(),
        # Not getrusage: its maximum includes the process that started this one.
        "peak_resident_bytes": 1024 * numbers_of("/proc/self/status")["VmHWM"],
        "written_bytes": numbers_of("/proc/self/io")["write_bytes"],
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
