"""Twenty kills of workers and drivers, and a node that is lost: nothing lost, nothing done twice.

Equality has no tolerance: on one machine with fixed threads a disturbed run gives the rows of an undisturbed one.
"""

import itertools
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from fault_runs import (
    DEADLINE_SECONDS,
    Ended,
    Invocation,
    Standing,
    all_counted,
    manifest_of,
    outputs,
    same_rows,
    stage_command,
    temporaries,
    up_to_assign,
    write_captions,
    write_config,
)

from mode_ray.stages.manifest import read_units
from mode_ray.storage import Location

pytestmark = [pytest.mark.drill, pytest.mark.alone]

KillTree = Callable[["subprocess.Popen[bytes]", float], list[str]]
PoolWorkers = Callable[["subprocess.Popen[bytes]"], list[int]]

SEED = 20
KILLS = 20
DRIVER_EVERY = 5
UNITS, CAPTIONS_PER_UNIT = 1000, 4
POLL_SECONDS = 0.1  # to count the outputs of a thousand units takes a hundredth of it
RAY_ENDS_SECONDS = 10.0
DRILL_SECONDS = 900.0
STAGES = ("embed", "assign")


@dataclass(frozen=True)
class Input:
    """The captions, the config, and a run left in peace."""

    config: Path
    rows: int
    undisturbed: Path


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Input:
    folder = tmp_path_factory.mktemp("kills")
    rows = write_captions(Location(str(folder / "captions")), UNITS, CAPTIONS_PER_UNIT)
    config = write_config(folder / "config.yaml", Location(str(folder / "captions")))
    undisturbed = folder / "undisturbed"
    ended = Invocation(up_to_assign(config, Location(str(undisturbed))), folder / "undisturbed.log").ended()
    assert ended.exit_code == 0, ended.printed
    return Input(config, rows, undisturbed)


