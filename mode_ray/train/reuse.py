"""Reuses the models of another run, so that only the missing models are trained.

Experts are matched by their fine centers: an expert of this run is reused if an expert of the other run owns exactly
the same of the centers that both runs have. So an expert of new centers only is trained, and an expert that only
gained centers is reused. The other run is only read.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mode_ray.cluster.clustering import Clustering
from mode_ray.config.base import fingerprint_fields
from mode_ray.config.train import TrainConfig
from mode_ray.errors import DataError, UsageError
from mode_ray.models.architecture import CONFIG_FILE, WEIGHTS_FILE, clip_config_of, model_files
from mode_ray.run_directory import METRICS_FILE, PROGRESS_FILE, STATE_FILE
from mode_ray.stages.manifest import Manifest, read_manifest
from mode_ray.storage import Location
from mode_ray.train.plan import DENSE, SEED, Trial, expert_name
from mode_ray.train.runs.status import TrialStatus, read_status, write_status
from mode_ray.train.runs.trial import planned_trials_of

# Copied before the model: a folder that open_clip can load is complete.
_TRAINING_FILES = (STATE_FILE, PROGRESS_FILE, METRICS_FILE)
# Experts of one ensemble must start from the same weights, at the same point of the schedule.
_SHARED_FIELDS = (
    "train.model.pretrained",
    "train.model.towers.image",
    "train.model.towers.text",
    "train.model.lock.image",
    "train.model.lock.text",
    "train.loss.kind",
    "train.seed_share",
    "train.seed_from_pretrained",
    "train.expert_schedule",
)
# Initial values of learned parameters are not part of the architecture.
_INITIAL_VALUES = frozenset({"init_logit_scale", "init_logit_bias"})


@dataclass(frozen=True)
class Takeover:
    """The models that a run reuses from another run.

    Attributes:
        trials: This run's trials in order. A reused trial has its name here, and the data and budget of the other run.
        sources: Folder of each reused model, by its name in this run.
        summary: Record for the manifest; empty if no run is reused.
    """

    trials: Sequence[Trial]
    sources: Mapping[str, Location] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)


def plan_takeover(
    config: TrainConfig, trials: Sequence[Trial], clustering: Clustering, experts: Location, clusters: Location
) -> Takeover:
    """Find what `train.reuse` has of a run's models; nothing is written.

    `experts` and `clusters` are this run's directories; those of the other run have the same names.

    Raises:
        UsageError: The other run is this run or is not finished, or its models do not fit this config.
        DataError: A file of the other run is missing or damaged.
    """
    if config.reuse is None:
        return Takeover(trials)
    other = Location.parse(config.reuse)
    source = other / experts.name
    manifest = _finished(other, source, experts)
    _require_shared_fields(other, manifest.fields, fingerprint_fields(config, "train"))
    before = {trial.name: trial for trial in planned_trials_of(manifest.summary)}
    n_before = int(str(manifest.fields["train.experts"]))
    known = Clustering.load(other / clusters.name)
    expert_before: dict[str, str] = {name: name for name in (SEED, DENSE) if name in config.reuse_models}
    if "experts" in config.reuse_models and extends(known, clustering):
        matched = matching_experts(known.experts_of(n_before), clustering.experts_of(config.experts))
        expert_before |= {
            expert_name(config.experts, expert): expert_name(n_before, old) for expert, old in matched.items()
        }
    names = {trial.name: expert_before[trial.name] for trial in trials if expert_before.get(trial.name) in before}
    sources = {name: source / old for name, old in names.items()}
    for folder in sources.values():
        _require_architecture(other, folder, config)
    return Takeover(
        trials=[
            replace(before[names[trial.name]], name=trial.name, parent=trial.parent) if trial.name in names else trial
            for trial in trials
        ],
        sources=sources,
        summary={
            "run": other.uri,
            "trained_as": manifest.config_hash,
            "taken": {name: folder.uri for name, folder in sources.items()},
            "trained": [trial.name for trial in trials if trial.name not in names],
            "fields_that_differ": _differing(manifest.fields, fingerprint_fields(config, "train")),
        },
    )


def extends(before: Clustering, now: Clustering) -> bool:
    """Whether clustering `now` equals `before`, or begins with all of its centers."""
    m = len(before.centers_md)
    return (
        before.encoder_name == now.encoder_name
        and before.dimension == now.dimension
        and np.array_equal(now.centers_md[:m], before.centers_md)
    )


def matching_experts(before_m: npt.NDArray[np.integer], now_m: npt.NDArray[np.integer]) -> dict[int, int]:
    """Match the experts of two maps that own the same old fine centers, at least one.

    Args:
        before_m: Expert of each fine center in the old map.
        now_m: The same in the new map, which may have more centers after the old ones.

    Returns:
        The old expert of each new expert that has a match.
    """
    owned = {frozenset(np.flatnonzero(before_m == old).tolist()): int(old) for old in np.unique(before_m)}
    restricted_m = now_m[: len(before_m)]
    found = {int(new): frozenset(np.flatnonzero(restricted_m == new).tolist()) for new in np.unique(restricted_m)}
    return {new: owned[centers] for new, centers in found.items() if centers in owned}


def copy_models(takeover: Takeover, experts: Location) -> None:
    """Copy the models byte by byte, each with its metrics and optimizer. Each model's status is written last.

    A second call after a crash copies only the missing models.

    Raises:
        DataError: A model of the other run is incomplete.
    """
    samples = {trial.name: trial.samples for trial in takeover.trials}
    for name, source in takeover.sources.items():
        target = experts / name
        status = read_status(target)
        if status is None or (status.state, status.taken_from) != ("finished", source.uri):
            _copy_model(source, target)
            copied = TrialStatus(trial=name, state="finished", samples=samples[name], taken_from=source.uri)
            write_status(target, copied)


def _copy_model(source: Location, target: Location) -> None:
    names = {file.name for file in source.files()}
    missing = [name for name in (METRICS_FILE, WEIGHTS_FILE, CONFIG_FILE) if name not in names]
    if missing:
        raise DataError(f"{source}: incomplete model: {missing[0]} is missing; copy or train it again")
    for file in (*(source / name for name in _TRAINING_FILES if name in names), *model_files(source)):
        file.copy_to(target / file.name)


def _finished(other: Location, source: Location, experts: Location) -> Manifest:
    if source.uri == experts.uri:
        raise UsageError(f"train.reuse: {other} is this run itself; name another run's directory")
    manifest = read_manifest(source)
    if manifest is None:
        raise UsageError(
            f"train.reuse: {other}: its train stage is not done: name a run's directory, and finish that run first"
        )
    return manifest


def _differing(before: Mapping[str, object], now: Mapping[str, object]) -> dict[str, list[object]]:
    """Training fields of the two runs that are not equal, old and new value."""
    names = [name for name in sorted({*before, *now}) if name.startswith("train.") and name != "train.reuse"]
    return {name: [before.get(name), now.get(name)] for name in names if before.get(name) != now.get(name)}


def _require_shared_fields(other: Location, before: Mapping[str, object], now: Mapping[str, object]) -> None:
    for name in _SHARED_FIELDS:
        if before.get(name) != now.get(name):
            raise UsageError(
                f"train.reuse: {other}: {name} was {before.get(name)!r} there and is {now.get(name)!r} here, but "
                "experts of one ensemble start alike: use the same"
            )


def _require_architecture(other: Location, folder: Location, config: TrainConfig) -> None:
    file = folder / CONFIG_FILE
    try:
        theirs = json.loads(file.read_text())["model_cfg"]
    except FileNotFoundError:
        raise DataError(f"{file}: missing, though the train stage of {other} is done") from None
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{file}: not a config of an open_clip model") from None
    ours = clip_config_of(config.model)["model_cfg"]
    differing = sorted(name for name in {*theirs, *ours} - _INITIAL_VALUES if theirs.get(name) != ours.get(name))
    if differing:
        name = differing[0]
        raise UsageError(
            f"train.reuse: {other}: its models are of another architecture: {name} is {theirs.get(name)!r} there "
            f"and {ours.get(name)!r} here; set train.model to theirs, or leave out train.reuse"
        )
