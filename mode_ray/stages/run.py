"""A run that was opened: its config, its input and its directories, as every stage takes them."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

from mode_ray.config.run import RunConfig
from mode_ray.run_directory import stage_directories
from mode_ray.stages.manifest import UnitRecord
from mode_ray.stages.work_unit import WorkUnit
from mode_ray.storage import Location

TrialStatuses = Mapping[str, Any]
"""The status of every training run, by its name."""


@dataclass(frozen=True)
class Run:
    """A run as the stages take it; `mode_ray.pipeline.open_run` makes it.

    Attributes:
        config: The run's config.
        work_units: The input as it was listed when the run was opened.
        directory: The run directory, absolute: tasks of Ray may have another working directory than the driver.
    """

    config: RunConfig
    work_units: Sequence[WorkUnit]
    directory: Location = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "directory", self.config.directory)

    @property
    def embeddings(self) -> Location:
        """Directory of the embed stage."""
        return self.stage_directory("embed")

    @property
    def clusters(self) -> Location:
        """Directory of the cluster stage."""
        return self.stage_directory("cluster")

    @property
    def assignments(self) -> Location:
        """Directory of the assign stage."""
        return self.stage_directory("assign")

    @property
    def features(self) -> Location:
        """Directory of the features stage; only some runs have it."""
        return self.stage_directory("features")

    @property
    def experts(self) -> Location:
        """Directory of the train stage."""
        return self.stage_directory("train")

    @property
    def evaluation(self) -> Location:
        """Directory of the evaluate stage."""
        return self.stage_directory("evaluate")

    def stage_directory(self, stage: str) -> Location:
        """Directory of a stage, by the stage's name."""
        return stage_directories(self.directory)[stage]

    @property
    def embeds_nothing(self) -> bool:
        """Whether the clustering is reused and `assign` encodes the captions itself: `embed` has nothing to do."""
        return self.config.reuses_clustering and self.config.embed.keep == "sample"


class StageReport(Protocol):
    """What a stage calls while it works; `mode_ray.observe.progress.Progress` prints and exports it."""

    def say(self, text: str) -> None:
        """A line for people."""
        ...

    def unit(self, record: UnitRecord) -> None:
        """A work unit is done, or quarantined."""
        ...

    def work(self, what: str, done: int, total: int) -> None:
        """Some lengthy work before the units is `done` of `total` steps far."""
        ...

    def iteration(self, report: Mapping[str, Any], most: int) -> None:
        """The fine clustering finished an iteration, of `most` at most."""
        ...

    def watching_trials(self) -> AbstractContextManager[Callable[[TrialStatuses], None]]:
        """Training begins; yields what takes the status of all runs, again and again."""
        ...

    def routing(self, entropy_by_task: Mapping[str, float]) -> None:
        """How even the weights of each evaluated task are."""
        ...


class Quiet:
    """A report that drops everything; the base of reports that want a part."""

    def say(self, text: str) -> None:
        """Drop it."""

    def unit(self, record: UnitRecord) -> None:
        """Drop it."""

    def work(self, what: str, done: int, total: int) -> None:
        """Drop it."""

    def iteration(self, report: Mapping[str, Any], most: int) -> None:
        """Drop it."""

    def watching_trials(self) -> AbstractContextManager[Callable[[TrialStatuses], None]]:
        """Drop what comes."""
        return nullcontext(lambda _: None)

    def routing(self, entropy_by_task: Mapping[str, float]) -> None:
        """Drop it."""
