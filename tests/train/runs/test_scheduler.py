"""Which run starts when, what a failure costs, and what is known again after a crash: decided without Ray."""

import dataclasses
import json
from pathlib import Path

import pytest

from mode_ray.pairs.members import TrainingSet
from mode_ray.run_directory import STATUS_FILE
from mode_ray.storage import Location
from mode_ray.train.plan import Trial
from mode_ray.train.runs.queue import TrialQueue
from mode_ray.train.runs.status import TrialStatus, initial_statuses, read_status

ALL = TrainingSet(kind="all")


def trial(name: str, parent: str | None = None) -> Trial:
    return Trial(name=name, members=ALL, samples=800, parent=parent)


SEED, DENSE = trial("seed"), trial("dense")
EXPERTS = [trial(f"n3/{number:02d}", parent="seed") for number in range(3)]


def queue(concurrent: int = 2, max_launches: int = 2, *trials: Trial, **states: str) -> TrialQueue:
    chosen = trials or (SEED, DENSE, *EXPERTS)
    statuses = {
        one.name: TrialStatus(trial=one.name, state=states.get(one.name, "waiting"), samples=one.samples)  # type: ignore[arg-type]
        for one in chosen
    }
    return TrialQueue(chosen, statuses, concurrent, max_launches)


def start(waiting: TrialQueue) -> list[Trial]:
    """Start all that may start now."""
    begun = waiting.startable()
    for one in begun:
        waiting.started(one)
    return begun


def states(waiting: TrialQueue) -> dict[str, str]:
    return {name: status.state for name, status in waiting.statuses.items()}


class TestOrder:
    def test_experts_wait_for_the_seed_and_the_dense_run_does_not(self) -> None:
        waiting = queue(4)
        assert start(waiting) == [SEED, DENSE]
        assert waiting.startable() == []
        waiting.finished(DENSE, 1.0)
        assert waiting.startable() == []
        waiting.finished(SEED, 1.0)
        assert waiting.startable() == EXPERTS

    def test_no_more_run_at_once_than_asked_for(self) -> None:
        waiting = queue(2)
        start(waiting)
        waiting.finished(SEED, 1.0)
        assert start(waiting) == EXPERTS[:1]
        assert start(waiting) == []
        waiting.finished(DENSE, 1.0)
        assert start(waiting) == EXPERTS[1:2]

    def test_the_order_given_is_the_order_of_starts(self) -> None:
        waiting = queue(1, 2, SEED, EXPERTS[2], EXPERTS[0], seed="finished")
        assert start(waiting) == [EXPERTS[2]]

    def test_a_finished_trial_does_not_start_again(self) -> None:
        waiting = queue(8, 2, **{"seed": "finished", "dense": "finished", "n3/01": "finished"})
        assert start(waiting) == [EXPERTS[0], EXPERTS[2]]

    def test_every_trial_runs_once_and_then_nothing_is_left(self) -> None:
        waiting, begun = queue(2), []
        running: list[Trial] = []
        while waiting.unfinished():
            running += start(waiting)
            assert 0 < len(running) <= 2
            begun.append(running[0])
            waiting.finished(running.pop(0), 1.0)
        assert sorted(one.name for one in begun) == sorted(states(waiting))
        assert set(states(waiting).values()) == {"finished"}


