"""Eight experts on two slots: workers, controllers and drivers are killed at random, and one expert's data is rotten.

Seven must end as in a run that was left in peace and had no worker groups at all (`workers_per_run: 0`): the same
samples at the same places, by their ledgers, and the same weights. The tolerance is none: with fixed threads, on one
machine, the bytes are equal. The eighth is reported with its reason.

Then an elastic run loses a node of its cluster and gets another.
"""

import contextlib
import io
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import tarfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import yaml
from fault_runs import COMMAND, Invocation
from PIL import Image
from ray.cluster_utils import Cluster

from mode_ray.assign import FINE
from mode_ray.captions.shards import unit_name
from mode_ray.cluster.clustering import Clustering
from mode_ray.config_file import load_config
from mode_ray.stage import read_output
from mode_ray.storage import Location
from mode_ray.train.checkpoints import whole_checkpoints
from mode_ray.train.launcher import CHECKPOINT_FOLDER

pytestmark = pytest.mark.drill

T = TypeVar("T")

SEED = 20261125
KILLS = ("worker",) * 8 + ("controller",) * 3 + ("driver",) * 2
NAMES = {"worker": "ray::RayTrainWo", "controller": "ray::TrainContr"}
# As long as the seed is trained nothing else is, so that every kill costs the time of a restart.
KILLS_OF_THE_SEED = 2
EXPERTS, SLOTS = 8, 2
BATCH, STEPS, ELASTIC_STEPS = 32, 100, 1500
DEADLINE_SECONDS = 900.0
RAY_ENDS_SECONDS = 15.0
ENVIRONMENT = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}
TOPICS = {
    "kitchen": ("pan", "oven", "spoon", "kettle", "fridge"),
    "sea": ("whale", "anchor", "lighthouse", "sailboat", "coral"),
    "sports": ("football", "goalkeeper", "racket", "marathon", "stadium"),
    "music": ("violin", "drummer", "orchestra", "trumpet", "choir"),
    "office": ("printer", "spreadsheet", "stapler", "meeting", "invoice"),
    "farm": ("tractor", "cow", "barn", "wheat", "piglet"),
    "space": ("rocket", "galaxy", "astronaut", "comet", "telescope"),
    "traffic": ("truck", "motorway", "bicycle", "crossroads", "tram"),
}
MODEL = {
    "model_cfg": {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "patch_size": 16, "layers": 1, "width": 32, "head_width": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    },
    "preprocess_cfg": {},
}


