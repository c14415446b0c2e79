"""Training is as fast as its arithmetic: 0.95 of steps on tensors at hand, and Ray takes less than 3 % of it.

Peer: open_clip's own trainer (`open_clip_train.main` of the installed release), on the same WebDataset shards, from
the same first weights, with the same batch, precision, optimizer, schedule and threads; its samples a second are those
of its own log, ours those of our metrics, both after step 20. The ceiling is our forward, backward and step on a few
batches that lie in memory. Then the same run for five minutes in all under Ray Train and in a bare process, in turn:
the difference is what Ray's layer takes; starting and ending it is printed apart. Ray's own processes want a little of
every node: where training takes all cores of a small one they take it from training, so the same is also measured with
one core left to them.

The pairs are 24,000 photos of 32 px (`photos32.parquet` in MODE_RAY_SHARED_DATA; their sentences are machine-written
and belong to the class, not to the photo); without that file the demo's drawings serve.
"""

import argparse
import io
import json
import os
import re
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import pyarrow.parquet as pq
import torch
import yaml
from captions import CAPTIONS, STATIC_TABLE
from frame import Timings, alternate, arguments, finish

from mode_ray.config.load import load_config
from mode_ray.config.run import RunConfig
from mode_ray.config.train import ModelConfig
from mode_ray.models.clip import build_clip, save_clip
from mode_ray.pairs.members import TrainingSet
from mode_ray.run_directory import LISTING, WORK_UNITS_FILE, stage_directories
from mode_ray.stages.session import ray_session
from mode_ray.storage import Location
from mode_ray.train.data import PairDataset, train_loader
from mode_ray.train.plan import DENSE, Trial
from mode_ray.train.runs.launcher import fit_trial
from mode_ray.train.runs.trial import TrialJob, read_metrics
from mode_ray.train.runs.trial_data import TrialData
from mode_ray.train.step.loop import TrainLoop
from mode_ray.train.step.rank import ONLY_RANK

mpl.use("Agg")

THREADS = len(os.sched_getaffinity(0))
BATCH = 128
PAIRS_PER_SHARD = 1_000
FIRST_STEPS = 20
LOG_STEPS = 10
LEARNING_RATE = 1e-3
WARMUP_STEPS = 20
CACHED_BATCHES = 8
DEMO_TOWER = "package:mode_ray/presets/demo-vit"
PICTURE = Path(__file__).resolve().parent / "results/train-loss.png"
# The newest that open_clip's trainer allows; the project itself has a later one.
PEER_PACKAGES = ("webdataset==0.2.86",)
_BATCH_SECONDS = re.compile(r"\[ *(\d+)/.*Batch \(t\): ([0-9.]+).* Loss: ([0-9.]+)")


@dataclass(frozen=True)
class Curve:
    """A training run as its log tells it.

    Attributes:
        samples_per_second: After the first steps.
        losses: By samples seen.
        data_wait_share: Share of the time in which the loop waited for data; 0 where the log does not say.
    """

    samples_per_second: float
    losses: Mapping[int, float]
    data_wait_share: float = 0.0


