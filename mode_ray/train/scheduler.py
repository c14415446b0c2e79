"""The asynchronous scheduler: which training run starts when, what a failure costs, and what the status files say.

`TrialQueue` decides, without Ray; `run_trials` carries it out with one zero-CPU launcher task a trial. Experts never
wait for one another, and one that fails for good ends alone.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import ray
from ray.train import CheckpointConfig, FailureConfig, ScalingConfig
from ray.train import RunConfig as TrainRunConfig
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mode_ray.settings import config_hash, fingerprint_fields
from mode_ray.storage import Location
from mode_ray.train.budget import Trial
from mode_ray.train.trial import ERROR_FILE, TrialJob, read_error
from mode_ray.train_config import TrainPlacement

STATUS_FILE = "status.json"
CHECKPOINT_FOLDER = "checkpoints"
_CHECKPOINTS_KEPT = 2
_POLL_SECONDS = 1.0

TrialState = Literal["waiting", "running", "finished", "failed"]


@dataclass(frozen=True, kw_only=True)
class TrialStatus:
    """How a trial stands; `status.json` in its directory.

    Attributes:
        trial: Its name.
        state: waiting, running, finished or failed.
        samples: Samples it is to see.
        launches: How often it was started.
        seconds: Wall time of its launches that have ended.
        reason: Why it failed.
        taken_from: The folder that it was taken over from, as it was.
    """

    trial: str
    state: TrialState
    samples: int
    launches: int = 0
    seconds: float = 0.0
    reason: str | None = None
    taken_from: str | None = None


@dataclass
class TrialQueue:
    """Decides which trial starts next.

    Attributes:
        trials: In order of priority.
        statuses: By trial name; a finished one is not started again.
        concurrent: Trials at the same time.
        max_launches: Launches of one trial before it counts as failed.
    """

    trials: Sequence[Trial]
    statuses: dict[str, TrialStatus]
    concurrent: int
    max_launches: int
    _launches_here: dict[str, int] = field(default_factory=dict)

    def startable(self) -> list[Trial]:
        """Trials to start now: the first waiting ones whose parent is finished, as many as there is room for."""
        running = sum(status.state == "running" for status in self.statuses.values())
        ready = [trial for trial in self.trials if self._is_ready(trial)]
        return ready[: max(0, self.concurrent - running)]

    def _is_ready(self, trial: Trial) -> bool:
        parent = trial.parent
        waits_for_parent = parent is not None and self.statuses[parent].state != "finished"
        return self.statuses[trial.name].state == "waiting" and not waits_for_parent

    def started(self, trial: Trial) -> None:
        """A launcher was started."""
        status = self.statuses[trial.name]
        self._launches_here[trial.name] = self._launches_here.get(trial.name, 0) + 1
        self._set(trial, state="running", launches=status.launches + 1)

    def finished(self, trial: Trial, seconds: float) -> None:
        """The run ended well."""
        self._set(trial, state="finished", seconds=self.statuses[trial.name].seconds + seconds)

    def failed(self, trial: Trial, reason: str, seconds: float, *, again: bool) -> None:
        """The run ended badly; `again` where another launch may help. Trials that build on it fail with it."""
        spent = self.statuses[trial.name].seconds + seconds
        if again and self._launches_here[trial.name] < self.max_launches:
            self._set(trial, state="waiting", seconds=spent)
            return
        self._set(trial, state="failed", reason=reason, seconds=spent)
        for child in self.trials:
            if child.parent == trial.name and self.statuses[child.name].state == "waiting":
                self._set(child, state="failed", reason=f"{trial.name} failed")

    def unfinished(self) -> bool:
        """Whether any trial waits or runs."""
        return any(status.state in ("waiting", "running") for status in self.statuses.values())

    def _set(self, trial: Trial, **changes: Any) -> None:  # noqa: ANN401 - fields of TrialStatus
        self.statuses[trial.name] = replace(self.statuses[trial.name], **changes)


def read_status(folder: Location) -> TrialStatus | None:
    """The status file of a trial's directory, or None."""
    location = folder / STATUS_FILE
    return TrialStatus(**json.loads(location.read_text())) if location.exists() else None


def initial_statuses(trials: Sequence[Trial], experts: Location) -> dict[str, TrialStatus]:
    """Statuses at the start of an invocation: finished trials stay so, all others wait (again)."""
    statuses = {}
    for trial in trials:
        status = read_status(experts / trial.name) or TrialStatus(
            trial=trial.name, state="waiting", samples=trial.samples
        )
        statuses[trial.name] = status if status.state == "finished" else replace(status, state="waiting", reason=None)
    return statuses


