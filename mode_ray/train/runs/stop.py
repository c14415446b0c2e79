"""The last checkpoints of runs whose driver ends by SIGTERM, for example by `ray job stop`.

Workers end with their driver. Before it ends, it writes a file to the directory of each run; the thread that writes
the run's progress finds it, and rank 0 orders a checkpoint.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from mode_ray.run_directory import PROGRESS_FILE, STOP_FILE
from mode_ray.storage import Location
from mode_ray.train.runs.trial import read_progress

STOPPED_SAMPLES = "stopped_samples"
"""Field of the progress file: samples of the checkpoint that was written for the driver's end."""
# Kubernetes kills 30 seconds after SIGTERM.
PATIENCE_SECONDS = 25.0
_LOOK_SECONDS = 0.5


@contextmanager
def sigterm_as_exit() -> Iterator[None]:
    """Raise SystemExit in the main thread for SIGTERM.

    The handler that Ray installs in a driver prints a stack trace, and aborts the process three seconds later.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread can have handlers
        return

    def stop(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def write_last_checkpoints(
    folders: Mapping[str, Location],
    patience_seconds: float = PATIENCE_SECONDS,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, int]:
    """Ask runs for a checkpoint, and wait until they have written it, but not longer than the given time.

    Args:
        folders: Directories of the runs, by name. Those whose workers have not begun are not waited for.
        patience_seconds: The longest time.
        sleep: Waits for a number of seconds.

    Returns:
        Samples of the checkpoint by run, of those that have written it.
    """
    waiting = {name: folder for name, folder in folders.items() if (folder / PROGRESS_FILE).exists()}
    for folder in waiting.values():
        (folder / STOP_FILE).write_text("{}")
    written: dict[str, int] = {}
    deadline = time.monotonic() + patience_seconds
    while len(written) < len(waiting) and time.monotonic() < deadline:
        sleep(_LOOK_SECONDS)
        for name, folder in waiting.items():
            progress = read_progress(folder) or {}
            if name not in written and STOPPED_SAMPLES in progress:
                written[name] = int(progress[STOPPED_SAMPLES])
    for folder in waiting.values():
        (folder / STOP_FILE).delete()
    return written
