"""A series of runs, one after the other. Each resumes where it stopped, and they share finished stages."""

from collections.abc import Callable, Mapping, Sequence

from rich.console import Console

from mode_ray.config.run import RunConfig
from mode_ray.errors import ModeRayError
from mode_ray.observe.progress import Progress
from mode_ray.pipeline import Pipeline
from mode_ray.run_directory import STAGE_NAMES
from mode_ray.stages.session import ray_session
from mode_ray.storage import Location
from mode_ray.study.reuse import copy_finished_stages


def run_series(runs: Mapping[str, RunConfig], console: Console, on_done: Callable[[str], None]) -> None:
    """Finish every run, in the given order and within one Ray session.

    Args:
        runs: Configs by name. With `with_shared_seeds` they share seed models.
        console: For progress.
        on_done: Called with the name of each run once its evaluation is finished.

    Raises:
        ModeRayError: As the stages raise, with the name of the run in front. Earlier runs are finished.
    """
    configs = list(runs.values())
    # All runs are checked before the first begins, so that a directory with another config is reported at once.
    done = [_is_done(config) for config in configs]
    if all(done):
        for name in runs:
            on_done(name)
        return
    with ray_session(configs[0].ray):
        for name, config in runs.items():
            _run_one(name, config, [other.directory for other in configs], console)
            on_done(name)


def _is_done(config: RunConfig) -> bool:
    return Pipeline.open(config, Progress(Console(quiet=True))).is_done(STAGE_NAMES)


def _run_one(name: str, config: RunConfig, others: Sequence[Location], console: Console) -> None:
    try:
        for stage, source in copy_finished_stages(config, others).items():
            console.print(f"[{name}] {stage}: copied from {source}", markup=False, highlight=False, soft_wrap=True)
        pipeline = Pipeline.open(config, Progress(console), STAGE_NAMES)
        if not pipeline.is_done(STAGE_NAMES):
            console.print(f"[{name}] {config.run}", markup=False, highlight=False, soft_wrap=True)
            pipeline.run(STAGE_NAMES)
    except ModeRayError as error:
        raise type(error)(f"{name}: {error}") from None
