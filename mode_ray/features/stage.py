"""The stage `features`: runs the locked trunks over all assigned pairs once, for every training run that shares them.

It works unit by unit like `embed`, with the same actors, records and resume rules. It is part of a run only with
`train.data.mode: features`.
"""

from mode_ray.assign.table import assigned_units
from mode_ray.config.base import fingerprint_fields
from mode_ray.config.run import RunConfig
from mode_ray.features.worker import FeatureWorker
from mode_ray.run_directory import stage_directories
from mode_ray.stages.execute import UnitWork
from mode_ray.stages.manifest import Manifest, Stage
from mode_ray.stages.resume import run_work_unit_stage
from mode_ray.stages.run import Run, StageReport


def uses_features(config: RunConfig) -> bool:
    """Whether training reads features instead of images."""
    return config.train.data.mode == "features"


def features_fields(run: Run) -> dict[str, object]:
    """The fields that decide the features: the trunks, the views, and how images are decoded."""
    config = run.config
    return {
        **fingerprint_fields(config.train.model, "train.model"),
        **fingerprint_fields(config.features, "features"),
        **fingerprint_fields(config.images, "images"),
        "captions.image_field": config.captions.image_field,
        "train.seed": config.train.seed,
    }


def run_features(run: Run, stage: Stage, report: StageReport) -> Manifest:
    """Compute the features of all assigned pairs, or what is left of them.

    Raises:
        UsageError: The model has no locked trunk.
        DataError: More images cannot be decoded than the config allows.
    """
    config, assignments = run.config, stage_directories(run.directory)["assign"]
    units = [unit for _, unit in assigned_units(assignments, run.work_units)]
    work = UnitWork(FeatureWorker, (config, assignments), config.features.pool, rows="pairs")
    return run_work_unit_stage(stage, units, work, config.limits, report.unit)
