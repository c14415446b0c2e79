"""A run directory copied for one test, so that the run is made only once."""

import shutil
from pathlib import Path

from mode_ray.config.run import RunConfig


def copy_of(config: RunConfig, folder: Path) -> RunConfig:
    """The config of a copy of its run directory in `folder/run`; the pairs stay where they are."""
    shutil.copytree(config.run, folder / "run")
    return config.model_copy(update={"run": str(folder / "run")})
