"""A simulated fleet for `fleet.py`: GPUs on spot machines, and what runs on them, by a clock that nobody waits for."""

import heapq
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from mode_ray.config.train import TrainConfig
from mode_ray.deploy.values import SPOT_TIMEOUT_SECONDS
from mode_ray.stages.work_unit import WorkUnit
from mode_ray.storage import Location
from mode_ray.train.plan import Trial
from mode_ray.train.runs.failure_budget import FailureBudget
from mode_ray.train.runs.queue import TrialQueue
from mode_ray.train.runs.status import TrialStatus, initial_statuses

GPUS = 256
GPUS_PER_MACHINE = 8
MACHINES = GPUS // GPUS_PER_MACHINE
SPOT_LOSS_AN_HOUR = 0.05
REPLACEMENT_SECONDS = 300.0
# Share of losses after which the cloud has no spot machine: the pod or machine is requested on demand after a timeout.
NO_SPOT_SHARE = 0.1
RESTART_SECONDS = 60.0
SAMPLES_PER_SECOND = 332.0
GPUS_PER_RUN = 16
PROGRESS_SECONDS = 60.0


class EventClock:
    """Events in the order of their times; nothing sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def after(self, seconds: float, event: Callable[[], None]) -> None:
        """Let something happen so much later."""
        self._count += 1
        heapq.heappush(self._events, (self.now + seconds, self._count, event))

    def step(self) -> None:
        """Turn to the next event."""
        self.now, _, event = heapq.heappop(self._events)
        event()


@dataclass
class Bookkeeping:
    """Seconds of this machine that the real code took, by what it did."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def taking(self, what: str) -> Iterator[None]:
        """Count the time of a block."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - began

    @property
    def total(self) -> float:
        """All of it."""
        return sum(self.seconds.values())


@dataclass
class Machine:
    """A spot machine; its epoch tells results of before its loss from those of after."""

    number: int
    there: bool = True
    epoch: int = 0


class SpotMachines:
    """Machines that are lost at random and replaced a while later."""

    def __init__(self, clock: EventClock, seed: int) -> None:
        self.machines = [Machine(number) for number in range(MACHINES)]
        self.losses = 0
        self._clock = clock
        self._random = np.random.default_rng(seed)
        self._on_loss: Callable[[Machine, float], None] = lambda _machine, _seconds: None
        self._on_return: Callable[[Machine], None] = lambda _: None

    def begin(self, on_loss: Callable[[Machine, float], None], on_return: Callable[[Machine], None]) -> None:
        """Lose machines from now on. `on_loss` takes the seconds until the replacement."""
        self._on_loss, self._on_return = on_loss, on_return
        for machine in self.machines:
            self._plan_loss(machine)

    def _plan_loss(self, machine: Machine) -> None:
        self._clock.after(self._random.exponential(3600 / SPOT_LOSS_AN_HOUR), lambda: self._lose(machine))

    def _lose(self, machine: Machine) -> None:
        machine.there, machine.epoch, self.losses = False, machine.epoch + 1, self.losses + 1
        seconds = self._replacement_seconds()
        self._on_loss(machine, seconds)
        self._clock.after(seconds, lambda: self._return(machine))

    def _replacement_seconds(self) -> float:
        waits = self._random.random() < NO_SPOT_SHARE
        return REPLACEMENT_SECONDS + (SPOT_TIMEOUT_SECONDS if waits else 0.0)

    def _return(self, machine: Machine) -> None:
        machine.there = True
        self._on_return(machine)
        self._plan_loss(machine)


@dataclass
class Task:
    """Units that were handed out together."""

    work_units: Sequence[WorkUnit]
    losses: int = 0
    standing: int = 0


class ShardStageRun:
    """One round of tasks over the actors, one a GPU, as Ray Data runs them: the first idle actor takes the next.

    A lost task begins again at its first unit without an output, as often as the pool's retries allow.
    """

    def __init__(
        self, tasks: Iterator[Task], retries: int, unit_seconds: float, on_task: Callable[[Task], None]
    ) -> None:
        self.clock = EventClock()
        self.spot = SpotMachines(self.clock, seed=1)
        self.useful_seconds = self.busy_until_empty = 0.0
        self.empty_at: float | None = None
        self._tasks = tasks
        self._again: deque[Task] = deque()
        self._retries = retries
        self._unit_seconds = unit_seconds
        self._on_task = on_task
        self._running: dict[tuple[int, int], tuple[Task, float]] = {}

    def run(self) -> None:
        """Until every task has ended or was lost too often."""
        self.spot.begin(self._lost, self._returned)
        for machine in self.spot.machines:
            self._returned(machine)
        while self._running or self._again:
            self.clock.step()

    @property
    def utilisation(self) -> float:
        """Share of all GPUs' time, machines that are being replaced included, that went into units that stand."""
        return self.busy_until_empty / (GPUS * self.empty_at) if self.empty_at else 1.0

    def _returned(self, machine: Machine) -> None:
        for slot in range(GPUS_PER_MACHINE):
            self._hand_out(machine, slot)

    def _hand_out(self, machine: Machine, slot: int) -> None:
        task = self._again.popleft() if self._again else next(self._tasks, None)
        if task is None:
            if self.empty_at is None:
                under_way = sum(self.clock.now - began for _, began in self._running.values())
                self.empty_at, self.busy_until_empty = self.clock.now, self.useful_seconds + under_way
            return
        self._running[machine.number, slot] = (task, self.clock.now)
        epoch, left = machine.epoch, len(task.work_units) - task.standing
        self.clock.after(left * self._unit_seconds, lambda: self._ended(machine, slot, epoch))

    def _ended(self, machine: Machine, slot: int, epoch: int) -> None:
        if machine.epoch != epoch:
            return  # the machine was lost in between
        task, _ = self._running.pop((machine.number, slot))
        self.useful_seconds += (len(task.work_units) - task.standing) * self._unit_seconds
        self._on_task(task)
        self._hand_out(machine, slot)

    def _lost(self, machine: Machine, _seconds: float) -> None:
        for slot in range(GPUS_PER_MACHINE):
            found = self._running.pop((machine.number, slot), None)
            if found is None:
                continue
            task, began = found
            made = int((self.clock.now - began) / self._unit_seconds)
            self.useful_seconds += made * self._unit_seconds
            task.standing, task.losses = task.standing + made, task.losses + 1
            if task.losses <= self._retries:
                self._again.append(task)


