"""Registered tasks as files, so that every router, and the next process, knows their ids."""

from pydantic import ValidationError

from mode_ray.serve.service.task_definition import TaskDefinition, is_task_id
from mode_ray.storage import Location

_MOST_BYTES = 256 << 20


class TaskStore:
    """One JSON file per task, named by the hash of its content. The methods block.

    Args:
        directory: Local or remote.
        most_tasks: Maximal number of files; the oldest are deleted first.
        most_bytes: Maximal size of all files together.
    """

    def __init__(self, directory: Location, most_tasks: int, most_bytes: int = _MOST_BYTES) -> None:
        self._directory = directory
        self._most_tasks = most_tasks
        self._most_bytes = most_bytes
        self._room: tuple[int, int] | None = None  # files and bytes that fit before the directory is listed again

    def save(self, task: TaskDefinition) -> None:
        """Store a definition.

        Raises:
            WriteError: The file cannot be written.
        """
        file = self._file(task.id)
        if file.exists():
            return
        data = task.model_dump_json().encode()
        file.write_bytes(data)
        files, size = self._room if self._room is not None else (0, 0)
        if files < 1 or size < len(data):
            self._room = self._make_room()
        else:
            self._room = (files - 1, size - len(data))

    def load(self, task_id: str) -> TaskDefinition | None:
        """The definition with an id; None if there is none or its content has another hash."""
        if not is_task_id(task_id):
            return None
        try:
            task = TaskDefinition.model_validate_json(self._file(task_id).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None
        return task if task.id == task_id else None

    def _file(self, task_id: str) -> Location:
        return self._directory / f"{task_id}.json"

    def _make_room(self) -> tuple[int, int]:
        """Delete the oldest files beyond the bounds; returns how many files and bytes still fit."""
        entries = sorted(self._directory.entries(), key=lambda entry: entry.modified_unix_seconds)
        total = sum(entry.size_bytes for entry in entries)
        while entries and (len(entries) > self._most_tasks or total > self._most_bytes):
            oldest = entries.pop(0)
            oldest.location.delete()
            total -= oldest.size_bytes
        return self._most_tasks - len(entries), self._most_bytes - total
