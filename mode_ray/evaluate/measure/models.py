"""Checks that the models of an evaluation are trained and complete, before anything is measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mode_ray.errors import DataError, UsageError
from mode_ray.models.files import find_problem
from mode_ray.run_directory import MANIFEST
from mode_ray.storage import Location
from mode_ray.train.plan import Trial, expert_name
from mode_ray.train.runs.status import TrialStatus, stored_statuses
from mode_ray.train.runs.trial import planned_trials_of, training_summary


@dataclass(frozen=True, eq=False)
class Trained:
    """The output of a train stage that is evaluated.

    Attributes:
        trials: The training runs as they were trained, without those of left-out experts. Reused runs may have other
            budgets than this run plans.
        pairs_n: Number of pairs of every expert.
    """

    trials: Sequence[Trial]
    pairs_n: np.ndarray


def find_trained(n: int, left_out: Sequence[int], directory: Location) -> Trained:
    """The trials to evaluate. All must be finished, except those of left-out experts.

    Raises:
        UsageError: A left-out expert does not exist, or a trial is not finished; the message says how to continue.
    """
    unknown = [expert for expert in left_out if not 0 <= expert < n]
    if unknown or len(set(left_out)) >= n:
        raise UsageError(
            f"evaluate.leave_out_experts={list(left_out)}: the experts are 0 to {n - 1}, and at least one must remain"
        )
    summary = training_summary(directory)
    if summary is None:
        raise UsageError(f"{directory}: the train stage is not done: run `mode-ray train` first")
    gone = {expert_name(n, expert) for expert in left_out}
    trials = [trial for trial in planned_trials_of(summary) if trial.name not in gone]
    if not (directory / MANIFEST).exists():
        statuses = stored_statuses(trials, directory).values()
        unfinished = [status for status in statuses if status.state != "finished"]
        if unfinished:
            raise UsageError(_not_trained(n, left_out, directory, unfinished))
    return Trained(trials, np.array(summary["pairs_by_expert"]))


def _not_trained(n: int, left_out: Sequence[int], directory: Location, unfinished: Sequence[TrialStatus]) -> str:
    first = unfinished[0]
    reason = "" if first.reason is None else f" ({first.reason})"
    others = "" if len(unfinished) == 1 else f", and {len(unfinished) - 1} more are not finished"
    text = (
        f"{directory / first.trial}: {first.state}{reason}{others}: the train stage is not done: run `mode-ray train`"
    )
    numbers = {expert_name(n, expert): expert for expert in range(n)}
    failed = [numbers.get(status.trial) for status in unfinished if status.state == "failed"]
    without = sorted({*left_out, *(number for number in failed if number is not None)})
    if None in failed or len(failed) < len(unfinished) or len(without) >= n:
        return f"{text} first"
    return f"{text}, or evaluate without the failed experts: evaluate.leave_out_experts={without}"


def check_models(n: int, models: Mapping[str, Location]) -> None:
    """Check the files of every model without loading them.

    Raises:
        DataError: A file is missing or incomplete; the message names it and says how to continue without the expert.
    """
    experts = {expert_name(n, expert): expert for expert in range(n)}
    for name, folder in models.items():
        problem = find_problem(folder)
        if problem is None:
            continue
        fix = "copy or train it again (`mode-ray train retry`)"
        if name in experts:
            fix += f", or leave it out: evaluate.leave_out_experts=[{experts[name]}]"
        raise DataError(f"{problem}: {fix}")