def write_work_units(folder: Path) -> int:
    """The pairs as WebDataset tars; returns how many."""
    photos = CAPTIONS.with_name("photos32.parquet")
    if not photos.is_file():
        from mode_ray.demo.build import build_demo_data

        print(f"no {photos} (set MODE_RAY_SHARED_DATA): the demo's drawings instead")
        work_units = build_demo_data(Location(str(folder / "demo"))).train_shards
        pairs = [pair for work_unit in work_units for pair in _tar_pairs(Path(work_unit.path))]
    else:
        table = pq.read_table(photos, columns=["image", "caption"])
        pairs = [
            ("jpg", image["bytes"] if isinstance(image, dict) else image, caption)
            for image, caption in zip(table["image"].to_pylist(), table["caption"].to_pylist(), strict=True)
        ]
    tars = folder / "tars"
    tars.mkdir()
    for number, start in enumerate(range(0, len(pairs), PAIRS_PER_SHARD)):
        with tarfile.open(tars / f"{number:05d}.tar", "w") as archive:
            for place, (suffix, image, caption) in enumerate(pairs[start : start + PAIRS_PER_SHARD], start):
                for ending, content in ((suffix, image), ("txt", caption.encode())):
                    member = tarfile.TarInfo(f"{place:08d}.{ending}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return len(pairs)


def _tar_pairs(tar: Path) -> list[tuple[str, bytes, str]]:
    with tarfile.open(tar) as archive:
        parts = {member.name: archive.extractfile(member).read() for member in archive if member.isfile()}  # type: ignore[union-attr]
    return [("png", parts[name], parts[f"{name[:-4]}.txt"].decode()) for name in parts if name.endswith(".png")]


def assigned_run(folder: Path) -> RunConfig:
    """A run whose pairs are assigned, ready to train: by the command line, as a user would."""
    architecture = folder / "first-weights"
    save_clip(Location(str(architecture)), build_clip(ModelConfig(architecture=DEMO_TOWER), seed=0))
    pool = {"min_actors": 1, "max_actors": 1}
    values = {
        "run": str(folder / "run"),
        "captions": {"paths": [str(folder / "tars")]},
        "encoder": {"kind": "static", "model": STATIC_TABLE},
        "embed": {"pool": pool},
        "assign": {"pool": pool},
        "cluster": {"fine": {"centers": 64}, "coarse": {"experts": [2]}},
        "train": {
            "model": {"architecture": str(architecture), "pretrained": "folder", "precision": "float32"},
            "experts": 2,
            "dense_samples": BATCH,
            "batch_size": BATCH,
            "optimizer": {"learning_rate": LEARNING_RATE, "warmup_samples": WARMUP_STEPS * BATCH},
            "placement": {
                "cpus_per_worker": THREADS,
                "threads_per_worker": THREADS,
                "log_interval_steps": LOG_STEPS,
            },
        },
        "ray": {"dashboard": False, "object_store_bytes": 300_000_000},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(values))
    command = [str(Path(sys.executable).with_name("mode-ray")), "run", "--until", "assign"]
    subprocess.run([*command, "--config", str(folder / "run.yaml")], check=True, stdout=subprocess.DEVNULL)
    config = load_config(str(folder / "run.yaml"), [])
    experts = stage_directories(config.directory)["train"]
    (experts / WORK_UNITS_FILE).write_bytes((config.directory / LISTING).read_bytes())
    return config


def dense_job(folder: Path, steps: int, workers: int, threads: int) -> TrialJob:
    """The dense baseline of so many steps; workers 0: in the calling process, without Ray."""
    overrides = [
        f"train.dense_samples={steps * BATCH}",
        f"train.placement.workers_per_run={workers}",
        f"train.placement.threads_per_worker={threads}",
    ]
    config = load_config(str(folder / "run.yaml"), overrides)
    places = stage_directories(config.directory)
    trial = Trial(name=DENSE, members=TrainingSet(kind="all", seed=1), samples=steps * BATCH)
    return TrialJob(
        trial=trial, config=config, assignments=places["assign"], clusters=places["cluster"], experts=places["train"]
    )


def train_here(folder: Path, steps: int, workers: int, threads: int) -> None:
    """Train anew in this process, on a Ray of its own where there are workers."""
    job = dense_job(folder, steps, workers, threads)
    job.folder.delete()
    began = time.perf_counter()
    if workers:
        with ray_session(job.config.ray):
            end = fit_trial(job)
    else:
        torch.set_num_threads(threads)
        end = fit_trial(job)
    if end.reason is not None:
        raise RuntimeError(end.reason)
    print(json.dumps({"seconds": time.perf_counter() - began}))


def ours(folder: Path, steps: int, workers: int, threads: int = THREADS) -> tuple[Curve, float]:
    """Our run in a process of its own: what its metrics tell, and the seconds that were not training."""
    command = [sys.executable, __file__, "--part", str(folder), "--steps", str(steps), "--workers", str(workers)]
    command += ["--threads", str(threads)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    whole_seconds: float = json.loads(done.stdout.splitlines()[-1])["seconds"]
    history = read_metrics(dense_job(folder, steps, workers, threads).folder)["history"]
    seconds, samples, waited, before = 0.0, 0.0, 0.0, 0.0
    training_seconds = 0.0
    for point in history:
        took = (point["samples"] - before) / point["samples_per_second"]
        training_seconds += took
        if before >= FIRST_STEPS * BATCH:
            seconds, samples = seconds + took, samples + point["samples"] - before
            waited += took * point["data_wait_share"]
        before = point["samples"]
    losses = {int(point["samples"]): point["loss"] for point in history}
    return Curve(samples / seconds, losses, waited / seconds), whole_seconds - training_seconds


def open_clip_run(folder: Path, side: Path, steps: int, pairs: int, loader_workers: int) -> Curve:
    """The peer's run, in a process of its own."""
    work_units = sorted((folder / "tars").iterdir())
    logs = Path(tempfile.mkdtemp(dir=folder))
    command = [
        *(sys.executable, "-m", "open_clip_train.main"),
        *("--model", f"local-dir:{folder / 'first-weights'}"),
        *(
            "--train-data",
            f"{work_units[0].parent}/{{00000..{len(work_units) - 1:05d}}}.tar",
            "--dataset-type",
            "webdataset",
        ),
        *("--train-num-samples", str(min(steps * BATCH, pairs)), "--epochs", str(-(-steps * BATCH // pairs))),
        *("--batch-size", str(BATCH), "--workers", str(loader_workers), "--precision", "fp32", "--device", "cpu"),
        *("--lr", str(LEARNING_RATE), "--wd", "0.2", "--beta1", "0.9", "--beta2", "0.98", "--eps", "1e-6"),
        *("--warmup", str(WARMUP_STEPS), "--log-every-n-steps", str(LOG_STEPS), "--save-frequency", "0"),
        *("--zeroshot-frequency", "0", "--logs", str(logs), "--name", "run"),
    ]
    environment = os.environ | {"PYTHONPATH": str(side), "OMP_NUM_THREADS": str(THREADS), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"open_clip_train failed:\n{done.stderr[-3000:]}")
    log = (logs / "run" / "out.log").read_text()
    windows, losses, last = [], {}, 0
    for count, (samples, seconds, loss) in enumerate(_BATCH_SECONDS.findall(log)):
        seen = int(samples) + (last if int(samples) <= last else 0)
        losses[seen] = float(loss)
        if count * LOG_STEPS > FIRST_STEPS:
            windows.append(float(seconds))  # the mean over the steps since the line before
        last = seen
    return Curve(BATCH / statistics.mean(windows), losses)


class Ceiling:
    """Forward, backward and step on batches in memory: what no loader and no Ray can beat.

    Args:
        folder: Of the benchmark.
    """

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(THREADS)
        job = dense_job(folder, 10_000, 0, THREADS)
        data = TrialData(job)
        data.write_index()
        clip = build_clip(job.config.train.model, 0)
        self._loop = TrainLoop(clip.module, job.trial, job.config.train, 0.0)
        seed = job.trial.members.seed
        dataset = PairDataset(data.open(), job.config, clip, seed, data.captions, self._loop.prepare_texts)
        batches = range(0, CACHED_BATCHES * BATCH, BATCH)
        self._batches = list(train_loader(dataset, batches, ONLY_RANK, job.config.train.placement))

    def samples_per_second(self, steps: int) -> float:
        """The rate after a few steps."""
        for batch in self._batches[:2]:
            self._loop.step(batch)
        began = time.perf_counter()
        for step in range(steps):
            self._loop.step(self._batches[step % CACHED_BATCHES])
        return steps * BATCH / (time.perf_counter() - began)


def draw(curves: Mapping[str, Curve], steps: int) -> None:
    """Both loss curves in one picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, curve in curves.items():
        axes.plot(list(curve.losses), list(curve.losses.values()), label=name)
    axes.set(xlabel="samples seen", ylabel="contrastive loss", title=f"{steps} steps of {BATCH}, same first weights")
    axes.legend()
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=110)
    print(f"loss curves: {PICTURE}")


@dataclass(frozen=True)
class Overhead:
    """What is lost under Ray.

    Attributes:
        share: Of the rate without it, median over the rounds.
        rates: Samples a second of every round, with and without.
        start_and_end_seconds: Of every run under Ray; not in the share.
        steps: Of every run.
    """

    share: float
    rates: Mapping[str, list[float]]
    start_and_end_seconds: list[float]
    steps: int


def ray_overhead(folder: Path, rate: float, seconds: float, rounds: int, threads: int) -> Overhead:
    """The same run under Ray and without, in turn, until each has lasted so long in all."""
    steps = max(3 * FIRST_STEPS, round(rate * seconds / rounds / BATCH))
    starts: list[float] = []
    # No unmeasured round: every run is a process of its own.
    rates: dict[str, list[float]] = {"ray": [], "bare": []}
    for turn in range(rounds):
        for name in ("ray", "bare") if turn % 2 == 0 else ("bare", "ray"):
            curve, apart = ours(folder, steps, int(name == "ray"), threads)
            rates[name].append(curve.samples_per_second)
            if name == "ray":
                starts.append(apart)
    share = 1.0 - statistics.median(ray / bare for ray, bare in zip(rates["ray"], rates["bare"], strict=True))
    print(
        f"{threads} threads of {THREADS}: Ray takes {100.0 * share:.1f} %; starting and ending Ray and the trainer, "
        f"not counted: {', '.join(f'{s:.1f}' for s in starts)} s"
    )
    return Overhead(share, rates, starts, steps)


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        train_here(Path(options.part), options.steps, options.workers, options.threads)
        return
    steps, repeats = (40, 1) if options.quick else (100, 5)
    repeats = options.repeats or repeats
    with tempfile.TemporaryDirectory() as scratch:
        folder, side = Path(scratch), Path(scratch) / "open-clip-training"
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(side), *PEER_PACKAGES],
            check=True,
        )
        pairs = write_work_units(folder)
        assigned_run(folder)
        ceiling = Ceiling(folder)
        best_workers = max(
            (1, 2), key=lambda workers: open_clip_run(folder, side, 40, pairs, workers).samples_per_second
        )
        curves: dict[str, Curve] = {}
        waits: list[float] = []

        def our_seconds() -> float:
            curves["mode_ray"], _ = ours(folder, steps, 1)
            waits.append(curves["mode_ray"].data_wait_share)
            return 1.0 / curves["mode_ray"].samples_per_second

        def their_seconds() -> float:
            curves["open_clip"] = open_clip_run(folder, side, steps, pairs, best_workers)
            return 1.0 / curves["open_clip"].samples_per_second

        def ceiling_seconds() -> float:
            return 1.0 / ceiling.samples_per_second(steps // 2)

        # Every run is a process of its own, and leaves its first steps out: a round to warm up would change nothing.
        peers = {"open_clip": their_seconds, "ceiling": ceiling_seconds}
        timings: Timings = alternate(our_seconds, peers, repeats, warm_up=False)
        rates = {name: 1.0 / seconds for name, seconds in timings.median_seconds.items()}
        print(
            f"batch {BATCH}, {steps} steps, {THREADS} threads, demo tower, float32; open_clip: {best_workers} workers"
        )
        for name, rate in rates.items():
            print(f"  {name:10} {rate:8.0f} samples/s")
        draw(curves, steps)
        seconds, rounds = (20.0, 1) if options.quick else (300.0, 5)
        overhead = ray_overhead(folder, rates["mode_ray"], seconds, rounds, THREADS)
        spare = max(1, THREADS - 1)
        spared = ray_overhead(folder, rates["mode_ray"] * spare / THREADS, seconds / 2.0, rounds, spare)
    finish(
        "train",
        {
            "samples_per_second_vs_open_clip": timings.speed_up("open_clip"),
            "share_of_ceiling": timings.speed_up("ceiling"),
            "data_wait_share": statistics.median(waits),
            "ray_overhead_share": overhead.share,
            "ray_overhead_share_with_a_core_left": spared.share,
        },
        {
            "pairs": pairs,
            "batch": BATCH,
            "steps": steps,
            "threads": THREADS,
            "open_clip_loader_workers": best_workers,
            "samples_per_second": {
                name: [round(1.0 / value) for value in values] for name, values in timings.seconds.items()
            },
            "last_loss": {name: list(curve.losses.values())[-1] for name, curve in curves.items()},
            "overhead": vars(overhead),
            "overhead_with_a_core_left": vars(spared),
        },
    )


if __name__ == "__main__":
    main()
