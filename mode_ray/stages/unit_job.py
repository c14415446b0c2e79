"""The work of one process on units: the same in an actor of a pool and in a task.

Results leave the process as JSON: a record, or a failure that the driver raises. Failures are values, not exceptions,
because Ray treats an exception like a lost task.
"""

import json
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mode_ray.config.base import ActorPool
from mode_ray.errors import ModeRayError, WorkerError
from mode_ray.stages.actor import UnitActor, UnitWorker
from mode_ray.stages.manifest import UnitRecord
from mode_ray.stages.work_unit import WorkUnit
from mode_ray.storage import Location

_REASON_CHARACTERS = 300


@dataclass(frozen=True)
class UnitJob:
    """What processes need to work on the units of a stage's invocation.

    Attributes:
        worker: Makes the worker, in each process.
        arguments: Its arguments.
        directory: Where the outputs are written.
        attempt: Name of the stage's invocation.
        pool: Resources of a process, and retries.
        name: Name in Ray's dashboard.
    """

    worker: Callable[..., UnitWorker]
    arguments: Sequence[Any]
    directory: Location
    attempt: str
    pool: ActorPool
    name: str


@dataclass(frozen=True)
class UnitResult:
    """A record or a failure, as JSON."""

    record: str | None = None
    failure: str | None = None

    def of_driver(self) -> UnitRecord:
        """The record.

        Raises:
            ModeRayError: The worker raised it.
            RuntimeError: A defect, with its traceback and the source file.
        """
        if self.failure is not None:
            raise _failure_from_json(self.failure)
        return UnitRecord.from_json(str(self.record))


class UnitRunner:
    """Makes the worker of a job in this process, and works on units."""

    def __init__(self, job: UnitJob) -> None:
        self._actor: UnitActor | None = None
        self._failure = ""
        try:
            self._actor = UnitActor(job.worker(*job.arguments), job.directory, job.attempt, job.pool.retries_per_unit)
        except Exception as error:  # noqa: BLE001 - the driver raises it
            self._failure = _failure_to_json(error)

    def run(self, work_units: Sequence[WorkUnit]) -> Iterator[UnitResult]:
        """Yield a record for each unit, or a failure instead of the remaining ones."""
        if self._actor is None:
            yield UnitResult(failure=self._failure)
            return
        try:
            for record in self._actor.process(work_units):
                yield UnitResult(record=record.to_json())
        except Exception as error:  # noqa: BLE001 - the driver raises it
            yield UnitResult(failure=_failure_to_json(error))


def death_at_start(error: Exception) -> WorkerError:
    """What the driver raises if processes end before they have a worker.

    Args:
        error: Ray's reason.
    """
    reason = " ".join(str(error).split())[:_REASON_CHARACTERS]
    return WorkerError(
        f"worker processes die while they start ({reason}): give each more memory, or run fewer on a machine"
    )


def _failure_to_json(error: Exception) -> str:
    if isinstance(error, ModeRayError):
        message = " ".join([str(error), *(f"({note})" for note in getattr(error, "__notes__", ()))])
        return json.dumps({"kind": type(error).__name__, "message": message})
    return json.dumps({"kind": "", "message": "".join(traceback.format_exception(error))})


def _failure_from_json(text: str) -> Exception:
    failure = json.loads(text)
    kinds = {kind.__name__: kind for kind in ModeRayError.__subclasses__()}
    if failure["kind"] in kinds:
        return kinds[failure["kind"]](failure["message"])
    return RuntimeError(f"in a worker:\n{failure['message']}")