def killed(pid: int) -> bool:
    """Kill a process; whether it was still there."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


@dataclass(frozen=True)
class Drill:
    """What the kills left behind."""

    run: Path
    kills: list[str]
    stood_at_kills: list[dict[str, dict[str, Standing]]]
    survived: list[str]
    ended: list[Ended]
    seconds: float


@pytest.fixture(scope="module")
def drill(given: Input, kill_tree: KillTree, pool_workers: PoolWorkers) -> Drill:
    generator = random.Random(SEED)
    began = time.monotonic()
    run = given.config.parent / "run"
    # By progress, not by the clock: so the kills fall inside the stages on any machine.
    points = sorted(generator.sample(range(UNITS // 50, 2 * UNITS - UNITS // 10), KILLS))
    kills: list[str] = []
    stood: list[dict[str, dict[str, Standing]]] = []
    survived: list[str] = []
    ended: list[Ended] = []

    def point_reached() -> bool:
        return len(kills) < KILLS and sum(len(outputs(run, stage)) for stage in STAGES) >= points[len(kills)]

    def one_invocation(stage: str, log: Path) -> bool:
        """Whether it came to its end; it meets the kills whose points it reaches."""
        invocation = Invocation(stage_command(stage, given.config, Location(str(run))), log)
        before = len(kills)
        while invocation.process.poll() is None:
            assert time.monotonic() < began + DRILL_SECONDS, invocation.printed()
            time.sleep(POLL_SECONDS)
            if not point_reached():
                continue
            if len(kills) % DRIVER_EVERY == DRIVER_EVERY - 1:
                kill_tree(invocation.process, RAY_ENDS_SECONDS)
                kills.append(f"driver in {stage}")
                stood.append({name: outputs(run, name) for name in STAGES})
                return False
            workers = pool_workers(invocation.process)
            if workers and killed(generator.choice(workers)):
                kills.append(f"worker in {stage}")
                stood.append({name: outputs(run, name) for name in STAGES})
        ended.append(invocation.ended())
        assert ended[-1].exit_code == 0, ended[-1].printed
        if len(kills) > before:
            survived.append(stage)
        return True

    logs = (given.config.parent / f"run-{number}.log" for number in itertools.count())
    for stage in ("embed", "cluster", "assign"):
        while not one_invocation(stage, next(logs)):
            pass
    return Drill(run, kills, stood, survived, ended, time.monotonic() - began)


class TestTwentyKills:
    def test_they_fell_inside_both_stages_on_workers_and_drivers(self, drill: Drill) -> None:
        assert len(drill.kills) == KILLS
        assert {kill for kill in drill.kills if not kill.endswith("cluster")} == {
            f"{who} in {stage}" for who in ("worker", "driver") for stage in STAGES
        }
        assert drill.seconds < DRILL_SECONDS

    def test_a_stage_outlives_the_loss_of_workers(self, drill: Drill) -> None:
        assert drill.survived, "no invocation that lost a worker came to its end"

    def test_no_unit_is_done_again_after_its_output_stood(self, drill: Drill) -> None:
        for stage in STAGES:
            now = outputs(drill.run, stage)
            assert len(now) == UNITS
            for stood in drill.stood_at_kills:
                assert {unit: now[unit] for unit in stood[stage]} == stood[stage]

    @pytest.mark.parametrize("stage", STAGES)
    def test_the_rows_are_those_of_the_undisturbed_run(self, drill: Drill, given: Input, stage: str) -> None:
        run, undisturbed = Location(str(drill.run)), Location(str(given.undisturbed))
        assert same_rows(run, undisturbed, stage)
        assert manifest_of(run, stage).content_hash == manifest_of(undisturbed, stage).content_hash

    @pytest.mark.parametrize("stage", STAGES)
    def test_every_row_is_counted_once(self, drill: Drill, given: Input, stage: str) -> None:
        manifest = manifest_of(Location(str(drill.run)), stage)
        assert manifest.units == UNITS
        assert manifest.quarantined == {}
        assert manifest.attempts > 1
        # What embed refused, assign does not see.
        rows = given.rows if stage == "embed" else manifest_of(Location(str(drill.run)), "embed").rows_out
        assert all_counted(manifest, rows)

    def test_nothing_half_written_stays(self, drill: Drill) -> None:
        assert temporaries(drill.run) == []


@dataclass(frozen=True)
class LostNode:
    """A run of `assign` whose second node was taken away."""

    run: Path
    stood: dict[str, Standing]
    ended: Ended


@pytest.fixture(scope="module")
def lost_node(given: Input) -> LostNode:
    from ray.cluster_utils import Cluster

    run = given.config.parent / "lost-node"
    for name in ("embeddings", "clusters"):
        shutil.copytree(given.undisturbed / name, run / name)
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "object_store_memory": 100_000_000, "include_dashboard": False},
    )
    try:
        node = cluster.add_node(num_cpus=1, object_store_memory=100_000_000)
        invocation = Invocation(
            [*stage_command("assign", given.config, Location(str(run))), "assign.pool.min_actors=2"],
            run / "assign.log",
            {"RAY_ADDRESS": cluster.address},
        )
        deadline = time.monotonic() + DEADLINE_SECONDS
        while len(outputs(run, "assign")) < UNITS // 4:
            assert invocation.process.poll() is None, invocation.printed()
            assert time.monotonic() < deadline, invocation.printed()
            time.sleep(POLL_SECONDS)
        cluster.remove_node(node, allow_graceful=False)
        stood = outputs(run, "assign")
        return LostNode(run, stood, invocation.ended())
    finally:
        cluster.shutdown()  # type: ignore[no-untyped-call]


class TestALostNode:
    def test_it_was_lost_in_the_middle_and_the_same_invocation_ends_well(self, lost_node: LostNode) -> None:
        assert UNITS // 4 <= len(lost_node.stood) < UNITS
        assert lost_node.ended.exit_code == 0, lost_node.ended.printed

    def test_no_unit_is_done_again_after_its_output_stood(self, lost_node: LostNode) -> None:
        now = outputs(lost_node.run, "assign")
        assert {unit: now[unit] for unit in lost_node.stood} == lost_node.stood

    def test_the_rows_are_those_of_the_undisturbed_run_and_all_counted(
        self, lost_node: LostNode, given: Input
    ) -> None:
        run, undisturbed = Location(str(lost_node.run)), Location(str(given.undisturbed))
        assert same_rows(run, undisturbed, "assign")
        assert all_counted(read_units(run / "assignments"), manifest_of(undisturbed, "embed").rows_out)
        assert manifest_of(run, "assign").attempts == 1
