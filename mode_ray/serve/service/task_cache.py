"""The tasks used last, in memory: their weights and every expert's class embeddings."""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mode_ray.serve.service.expert_client import ExpertDescription
from mode_ray.serve.service.gradual import Gradual
from mode_ray.serve.service.task_definition import TaskDefinition
from mode_ray.serve.service.task_routing import RoutedTask

Classifier = npt.NDArray[np.float32]
_Key = tuple[int, str]  # an expert's id, and the source of its weights


@dataclass(eq=False)
class CachedTask:
    """A task and what was computed for it so far.

    Attributes:
        definition: The task.
        routed: The task with its weights.
        weights_of_each: Weights of every class as a task of its own, [l, experts].
        classifiers: Class embeddings [l, d]. An expert has one entry, for its newest weights.
    """

    definition: TaskDefinition
    routed: Gradual[RoutedTask] = field(default_factory=Gradual)
    weights_of_each: Gradual[npt.NDArray[np.floating]] = field(default_factory=Gradual)
    classifiers: dict[_Key, Gradual[Classifier]] = field(default_factory=dict)

    def classifier(self, expert: int, description: ExpertDescription) -> Gradual[Classifier]:
        """An expert's class embeddings."""
        key = (expert, description.source)
        if key not in self.classifiers:
            for old in [known for known in self.classifiers if known[0] == expert]:
                del self.classifiers[old]
            self.classifiers[key] = Gradual()
        return self.classifiers[key]

    @property
    def size_bytes(self) -> int:
        """Size of the embeddings."""
        parts: list[Gradual[Any]] = [self.routed, self.weights_of_each, *self.classifiers.values()]
        return sum(part.size_bytes for part in parts)


class TaskCache:
    """A cache of tasks, bounded in number and in bytes. It drops the task that was not used for longest.

    Args:
        most_tasks: Maximal number of tasks.
        most_bytes: Maximal size of all embeddings. The task used last is kept whatever its size.
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

    def put(self, definition: TaskDefinition) -> CachedTask:
        """Add a task, or return the cached one."""
        task = self._tasks.setdefault(definition.id, CachedTask(definition))
        self._tasks.move_to_end(definition.id)
        self.shrink()
        return task

    def drop(self, task_id: str) -> None:
        """Drop a task, if it is cached."""
        self._tasks.pop(task_id, None)

    def shrink(self) -> None:
        """Drop tasks until the bounds hold."""
        sizes = {task_id: task.size_bytes for task_id, task in self._tasks.items()}
        total = sum(sizes.values())
        while len(self._tasks) > 1 and (len(self._tasks) > self._most_tasks or total > self._most_bytes):
            oldest, _ = self._tasks.popitem(last=False)
            total -= sizes[oldest]