@dataclass
class Story:
    """What happened, and what both runs left."""

    undisturbed: Path
    run: Path
    rotten: str
    printed: str
    kills: Counter[str] = field(default_factory=Counter)
    kills_with_checkpoints: int = 0
    seconds: float = 0.0

    def experts(self) -> list[str]:
        """All experts but the rotten one."""
        return [name for number in range(EXPERTS) if (name := f"n{EXPERTS}/{number:02d}") != self.rotten]

    def read(self, run: Path, name: str, file: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((run / "experts" / name / file).read_text())
        return content


@pytest.fixture(scope="module")
def assigned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a config and a run whose captions are assigned."""
    folder = tmp_path_factory.mktemp("train-faults")
    config = write_config(folder)
    assert ended(command(config, folder / "assigned", "run --until assign")) == 0
    return folder


@pytest.fixture(scope="module")
def story(
    assigned: Path,
    named_below: Callable[["subprocess.Popen[bytes]", str], list[int]],
    kill_tree: Callable[["subprocess.Popen[bytes]", float], list[str]],
) -> Story:
    config, run, undisturbed = assigned / "config.yaml", assigned / "run", assigned / "undisturbed"
    for copy in (run, undisturbed):
        shutil.copytree(assigned / "assigned", copy)
    rotten = rot_one_expert(config, run)
    assert ended(command(config, undisturbed, "train", "train.placement.workers_per_run=0")) == 1

    told = Story(undisturbed, run, rotten, "")
    began = time.monotonic()
    chosen = random.Random(SEED)
    victims = list(KILLS)
    chosen.shuffle(victims)
    driver = command(config, run, "train")
    try:
        for number, victim in enumerate(victims):
            if number == KILLS_OF_THE_SEED:
                wait_for(lambda: set(run.glob("experts/seed/open_clip_config.json")), driver, began)
            # Three of four kills come in the middle of training, the others at any point, as in a run's start.
            if chosen.random() < 0.75:
                before = checkpoints_of(run)
                wait_for(lambda: checkpoints_of(run) - before, driver, began)  # noqa: B023
            time.sleep(chosen.uniform(0.0, 1.0))
            pids = sorted(wait_for(lambda: victims_of(driver, victim, named_below), driver, began))  # noqa: B023
            told.kills_with_checkpoints += bool(running_with_checkpoint(run))
            told.kills[victim] += 1
            if victim == "driver":
                kill_tree(driver.process, RAY_ENDS_SECONDS)
                driver = command(config, run, "train")
            else:
                kill(chosen.choice(pids))
        code = driver.process.wait(max(1.0, DEADLINE_SECONDS - (time.monotonic() - began)))
    finally:
        if driver.process.poll() is None:
            kill_tree(driver.process, RAY_ENDS_SECONDS)
    told.printed = driver.printed()
    told.seconds = time.monotonic() - began
    print(f"kills {dict(told.kills)}, {told.kills_with_checkpoints} with a checkpoint, {told.seconds:.0f} s")  # noqa: T201
    assert code == 1, told.printed
    return told


def test_all_kills_came_and_some_in_the_middle_of_training(story: Story) -> None:
    assert story.kills == Counter(KILLS)
    assert story.kills_with_checkpoints >= 3


def test_the_rotten_expert_failed_alone_and_the_reason_is_said(story: Story) -> None:
    for run in (story.run, story.undisturbed):
        status = story.read(run, story.rotten, "status.json")
        assert status["state"] == "failed"
        assert "decoded" in status["reason"]
        assert not (run / "experts" / story.rotten / "open_clip_config.json").exists()
    assert f"{story.rotten}: " in story.printed
    assert f"1 of {EXPERTS + 1} runs failed (the others are finished)" in story.printed
    states = {name: story.read(story.run, name, "status.json")["state"] for name in ("seed", *story.experts())}
    assert set(states.values()) == {"finished"}, states


def test_the_ledgers_are_those_of_the_undisturbed_run(story: Story) -> None:
    for name in ("seed", *story.experts()):
        ends = [story.read(run, name, "metrics.json") for run in (story.run, story.undisturbed)]
        for fact in ("ledger", "samples_seen", "skipped", "bad_images"):
            assert ends[0][fact] == ends[1][fact], (name, fact)
        assert ends[0]["ledger"] > 0


def test_the_weights_are_those_of_the_undisturbed_run(story: Story) -> None:
    for name in ("seed", *story.experts()):
        files = [run / "experts" / name / "open_clip_model.safetensors" for run in (story.run, story.undisturbed)]
        assert files[0].read_bytes() == files[1].read_bytes(), name


def test_a_killed_worker_costs_no_launch(story: Story) -> None:
    runs = ["seed", *story.experts(), story.rotten]
    launches = sum(story.read(story.run, name, "status.json")["launches"] for name in runs)
    # A controller's kill costs its run one, a driver's those of its slots; and each driver tries the rotten one again.
    allowed = len(runs) + story.kills["controller"] + (SLOTS + 1) * story.kills["driver"]
    assert len(runs) < launches <= allowed


def test_nothing_is_left_but_the_outcome(story: Story) -> None:
    experts = story.run / "experts"
    left = {str(folder.parent.relative_to(experts)) for folder in experts.glob(f"**/{CHECKPOINT_FOLDER}")}
    assert left <= {story.rotten}
    assert not (story.run / "experts/lease.json").exists()


class TestNodes:
    """An elastic run on a cluster that loses a node and gets another."""

    ELASTIC = (
        "train.placement.max_workers_per_run=2",
        "train.placement.resize_interval_seconds=3",
        # The seed alone is trained, for longer than in the drill above.
        f"train.dense_samples={2 * ELASTIC_STEPS * BATCH}",
    )

    @pytest.fixture(scope="class")
    def told(self, assigned: Path) -> tuple[list[int], dict[str, Any], dict[str, Any]]:
        """Numbers of workers in the order they were seen, and the metrics of this run and of an undisturbed one."""
        config, run, undisturbed = assigned / "config.yaml", assigned / "elastic", assigned / "inelastic"
        for copy in (run, undisturbed):
            shutil.copytree(assigned / "assigned", copy)
        retry = ("train retry", "seed")
        alone = ("train.placement.workers_per_run=0", self.ELASTIC[-1])
        assert ended(command(config, undisturbed, *retry, *alone)) == 0
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 200_000_000})
        try:
            node = cluster.add_node(num_cpus=1, object_store_memory=200_000_000)
            driver = command(config, run, *retry, *self.ELASTIC, f"ray.address={cluster.address}")
            seen = [wait_for_workers(driver, run, 2)]
            cluster.remove_node(node, allow_graceful=False)
            seen.append(wait_for_workers(driver, run, 1))
            cluster.add_node(num_cpus=1, object_store_memory=200_000_000)
            seen.append(wait_for_workers(driver, run, 2))
            assert ended(driver) == 0
        finally:
            cluster.shutdown()
        metrics = [json.loads((one / "experts/seed/metrics.json").read_text()) for one in (run, undisturbed)]
        return seen, metrics[0], metrics[1]

    def test_it_shrank_with_the_lost_node_and_grew_with_the_new_one(self, told: tuple[list[int], Any, Any]) -> None:
        assert told[0] == [2, 1, 2]

    def test_it_saw_the_very_samples_of_an_undisturbed_run(self, told: tuple[Any, dict[str, Any], Any]) -> None:
        _, elastic, undisturbed = told
        for fact in ("ledger", "samples_seen", "skipped"):
            assert elastic[fact] == undisturbed[fact], fact
        assert elastic["samples_seen"] == ELASTIC_STEPS * BATCH

    def test_its_loss_is_that_of_the_undisturbed_run(self, told: tuple[Any, dict[str, Any], Any]) -> None:
        # Two workers add the same numbers in another order than one; after so many steps that shows.
        first, last = [[metrics["history"][place]["loss"] for metrics in told[1:]] for place in (0, -1)]
        assert first[0] > 3.0
        assert last[0] == pytest.approx(last[1], abs=0.2)

    @pytest.mark.usefixtures("told")
    def test_a_lost_node_costs_no_launch(self, assigned: Path) -> None:
        status = json.loads((assigned / "elastic/experts/seed/status.json").read_text())
        assert (status["state"], status["launches"]) == ("finished", 1)


def wait_for_workers(driver: Invocation, run: Path, workers: int) -> int:
    """Poll until the seed is trained by so many workers, and has got on with them."""
    file, first, began = run / "experts/seed/progress.json", None, time.monotonic()
    while True:
        assert driver.process.poll() is None, driver.printed()
        assert time.monotonic() - began < DEADLINE_SECONDS / 3, driver.printed()
        time.sleep(0.2)
        progress = json.loads(file.read_text()) if file.exists() else {"workers": 0}
        if progress["workers"] != workers:
            continue
        first = progress["samples"] if first is None else first
        if progress["samples"] > first:
            return workers


def command(config: Path, run: Path, words: str, *arguments: str) -> Invocation:
    """A command of its own, with a Ray of its own where its arguments name none."""
    log = run.parent / f"{run.name}-{time.monotonic_ns()}.log"
    line = [str(COMMAND), *words.split(), "--config", str(config), *arguments, f"run={run}"]
    return Invocation(line, log, ENVIRONMENT)


def ended(invocation: Invocation) -> int:
    """Leave a command alone until it ends; its exit code."""
    try:
        return invocation.process.wait(DEADLINE_SECONDS)
    finally:
        if invocation.process.poll() is None:
            invocation.process.kill()
        print(invocation.printed())  # noqa: T201 - pytest shows it where the test fails


def victims_of(
    driver: Invocation, victim: str, named_below: Callable[["subprocess.Popen[bytes]", str], list[int]]
) -> set[int]:
    workers = set(named_below(driver.process, NAMES["worker"]))
    if victim == "driver":
        return {driver.process.pid} if workers else set()
    return workers if victim == "worker" else set(named_below(driver.process, NAMES[victim]))


def checkpoints_of(run: Path) -> set[Path]:
    """All checkpoints that stand."""
    return set(run.glob(f"experts/**/{CHECKPOINT_FOLDER}/*/checkpoint-*"))


def wait_for(find: Callable[[], set[T]], driver: Invocation, began: float) -> set[T]:
    """Poll until there is something, such as a process to kill."""
    while not (found := find()):
        assert driver.process.poll() is None, f"it ended before all kills came:\n{driver.printed()}"
        assert time.monotonic() - began < DEADLINE_SECONDS, driver.printed()
        time.sleep(0.2)
    return found


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it may end by itself in this very moment
        os.kill(pid, signal.SIGKILL)


def running_with_checkpoint(run: Path) -> list[str]:
    """Runs under way that have a checkpoint to go on from."""
    return [
        str(checkpoints.relative_to(run))
        for checkpoints in run.glob(f"experts/**/{CHECKPOINT_FOLDER}/*")
        if whole_checkpoints(Location(str(checkpoints)))
    ]


def write_config(folder: Path) -> Path:
    """Captions of eight topics with noisy pictures in four tars, and a config for eight experts."""
    captions = [
        f"a {noun} {place} {scene}"
        for nouns in TOPICS.values()
        for noun in nouns
        for place, scene in itertools.product(("seen", "drawn", "close by", "far away"), ("today", "at night"))
    ]
    order = np.random.default_rng(SEED).permutation(len(captions))
    (folder / "tars").mkdir()
    for number in range(4):
        with tarfile.open(folder / f"tars/{number}.tar", "w") as archive:
            for place in order[number::4]:
                for suffix, content in (("png", picture(int(place))), ("txt", captions[place].encode())):
                    member = tarfile.TarInfo(f"{place:04d}.{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    (folder / "model").mkdir()
    (folder / "model/open_clip_config.json").write_text(json.dumps(MODEL))
    values = {
        "run": str(folder / "run"),
        "captions": {"paths": [str(folder / "tars/*.tar")]},
        "limits": {"max_bad_image_share": 0.4},
        "encoder": {"kind": "static", "model": "package:wordllama"},
        "embed": {"pool": {"max_actors": 1}},
        "cluster": {"sample_rows": 320, "fine": {"centers": 24}, "coarse": {"experts": [EXPERTS]}},
        "assign": {"pool": {"max_actors": 1}},
        "train": {
            "model": {"architecture": str(folder / "model"), "precision": "float32"},
            "experts": EXPERTS,
            "dense": False,
            "expert_budget": "full",
            "dense_samples": 2 * STEPS * BATCH,
            "seed_share": 0.5,
            "batch_size": BATCH,
            "out_of_cluster_share": 0.02,
            "optimizer": {"warmup_samples": 8 * BATCH},
            "placement": {
                "concurrent_runs": SLOTS,
                "checkpoint_interval_seconds": 0.3,
                "log_interval_steps": 5,
                "max_failures": len(KILLS),
                "max_launches": len(KILLS),
            },
        },
        "ray": {"num_cpus": 2, "object_store_bytes": 200_000_000},
    }
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def picture(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def rot_one_expert(config: Path, run: Path) -> str:
    """Make the images of one expert undecodable, in files of the same size and time; returns its name."""
    clustering = Clustering.load(Location(str(run / "clusters")))
    group_m = clustering.coarse[EXPERTS]
    expert = clustering.widest_first(EXPERTS)[1]  # among the first to start, so that the others have to go on
    paths = load_config(str(config), []).captions.paths
    for tar in sorted(Path(paths[0]).parent.glob("*.tar")):
        times, content = tar.stat(), bytearray(tar.read_bytes())
        table = read_output(Location(str(run / "assignments")), unit_name(Location(str(tar))))
        for fine, offset in zip(table[FINE].to_pylist(), table["image_offset"].to_pylist(), strict=True):
            if group_m[fine] == expert:
                assert content[offset : offset + 4] == b"\x89PNG"
                content[offset : offset + 4] = b"\0\0\0\0"
        tar.write_bytes(content)
        os.utime(tar, ns=(times.st_atime_ns, times.st_mtime_ns))
    return f"n{EXPERTS}/{expert:02d}"
