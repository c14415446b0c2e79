"""Tasks that stay in memory: their weights and every expert's class embeddings, those used last."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from mode_ray.serve.service.expert_client import ExpertDescription
from mode_ray.serve.service.task_routing import RoutedTask

Classifier = npt.NDArray[np.float32]
_Key = tuple[int, str]  # an expert's id, and the source of its weights


@dataclass(eq=False)
class CachedTask:
    """A task with what was computed for it so far.

    Attributes:
        routed: Its weights.
        classifiers: Class embeddings, done or under way; those of other weights of an expert go when new ones come.
    """

    routed: RoutedTask
    classifiers: "dict[_Key, asyncio.Task[Classifier]]" = field(default_factory=dict)

    async def classifier(
        self, expert: int, description: ExpertDescription, compute: Callable[[], Awaitable[Classifier]]
    ) -> Classifier:
        """An expert's class embeddings [l, d], computed once however many requests wait for them.

        The computation goes on when a request that waits for it is given up: the next one finds it further on.
        """
        key = (expert, description.source)
        running = self.classifiers.get(key)
        if running is None:
            for old in [known for known in self.classifiers if known[0] == expert]:
                del self.classifiers[old]
            running = asyncio.ensure_future(_awaited(compute))
            self.classifiers[key] = running
            running.add_done_callback(lambda done: self._forget_failed(key, done))
        return await asyncio.shield(running)

    @property
    def size_bytes(self) -> int:
        """Of the class embeddings that are done."""
        return sum(task.result().nbytes for task in self.classifiers.values() if _succeeded(task))

    def _forget_failed(self, key: _Key, done: "asyncio.Task[Classifier]") -> None:
        if not _succeeded(done) and self.classifiers.get(key) is done:
            del self.classifiers[key]


class TaskCache:
    """Bounded in number and in bytes.

    Args:
        most_tasks: Tasks kept.
        most_bytes: Of their class embeddings together; the task used last stays whatever its size.
    """

    def __init__(self, most_tasks: int, most_bytes: int) -> None:
        self._most_tasks = most_tasks
        self._most_bytes = most_bytes
        self._tasks: OrderedDict[str, CachedTask] = OrderedDict()

    def __len__(self) -> int:
        return len(self._tasks)

    def get(self, task_id: str) -> CachedTask | None:
        """A task by its id, which is then the one used last."""
        found = self._tasks.get(task_id)
        if found is not None:
            self._tasks.move_to_end(task_id)
        return found

    def put(self, routed: RoutedTask) -> CachedTask:
        """Keep a task, or return the one that is there."""
        task = self._tasks.setdefault(routed.definition.id, CachedTask(routed))
        self._tasks.move_to_end(routed.definition.id)
        self.shrink()
        return task

    def shrink(self) -> None:
        """Drop what was not used for longest, until the bounds hold."""
        sizes = {task_id: task.size_bytes for task_id, task in self._tasks.items()}
        total = sum(sizes.values())
        while len(self._tasks) > 1 and (len(self._tasks) > self._most_tasks or total > self._most_bytes):
            oldest, _ = self._tasks.popitem(last=False)
            total -= sizes[oldest]


async def _awaited(compute: Callable[[], Awaitable[Classifier]]) -> Classifier:
    return await compute()


def _succeeded(task: "asyncio.Task[Classifier]") -> bool:
    # Asking a failed task for its exception marks it as seen: every waiter has been told.
    return task.done() and not task.cancelled() and task.exception() is None
