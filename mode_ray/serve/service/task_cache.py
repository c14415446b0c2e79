"""The tasks used last, in memory: their weights and every expert's class embeddings."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mode_ray.serve.service.expert_client import ExpertDescription
from mode_ray.serve.service.task_routing import RoutedTask

Classifier = npt.NDArray[np.float32]
_Key = tuple[int, str]  # an expert's id, and the source of its weights


@dataclass(eq=False)
class CachedTask:
    """A task and what was computed for it so far.

    Attributes:
        routed: The task with its weights.
        classifiers: Class embeddings, finished or running. An expert has one entry, for its newest weights.
    """

    routed: RoutedTask
    classifiers: "dict[_Key, asyncio.Task[Classifier]]" = field(default_factory=dict)

    async def classifier(
        self, expert: int, description: ExpertDescription, compute: Callable[[], Coroutine[Any, Any, Classifier]]
    ) -> Classifier:
        """An expert's class embeddings [l, d], computed once for all requests that need them.

        The computation continues when the request that started it is cancelled, for later requests.
        """
        key = (expert, description.source)
        running = self.classifiers.get(key)
        if running is None:
            for old in [known for known in self.classifiers if known[0] == expert]:
                del self.classifiers[old]
            running = asyncio.get_running_loop().create_task(compute())
            self.classifiers[key] = running
            running.add_done_callback(lambda done: self._forget_failed(key, done))
        return await asyncio.shield(running)

    @property
    def size_bytes(self) -> int:
        """Size of the finished class embeddings."""
        return sum(task.result().nbytes for task in self.classifiers.values() if _succeeded(task))

    def _forget_failed(self, key: _Key, done: "asyncio.Task[Classifier]") -> None:
        if not _succeeded(done) and self.classifiers.get(key) is done:
            del self.classifiers[key]


class TaskCache:
    """A cache of tasks, bounded in number and in bytes. It drops the task that was not used for longest.

    Args:
        most_tasks: Maximal number of tasks.
        most_bytes: Maximal size of all class embeddings. The task used last is kept whatever its size.
    """

    def __init__(self, most_tasks: int, most_bytes: int) -> None:
        self._most_tasks = most_tasks
        self._most_bytes = most_bytes
        self._tasks: OrderedDict[str, CachedTask] = OrderedDict()

    def __len__(self) -> int:
        return len(self._tasks)

    def get(self, task_id: str) -> CachedTask | None:
        """A task by its id; it becomes the task used last."""
        found = self._tasks.get(task_id)
        if found is not None:
            self._tasks.move_to_end(task_id)
        return found

    def put(self, routed: RoutedTask) -> CachedTask:
        """Add a task, or return the cached one."""
        task = self._tasks.setdefault(routed.definition.id, CachedTask(routed))
        self._tasks.move_to_end(routed.definition.id)
        self.shrink()
        return task

    def shrink(self) -> None:
        """Drop tasks until the bounds hold."""
        sizes = {task_id: task.size_bytes for task_id, task in self._tasks.items()}
        total = sum(sizes.values())
        while len(self._tasks) > 1 and (len(self._tasks) > self._most_tasks or total > self._most_bytes):
            oldest, _ = self._tasks.popitem(last=False)
            total -= sizes[oldest]


def _succeeded(task: "asyncio.Task[Classifier]") -> bool:
    # Reading the exception marks it as retrieved, so that asyncio logs nothing: every waiter has received it.
    return task.done() and not task.cancelled() and task.exception() is None
