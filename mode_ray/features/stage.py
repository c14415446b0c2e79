"""The features stage: runs the locked trunks over all pairs once. It is part of runs with `train.data.mode: features`.

It works unit by unit like `embed`, with the same actors, records and resume rules. It does not depend on the
clustering, so runs with other clusters or seeds can share its output.
"""

from typing import TYPE_CHECKING

from mode_ray.config.base import fingerprint_fields
from mode_ray.config.run import RunConfig
from mode_ray.stages.execute import UnitWork
from mode_ray.stages.manifest import Manifest, Stage, combined_hash
from mode_ray.stages.resume import run_work_unit_stage
from mode_ray.stages.run import Run, StageReport

if TYPE_CHECKING:
    from mode_ray.features.worker import FeatureWorker


def features_fields(run: Run) -> dict[str, object]:
    """The fields that decide the features: the captions and images, the trunks, and the views."""
    config = run.config
    model = config.train.model
    # Weights that come from no file are drawn.
    drawn = model.pretrained is None and None in (model.towers.image, model.towers.text)
    files = sorted({work_unit.uri for work_unit in run.work_units})
    return {
        **fingerprint_fields(config.captions, "captions"),
        **fingerprint_fields(config.images, "images"),
        **fingerprint_fields(model, "train.model"),
        **({"train.seed": config.train.seed} if drawn else {}),
        **fingerprint_fields(config.features, "features"),
        "captions (files found)": f"{len(files)} files, {combined_hash(files)}",
    }


def run_features(run: Run, stage: Stage, report: StageReport) -> Manifest:
    """Run the features stage, or what is left of it.

    Raises:
        UsageError: A tower has no locked trunk.
        DataError: More shards are unreadable, or more captions and images refused, than the config allows.
    """
    work = UnitWork(_feature_worker, (run.config,), run.config.features.pool)
    return run_work_unit_stage(stage, run.work_units, work, run.config.limits, report.unit)


def _feature_worker(config: RunConfig) -> "FeatureWorker":
    """The worker, in an actor: it imports torch, which the driver does not need."""
    from mode_ray.features.worker import FeatureWorker

    return FeatureWorker(config)