class TestFailures:
    def test_a_lost_launcher_is_launched_again_within_the_budget(self) -> None:
        waiting = queue(1, 2, DENSE)
        for seconds in (1.5, 2.0):
            assert start(waiting) == [DENSE]
            waiting.failed(DENSE, "launcher lost", seconds, again=True)
        status = waiting.statuses["dense"]
        assert (status.state, status.launches, status.seconds, status.reason) == ("failed", 2, 3.5, "launcher lost")
        assert not waiting.unfinished()

    def test_a_permanent_failure_is_not_launched_again(self) -> None:
        waiting = queue(1, 5, DENSE)
        start(waiting)
        waiting.failed(DENSE, "b.parquet: no column 'image'", 1.0, again=False)
        assert states(waiting) == {"dense": "failed"}
        assert waiting.startable() == []

    def test_lost_launches_with_a_newer_checkpoint_between_them_end_nothing(self) -> None:
        waiting = queue(1, 2, DENSE)
        for number in range(1, 31):
            start(waiting)
            saved = {"checkpoint_samples": 20.0 * number, "checkpoint_unix_seconds": 1e9 + number}
            waiting.progressed(DENSE, {"samples": 20.0 * number + 8, "workers": 1.0} | saved)
            waiting.failed(DENSE, "launcher lost", 1.0, again=True)
        assert states(waiting) == {"dense": "waiting"}
        start(waiting)
        waiting.failed(DENSE, "launcher lost", 1.0, again=True)
        assert states(waiting) == {"dense": "failed"}, "the 31st made no progress since the 30th, the second such loss"

    def test_waiting_for_machines_is_no_failure_and_changes_the_market_each_time(self) -> None:
        waiting = queue(1, 1, DENSE)
        for number in range(1, 8):
            start(waiting)
            waiting.waited(DENSE, 600.0)
            status = waiting.statuses["dense"]
            assert (status.state, status.on_demand) == ("waiting", number % 2 == 1)
        assert (status.launches, status.interruptions, status.seconds) == (7, 0, 4200.0)

    def test_a_run_that_waited_after_a_loss_keeps_its_checkpoint_and_the_reason_of_the_loss(self) -> None:
        waiting = queue(1, 1, DENSE)
        start(waiting)
        figures = {"samples": 200.0, "loss": 1.5, "samples_per_second": 50.0, "workers": 2.0}
        waiting.progressed(DENSE, figures | {"checkpoint_samples": 160.0, "checkpoint_unix_seconds": 1e9})
        waiting.interrupted(DENSE, "worker 0: its machine was preempted")
        waiting.waited(DENSE, 600.0)
        status = waiting.statuses["dense"]
        assert (status.samples_seen, status.checkpoint_samples, status.workers) == (160, 160, None)
        assert (status.interruptions, status.interrupted_by) == (1, "worker 0: its machine was preempted")

    def test_one_that_recovers_keeps_its_launches_and_the_reason_of_the_loss(self) -> None:
        waiting = queue(1, 3, DENSE)
        start(waiting)
        waiting.failed(DENSE, "launcher lost", 1.0, again=True)
        assert states(waiting) == {"dense": "waiting"}
        start(waiting)
        waiting.finished(DENSE, 2.0)
        assert waiting.statuses["dense"] == TrialStatus(
            trial="dense",
            state="finished",
            samples=800,
            launches=2,
            seconds=3.0,
            samples_seen=800,
            interruptions=1,
            interrupted_by="launcher lost",
        )

    def test_lost_workers_take_their_figures_with_them_and_leave_rays_reason(self) -> None:
        waiting = queue(1, 2, DENSE)
        start(waiting)
        figures = {"samples": 200.0, "loss": 1.5, "samples_per_second": 50.0, "workers": 2.0}
        waiting.progressed(DENSE, figures | {"checkpoint_samples": 160.0, "checkpoint_unix_seconds": 1e9})
        waiting.interrupted(DENSE, "worker 0: out of memory")
        assert waiting.statuses["dense"] == TrialStatus(
            trial="dense",
            state="running",
            samples=800,
            launches=1,
            samples_seen=160,
            checkpoint_samples=160,
            checkpoint_unix_seconds=1e9,
            interruptions=1,
            interrupted_by="worker 0: out of memory",
        )

    def test_runs_wait_again_if_the_driver_is_stopped(self) -> None:
        waiting = queue(2)
        start(waiting)
        waiting.finished(DENSE, 1.0)
        waiting.progressed(SEED, {"samples": 200.0, "loss": 1.5, "samples_per_second": 50.0, "workers": 2.0})
        waiting.stopped()
        assert states(waiting)["dense"] == "finished"
        seed = waiting.statuses["seed"]
        assert (seed.state, seed.samples_seen, seed.eta_seconds, seed.loss) == ("waiting", 0, None, None)

    def test_a_running_one_shows_its_newest_figures_and_the_time_left(self) -> None:
        waiting = queue(1, 2, DENSE)
        start(waiting)
        figures = {"samples": 200.0, "loss": 1.5, "samples_per_second": 50.0, "workers": 2.0}
        waiting.progressed(DENSE, figures | {"checkpoint_samples": 160.0, "checkpoint_unix_seconds": 1e9})
        status = waiting.statuses["dense"]
        assert (status.samples_seen, status.loss, status.samples_per_second) == (200, 1.5, 50.0)
        assert status.workers == 2
        assert (status.eta_seconds, status.checkpoint_samples, status.checkpoint_unix_seconds) == (12.0, 160, 1e9)
        waiting.failed(DENSE, "launcher lost", 1.0, again=True)
        assert waiting.statuses["dense"].eta_seconds is None
        assert waiting.statuses["dense"].samples_seen == 160, "it resumes from its checkpoint"

    def test_after_a_restart_its_last_checkpoint_is_known_until_it_writes_another(self) -> None:
        waiting = queue(1, 2, DENSE)
        start(waiting)
        figures = {"samples": 200.0, "workers": 1.0}
        waiting.progressed(DENSE, figures | {"checkpoint_samples": 160.0, "checkpoint_unix_seconds": 1e9})
        waiting.progressed(DENSE, figures | {"samples": 168.0})
        status = waiting.statuses["dense"]
        assert (status.samples_seen, status.checkpoint_samples, status.checkpoint_unix_seconds) == (168, 160, 1e9)

    def test_before_the_first_logged_point_only_the_samples_are_known(self) -> None:
        waiting = queue(1, 2, DENSE)
        start(waiting)
        waiting.progressed(DENSE, {"samples": 8.0, "workers": 1.0})
        status = waiting.statuses["dense"]
        assert (status.samples_seen, status.loss, status.eta_seconds, status.checkpoint_samples) == (
            8,
            None,
            None,
            None,
        )

    def test_an_expert_that_fails_ends_alone(self) -> None:
        waiting = queue(4, 2, seed="finished", dense="finished")
        start(waiting)
        waiting.failed(EXPERTS[1], "the loss is nan", 1.0, again=False)
        waiting.finished(EXPERTS[0], 1.0)
        waiting.finished(EXPERTS[2], 1.0)
        assert [states(waiting)[one.name] for one in EXPERTS] == ["finished", "failed", "finished"]

    def test_a_failed_seed_fails_its_children_and_no_other_trial(self) -> None:
        waiting = queue(2)
        start(waiting)
        waiting.failed(SEED, "the loss is nan", 1.0, again=False)
        assert states(waiting)["dense"] == "running"
        for one in EXPERTS:
            status = waiting.statuses[one.name]
            assert (status.state, status.reason, status.launches) == ("failed", "seed failed", 0)
        waiting.finished(DENSE, 1.0)
        assert not waiting.unfinished()

    def test_children_of_a_seed_that_is_launched_again_keep_waiting(self) -> None:
        waiting = queue(1)
        start(waiting)
        waiting.failed(SEED, "launcher lost", 1.0, again=True)
        assert {states(waiting)[one.name] for one in EXPERTS} == {"waiting"}
        assert waiting.startable() == [SEED]