def tasks_of(work_units: Sequence[WorkUnit], units: int) -> Iterator[Task]:
    """Shards in tasks of so many."""
    return (Task(work_units[start : start + units]) for start in range(0, len(work_units), units))


@dataclass
class TrialRun:
    """A launch under way: whole machines, samples of its newest checkpoint, and since when it trains (or will)."""

    trial: Trial
    began: float
    checkpointed: float
    trains_from: float
    budget: FailureBudget
    epoch: int = 0


class TrainingRun:
    """All experts under the real queue and budgets: 16 GPUs a run, checkpoints every ten minutes, no notice of losses.

    One launcher is lost as well, an hour after the start: the queue launches that run again.
    """

    def __init__(self, config: TrainConfig, trials: Sequence[Trial], directory: Location, book: Bookkeeping) -> None:
        placement = config.placement
        self.clock = EventClock()
        self.spot = SpotMachines(self.clock, seed=2)
        self.queue = TrialQueue(
            trials, initial_statuses(trials, directory), placement.concurrent_runs, placement.max_launches
        )
        self.useful_samples = self.useful_until_empty = 0.0
        self.empty_at: float | None = None
        self._interval = placement.checkpoint_interval_seconds
        self._max_failures = placement.max_failures
        self._rate = SAMPLES_PER_SECOND * GPUS_PER_RUN
        self._book = book
        self._runs: dict[int, TrialRun] = {}

    def run(self) -> dict[str, TrialStatus]:
        """Until no run waits or trains."""
        self.spot.begin(self._lost, lambda _: None)
        self.clock.after(3600.0, self._lose_a_launcher)
        self.clock.after(PROGRESS_SECONDS, self._look)
        self._start()
        while self.queue.unfinished():
            self.clock.step()
        return self.queue.statuses

    @property
    def utilisation(self) -> float:
        """Share of all GPUs' time, until no run waits, that went into samples which count."""
        return self.useful_until_empty / (SAMPLES_PER_SECOND * GPUS * self.empty_at) if self.empty_at else 1.0

    def _start(self) -> None:
        with self._book.taking("scheduler"):
            for trial in self.queue.startable():
                self.queue.started(trial)
                slot = next(number for number in range(GPUS // GPUS_PER_RUN) if number not in self._runs)
                seen = float(self.queue.statuses[trial.name].checkpoint_samples or 0)
                budget = FailureBudget(self._max_failures)
                self._runs[slot] = TrialRun(trial, self.clock.now, seen, self.clock.now + RESTART_SECONDS, budget)
                self._plan_end(slot)
        waiting = any(status.state == "waiting" for status in self.queue.statuses.values())
        if not waiting and self.empty_at is None:
            self.empty_at = self.clock.now
            statuses = self.queue.statuses.values()
            finished = sum(status.samples for status in statuses if status.state == "finished")
            self.useful_until_empty = finished + sum(self._seen(run) for run in self._runs.values())

    def _plan_end(self, slot: int) -> None:
        run = self._runs[slot]
        left = run.trial.samples - run.checkpointed
        epoch = run.epoch
        self.clock.after(run.trains_from - self.clock.now + left / self._rate, lambda: self._ended(slot, run, epoch))

    def _ended(self, slot: int, run: TrialRun, epoch: int) -> None:
        if self._runs.get(slot) is not run or run.epoch != epoch:
            return
        del self._runs[slot]
        with self._book.taking("scheduler"):
            self.queue.finished(run.trial, self.clock.now - run.began)
        self._start()

    def _seen(self, run: TrialRun) -> float:
        return run.checkpointed + max(0.0, self.clock.now - run.trains_from) * self._rate

    def _checkpoint(self, run: TrialRun) -> float:
        """Samples of the newest checkpoint: what was trained since is done again."""
        whole = max(0.0, self.clock.now - run.trains_from) // self._interval
        return run.checkpointed + whole * self._interval * self._rate

    def _lost(self, machine: Machine, seconds: float) -> None:
        slot = machine.number * GPUS_PER_MACHINE // GPUS_PER_RUN
        run = self._runs.get(slot)
        if run is None:
            return
        run.checkpointed = self._checkpoint(run)
        if not run.budget.failed(int(run.checkpointed)):
            del self._runs[slot]
            with self._book.taking("scheduler"):
                self.queue.failed(run.trial, "failures without progress", self.clock.now - run.began, again=False)
            self._start()
            return
        run.trains_from = self.clock.now + seconds + RESTART_SECONDS
        run.epoch += 1
        self._plan_end(slot)

    def _lose_a_launcher(self) -> None:
        slot, run = next(iter(self._runs.items()))
        del self._runs[slot]
        with self._book.taking("scheduler"):
            self._progressed(run)
            self.queue.failed(run.trial, "launcher lost", self.clock.now - run.began, again=True)
        self._start()

    def _look(self) -> None:
        with self._book.taking("scheduler"):
            for run in self._runs.values():
                self._progressed(run)
        self.clock.after(PROGRESS_SECONDS, self._look)

    def _progressed(self, run: TrialRun) -> None:
        figures = {
            "samples": self._seen(run),
            "workers": float(GPUS_PER_RUN),
            "samples_per_second": self._rate,
            "loss": 1.0,
            "checkpoint_samples": self._checkpoint(run),
            "checkpoint_unix_seconds": self.clock.now,
        }
        self.queue.progressed(run.trial, figures)