def run_trials(
    jobs: Mapping[str, TrialJob],
    queue: TrialQueue,
    placement: TrainPlacement,
    on_change: Callable[[Mapping[str, TrialStatus]], None],
) -> dict[str, TrialStatus]:
    """Run all trials of a queue; returns when none waits or runs.

    Args:
        jobs: By trial name.
        queue: The trials, with the statuses to begin with.
        placement: Resources of the runs.
        on_change: Called once a second with all statuses.
    """
    launchers: dict[ray.ObjectRef[Any], tuple[Trial, float]] = {}
    written: dict[str, TrialStatus] = {}
    while queue.unfinished():
        for trial in queue.startable():
            queue.started(trial)
            launchers[launch(jobs[trial.name], placement)] = (trial, time.monotonic())
        _write_changed(jobs, queue.statuses, written)
        on_change(queue.statuses)
        ready, _ = ray.wait(list(launchers), num_returns=1, timeout=_POLL_SECONDS)
        for reference in ready:
            trial, began = launchers.pop(reference)
            seconds = round(time.monotonic() - began, 3)
            try:
                end: TrialEnd = ray.get(reference)
            except ray.exceptions.RayError as error:
                end = TrialEnd(f"launcher lost: {type(error).__name__}", again=True)
            if end.reason is None:
                queue.finished(trial, seconds)
                # Only when the status file says so too: a driver that dies in between would train it all again.
                _write_changed(jobs, queue.statuses, written)
                (jobs[trial.name].folder / CHECKPOINT_FOLDER).delete()
            else:
                queue.failed(trial, end.reason, seconds, again=end.again)
    _write_changed(jobs, queue.statuses, written)
    on_change(queue.statuses)
    return queue.statuses


def _write_changed(
    jobs: Mapping[str, TrialJob], statuses: Mapping[str, TrialStatus], written: dict[str, TrialStatus]
) -> None:
    for name, status in statuses.items():
        if written.get(name) != status:
            (jobs[name].folder / STATUS_FILE).write_text(json.dumps(asdict(status), indent=1))
            written[name] = status


def launch(job: TrialJob, placement: TrainPlacement) -> "ray.ObjectRef[Any]":
    """Start the zero-CPU task that holds one trial's trainer."""
    options: dict[str, Any] = {"num_cpus": 0, "max_retries": 0, "name": f"train {job.trial.name}"}
    if placement.launcher_label_selector:
        options["label_selector"] = dict(placement.launcher_label_selector)
    else:
        node = ray.get_runtime_context().get_node_id()
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node, soft=True)
    reference: ray.ObjectRef[Any] = ray.remote(fit_trial).options(**options).remote(job)
    return reference


@dataclass(frozen=True)
class TrialEnd:
    """How one launch ended.

    Attributes:
        reason: None where the run finished, else what went wrong.
        again: Whether another launch may help: the controller was lost, not the run.
    """

    reason: str | None = None
    again: bool = False


def fit_trial(job: TrialJob) -> TrialEnd:
    """Run one trial's TorchTrainer to its end, going on from its newest checkpoint."""
    from ray.train.torch import TorchTrainer  # needs torch, which the driver has no use for

    placement = job.config.train.placement
    # The same name resumes, so whatever changes the outcome must be in it.
    versioned = config_hash({**fingerprint_fields(job.config.train, "train"), "trial": repr(job.trial)})
    storage = job.folder / CHECKPOINT_FOLDER
    trainer = TorchTrainer(
        _train,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(
            num_workers=placement.workers_per_run,
            use_gpu=placement.use_gpu,
            resources_per_worker={
                "CPU": placement.cpus_per_worker,
                **({"GPU": 1} if placement.use_gpu else {}),
            },
        ),
        run_config=TrainRunConfig(
            name=f"{job.trial.name.replace('/', '-')}-{versioned}",
            storage_path=storage.path,
            storage_filesystem=None if storage.is_local else storage.filesystem,
            failure_config=FailureConfig(max_failures=placement.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=_CHECKPOINTS_KEPT),
        ),
    )
    (job.folder / ERROR_FILE).delete()
    try:
        trainer.fit()
    except WorkerGroupError as error:
        causes = [f"worker {rank}: {_last_line(cause)}" for rank, cause in sorted(error.worker_failures.items())]
        return TrialEnd(read_error(job.folder) or "; ".join(causes) or _last_line(error))
    except TrainingFailedError as error:
        return TrialEnd(_last_line(error), again=True)
    return TrialEnd(read_error(job.folder))


def _train(settings: Mapping[str, Any]) -> None:
    """The worker's function, imported there alone: the trainer's own processes do without open_clip."""
    from mode_ray.train.worker import train_worker

    train_worker(settings)


def _last_line(error: BaseException) -> str:
    """What happened, without the stack trace that Ray puts before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