class TestAfterACrash:
    @pytest.fixture
    def experts(self, tmp_path: Path) -> Location:
        return Location.parse(str(tmp_path / "experts"))

    def write(self, experts: Location, status: TrialStatus) -> None:
        (experts / status.trial / STATUS_FILE).write_text(json.dumps(dataclasses.asdict(status)))

    def test_without_a_status_file_a_trial_waits(self, experts: Location) -> None:
        assert read_status(experts / "seed") is None
        assert initial_statuses([SEED], experts) == {
            "seed": TrialStatus(trial="seed", state="waiting", samples=800),
        }

    def test_finished_stays_finished(self, experts: Location) -> None:
        finished = TrialStatus(trial="seed", state="finished", samples=800, launches=1, seconds=9.0)
        self.write(experts, finished)
        assert initial_statuses([SEED], experts)["seed"] == finished

    @pytest.mark.parametrize("state", ["running", "failed", "waiting"])
    def test_all_else_waits_again_and_keeps_its_past(self, experts: Location, state: str) -> None:
        self.write(
            experts,
            TrialStatus(
                trial="n3/00",
                state=state,  # type: ignore[arg-type]
                samples=800,
                launches=2,
                seconds=9.0,
                reason="lost",
                on_demand=True,
            ),
        )
        again = initial_statuses([EXPERTS[0]], experts)["n3/00"]  # spot machines first again
        assert again == TrialStatus(trial="n3/00", state="waiting", samples=800, launches=2, seconds=9.0)

    def test_the_launch_budget_is_of_this_invocation(self, experts: Location) -> None:
        self.write(experts, TrialStatus(trial="dense", state="failed", samples=800, launches=7, reason="lost"))
        waiting = TrialQueue([DENSE], initial_statuses([DENSE], experts), concurrent=1, max_launches=2)
        start(waiting)
        waiting.failed(DENSE, "lost", 1.0, again=True)
        assert states(waiting) == {"dense": "waiting"}
        assert waiting.statuses["dense"].launches == 8
