"""Decides which training run starts next and whether a failed one is launched again, without Ray, files or a clock.

`scheduler` and the simulated fleet of `benchmarks/fleet.py` apply these decisions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mode_ray.train.plan import Trial
from mode_ray.train.runs.failure_budget import FailureBudget
from mode_ray.train.runs.status import TrialStatus, at_checkpoint, interrupted, waiting_again, with_progress


@dataclass
class TrialQueue:
    """Decides which trial starts next.

    Attributes:
        trials: All trials, in order of priority.
        statuses: Statuses by trial name; finished trials are not started again.
        concurrent: Maximum number of trials at the same time.
        max_launches: Maximum number of launches of one trial in this invocation without a newer checkpoint.
    """

    trials: Sequence[Trial]
    statuses: dict[str, TrialStatus]
    concurrent: int
    max_launches: int
    _budgets: dict[str, FailureBudget] = field(default_factory=dict)

    def startable(self) -> list[Trial]:
        """Trials to start now: the first waiting ones whose parent is finished, up to the free slots."""
        running = sum(status.state == "running" for status in self.statuses.values())
        ready = [trial for trial in self.trials if self._is_ready(trial)]
        return ready[: max(0, self.concurrent - running)]

    def _is_ready(self, trial: Trial) -> bool:
        parent = trial.parent
        waits_for_parent = parent is not None and self.statuses[parent].state != "finished"
        return self.statuses[trial.name].state == "waiting" and not waits_for_parent

    def started(self, trial: Trial) -> None:
        """Note that a trial's launcher was started."""
        status = self.statuses[trial.name]
        checkpoint = status.checkpoint_samples or 0
        self._budgets.setdefault(trial.name, FailureBudget(self.max_launches - 1, checkpoint))
        self._set(trial, state="running", launches=status.launches + 1)

    def progressed(self, trial: Trial, progress: Mapping[str, float]) -> None:
        """Note new figures of a running trial."""
        self.statuses[trial.name] = with_progress(self.statuses[trial.name], progress)

    def interrupted(self, trial: Trial, reason: str) -> None:
        """Note that Ray lost the workers of a running trial, which it replaces."""
        self.statuses[trial.name] = interrupted(self.statuses[trial.name], reason)

    def stopped(self) -> None:
        """Note that this invocation ends before its trials: the running ones wait again."""
        for name, status in self.statuses.items():
            if status.state == "running":
                self.statuses[name] = waiting_again(status)

    def finished(self, trial: Trial, seconds: float) -> None:
        """Note that a trial finished."""
        spent = self.statuses[trial.name].seconds + seconds
        self._set(trial, state="finished", seconds=spent, samples_seen=trial.samples, eta_seconds=None)

    def waited(self, trial: Trial, seconds: float) -> None:
        """Note that no machine came in time: the next launch requests the other market. It is not a failure."""
        status = at_checkpoint(self.statuses[trial.name])
        self.statuses[trial.name] = replace(
            status, state="waiting", seconds=status.seconds + seconds, on_demand=not status.on_demand
        )

    def failed(self, trial: Trial, reason: str, seconds: float, *, again: bool) -> None:
        """Note that a launch failed; `again` if another one may succeed. The children of a failed trial fail too."""
        status = self.statuses[trial.name]
        spent = status.seconds + seconds
        if again and self._budgets[trial.name].failed(status.checkpoint_samples or 0):
            self.interrupted(trial, reason)
            self._set(trial, state="waiting", seconds=spent)
            return
        # The loop's messages begin with the trial's name, which lists of runs show anyway.
        reason = reason.removeprefix(f"{trial.name}: ")
        self._set(trial, state="failed", reason=reason, seconds=spent, eta_seconds=None)
        for child in self.trials:
            if child.parent == trial.name and self.statuses[child.name].state == "waiting":
                self._set(child, state="failed", reason=f"{trial.name} failed")

    def unfinished(self) -> bool:
        """Whether any trial waits or runs."""
        return any(status.state in ("waiting", "running") for status in self.statuses.values())

    def _set(self, trial: Trial, **changes: Any) -> None:  # noqa: ANN401 - fields of TrialStatus
        self.statuses[trial.name] = replace(self.statuses[trial.name], **changes)
