"""One launch of one training run: a zero-CPU task that runs Ray Train's trainer until it ends.

Neither this task nor Ray Train's controller, which is on the same node, imports torch.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from ray.train import CheckpointConfig
from ray.train import RunConfig as TrainRunConfig
from ray.train.v2.api.config import FailureConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mode_ray.config.base import config_hash, fingerprint_fields
from mode_ray.config.train import TrainPlacement
from mode_ray.errors import ModeRayError
from mode_ray.run_directory import CHECKPOINT_FOLDER, ERROR_FILE
from mode_ray.stages.dashboard_names import shown_name
from mode_ray.storage import Location
from mode_ray.train.runs.checkpoint_folders import checkpoint_samples
from mode_ray.train.runs.interruptions import InterruptionNotes, ray_reason
from mode_ray.train.runs.prepare import prepare_training_set
from mode_ray.train.runs.process_group import ProcessGroupConfig
from mode_ray.train.runs.trackers import end_failed_run
from mode_ray.train.runs.trial import TrialJob, read_error
from mode_ray.train.runs.waiting import MachinesMissingError, WaitForMachines
from mode_ray.train.source import sample_order_fields

_CHECKPOINTS_KEPT = 2
# Shows runs and workers on the Train page of Ray's dashboard; off by default in Ray 2.60.
_STATE_TRACKING = "RAY_TRAIN_ENABLE_STATE_TRACKING"
_START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
# Ray Train's own record of checkpoints.
_SNAPSHOT_FILE = "checkpoint_manager_snapshot.json"


@dataclass(frozen=True)
class TrialEnd:
    """The result of one launch.

    Attributes:
        reason: Reason of the failure, or None if the run finished.
        again: Whether another launch may succeed: the failure is not the run's, such as a lost controller.
        waited: Whether the launch ended because no machine came within `on_demand_after_seconds`.
    """

    reason: str | None = None
    again: bool = False
    waited: bool = False


def launch(job: TrialJob) -> "ray.ObjectRef[Any]":
    """Start the zero-CPU task that runs one trial's trainer."""
    placement = job.config.train.placement
    options = launcher_options(placement, f"train {shown_name(job.config.directory)} {job.trial.name}")
    if placement.on_demand_after_seconds is not None:
        # Ray Train waits for machines without calling its callbacks: it may not wait longer than the limit.
        options["runtime_env"] = {"env_vars": {_START_TIMEOUT: str(placement.on_demand_after_seconds)}}
    reference: ray.ObjectRef[Any] = ray.remote(fit_trial).options(**options).remote(job)
    return reference


def launcher_options(placement: TrainPlacement, name: str) -> dict[str, Any]:
    """Ray's options of a zero-CPU task that waits for others: it runs on this node if possible, without retries."""
    options: dict[str, Any] = {"num_cpus": 0, "max_retries": 0, "name": name}
    if placement.launcher_label_selector:
        return {**options, "label_selector": dict(placement.launcher_label_selector)}
    node = ray.get_runtime_context().get_node_id()
    return {**options, "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=True)}


def fit_trial(job: TrialJob) -> TrialEnd:
    """Run one trial to its end, from its newest checkpoint."""
    try:
        end = _fit(job)
    except MachinesMissingError as error:
        return TrialEnd(str(error), waited=True)
    if end.reason is not None:
        end_failed_run(job.folder, job.config.train)
    return end


def checkpoints_folder(job: TrialJob) -> Location:
    """The folder of a trial's checkpoints. It depends on everything that affects the weights."""
    config = {**fingerprint_fields(job.config.train, "train"), **fingerprint_fields(job.config.images, "images")}
    config |= sample_order_fields(job.config)
    if job.config.uses_features:
        config |= fingerprint_fields(job.config.features, "features")
    version = config_hash({**config, "trial": repr(job.trial)})
    return job.folder / CHECKPOINT_FOLDER / f"{job.trial.name.replace('/', '-')}-{version}"


def _fit(job: TrialJob) -> TrialEnd:
    os.environ.setdefault(_STATE_TRACKING, "1")
    placement, checkpoints = job.config.train.placement, checkpoints_folder(job)
    storage = checkpoints.parent
    _delete_torn_snapshot(checkpoints)
    # ray.train.RunConfig has the types of Ray Train V1.
    notes: Any = InterruptionNotes(job.folder, partial(checkpoint_samples, checkpoints), placement.max_failures)
    trainer = DataParallelTrainer(
        _train,
        train_loop_config={"job": job, "checkpoints": checkpoints},
        backend_config=ProcessGroupConfig(timeout_seconds=placement.process_group_timeout_seconds),
        scaling_config=scaling_config(placement),
        run_config=TrainRunConfig(
            name=checkpoints.name,  # Ray Train resumes a run with the same name
            storage_path=storage.path,
            storage_filesystem=None if storage.is_local else storage.filesystem,
            # Ray's own limit counts failures of the whole launch; the notes count those without progress.
            failure_config=FailureConfig(max_failures=-1, max_preemption_failures=placement.max_preemptions),
            checkpoint_config=CheckpointConfig(num_to_keep=_CHECKPOINTS_KEPT),
            callbacks=[notes, *_waiting(placement)],
        ),
    )
    (job.folder / ERROR_FILE).delete()
    try:
        prepare_training_set(job)
    except ModeRayError as error:
        return TrialEnd(_last_line(error), again=isinstance(error, OSError))
    try:
        trainer.fit()
    except WorkerGroupError as error:
        causes = [f"worker {rank}: {ray_reason(cause)}" for rank, cause in sorted(error.worker_failures.items())]
        return TrialEnd(read_error(job.folder) or "; ".join(causes) or _last_line(error))
    except TrainingFailedError as error:
        failure = getattr(error, "controller_failure", None)
        if isinstance(failure, MachinesMissingError):
            raise failure from None
        reason = read_error(job.folder)
        return TrialEnd(reason or _last_line(error), again=reason is None)
    except ray.exceptions.RayActorError as error:
        return TrialEnd(f"controller lost: {ray_reason(error)}", again=True)
    return TrialEnd(read_error(job.folder))


def _waiting(placement: TrainPlacement) -> list[Any]:
    limit = placement.on_demand_after_seconds
    return [] if limit is None else [WaitForMachines(limit)]


def scaling_config(placement: TrainPlacement) -> ScalingConfig:
    """The resources that one run requests from Ray."""
    fewest, most = placement.workers_per_run, placement.max_workers_per_run
    return ScalingConfig(
        num_workers=fewest if most is None else (fewest, most),
        elastic_resize_monitor_interval_s=placement.resize_interval_seconds,
        use_gpu=placement.use_gpu,
        resources_per_worker={
            "CPU": placement.cpus_per_worker,
            **({"GPU": placement.gpus_per_worker} if placement.use_gpu else {}),
        },
        accelerator_type=placement.accelerator_type,
        label_selector=placement.required_labels,
    )


def _delete_torn_snapshot(run: Location) -> None:
    """Delete Ray Train's record of checkpoints if it is cut off.

    Ray overwrites it in place, so a kill can cut it off, and then refuses to start with it. Workers find their
    checkpoints without it.
    """
    record = run / _SNAPSHOT_FILE
    if not record.exists():
        return
    try:
        json.loads(record.read_bytes())
    except ValueError:
        record.delete()


def _train(settings: Mapping[str, Any]) -> None:
    """The worker's function. The import here keeps open_clip out of the trainer's own processes."""
    from mode_ray.train.runs.worker import train_worker

    train_worker(settings)


def _last_line(error: BaseException) -> str:
    """The message without the stack trace that Ray puts before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
