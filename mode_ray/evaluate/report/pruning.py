"""The pruning curve over all tasks: scores with fewer experts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mode_ray.evaluate.report.schema import PruningRow


@dataclass(frozen=True, kw_only=True)
class PruningStep:
    """One point of the pruning curve, over all tasks.

    Attributes:
        keep: `top`: the experts with the largest weights. `share`: the fewest that cover a share of the weight.
        value: The number of experts, or the share.
        experts_run: Mean number of experts over tasks.
        score: Mean of the main metrics of the tasks.
        change: The score minus the score of all experts.
    """

    keep: Literal["top", "share"]
    value: float
    experts_run: float
    score: float
    change: float

    @property
    def name(self) -> str:
        """Name in a table."""
        return f"top {self.value:.0f}" if self.keep == "top" else f"{self.value:.0%} of the weight"


def pruning_steps(rows: Sequence[PruningRow]) -> list[PruningStep]:
    """The plain means over tasks, in the order of the first task. Points that a task lacks are left out."""
    tasks = {row["task"] for row in rows}
    by_way: dict[tuple[Literal["top", "share"], float], list[PruningRow]] = {}
    for row in rows:
        by_way.setdefault((row["keep"], row["value"]), []).append(row)
    whole = {way: found for way, found in by_way.items() if len(found) == len(tasks)}
    most = max((value for keep, value in whole if keep == "top"), default=None)
    if most is None:
        return []
    full = _mean([row["score"] for row in whole["top", most]])
    steps = []
    for (keep, value), found in whole.items():
        score = _mean([row["score"] for row in found])
        run = _mean([row["experts_run"] for row in found])
        steps.append(PruningStep(keep=keep, value=value, experts_run=run, score=score, change=score - full))
    return steps


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
