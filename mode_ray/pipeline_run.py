"""The pipeline from Python: `mode_ray.run`, and the run that it returns."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from mode_ray.config.load import load_config
from mode_ray.config.run import RunConfig
from mode_ray.ensemble.ensemble import Ensemble, load
from mode_ray.errors import UsageError
from mode_ray.evaluate.report.schema import ReportData
from mode_ray.evaluate.stage import load_report
from mode_ray.observe.progress import Progress
from mode_ray.observe.status import StageView, look_at_stage, stages_of
from mode_ray.pipeline import Pipeline
from mode_ray.run_directory import STAGE_NAMES, stage_directories
from mode_ray.stages.manifest import read_manifest
from mode_ray.stages.session import ray_session


@dataclass(frozen=True)
class PipelineRun:
    """A run directory and what is in it.

    Attributes:
        config: The run's config.
    """

    config: RunConfig

    @property
    def directory(self) -> str:
        """The run directory, a path or a URI."""
        return self.config.directory.uri

    def status(self) -> Mapping[str, StageView]:
        """Every stage by name: `state` (`absent`, `started` or `done`), `done` and `units`, and more."""
        return {name: look_at_stage(self.config.directory, name) for name in stages_of(self.config.directory)}

    @property
    def report(self) -> ReportData:
        """The figures of the evaluation report.

        Raises:
            UsageError: The evaluate stage is not done.
        """
        directory = stage_directories(self.config.directory)["evaluate"]
        if read_manifest(directory) is None:
            raise UsageError(f"{directory}: the evaluate stage is not done: mode_ray.run(config) runs all stages")
        return load_report(directory)

    def ensemble(self, **options: Any) -> Ensemble:  # noqa: ANN401 - those of mode_ray.load
        """The run's ensemble; takes the options of `mode_ray.load`."""
        return load(self.config.directory, **options)

    def __repr__(self) -> str:
        return f"PipelineRun({self.directory!r})"


def run(config: RunConfig | str | Path, until: str = "evaluate", *, quiet: bool = False) -> PipelineRun:
    """Run the pipeline, or what is left of it; the same as `mode-ray run`.

    A run that was interrupted resumes where it stopped, and finished stages are skipped. Ray is joined if it is
    initialised, or if RAY_ADDRESS or `ray.address` names a cluster; else it is started for the length of the call.

    Args:
        config: The run's config, or its YAML file or preset.
        until: The last stage to run: `embed`, `cluster`, `assign`, `features` (with `train.data.mode: features`),
            `train` or `evaluate`.
        quiet: Print no progress.

    Raises:
        UsageError: No such stage, or the run directory was begun with another config.
        ModeRayError: As the stages raise.
    """
    if until not in STAGE_NAMES:
        raise UsageError(f"until={until!r}: the stages are {', '.join(STAGE_NAMES)}")
    settings = config if isinstance(config, RunConfig) else load_config(str(config))
    names = STAGE_NAMES[: STAGE_NAMES.index(until) + 1]
    pipeline = Pipeline.open(settings, Progress(Console(quiet=quiet)), names)
    if not pipeline.is_done(names):
        with ray_session(settings.ray):
            pipeline.run(names)
    return PipelineRun(settings)
