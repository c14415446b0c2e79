"""Runs over the same data share work: finished stages are copied, and the seed and dense models are reused.

Which run reuses which models depends only on the configs and their order, so an interrupted series resumes unchanged.
"""

from collections.abc import Mapping, Sequence

from mode_ray.config.base import config_hash, fingerprint_fields
from mode_ray.config.load import with_values
from mode_ray.config.run import RunConfig
from mode_ray.models.architecture import WEIGHTS_FILE
from mode_ray.pipeline import build_stages, open_run
from mode_ray.run_directory import MANIFEST, STARTED, STATE_FILE, stage_directories
from mode_ray.stages.manifest import read_manifest
from mode_ray.storage import Location

_SHARED_STAGES = ("embed", "cluster", "assign", "features")
# These fields decide the experts and the controls, never the seed or the dense model.
_EXPERTS_ONLY = frozenset(
    {
        "train.experts",
        "train.expert_budget",
        "train.out_of_cluster_share",
        "train.controls",
        "train.reuse",
        "train.reuse_models",
    }
)


def seed_fields(config: RunConfig) -> dict[str, object]:
    """All fields that decide a run's seed and dense model: those of the data and the training, not of the experts."""
    train = fingerprint_fields(config.train, "train")
    own = {name: value for name, value in train.items() if name not in _EXPERTS_ONLY}
    data = {**fingerprint_fields(config.captions, "captions"), **fingerprint_fields(config.images, "images")}
    features = fingerprint_fields(config.features, "features") if config.uses_features else {}
    return {**own, **data, **features}


def with_shared_seeds(configs: Sequence[RunConfig]) -> list[RunConfig]:
    """The same runs; each reuses the seed and dense models of the first run whose models are equal.

    That first run is not changed, and neither is a run that reuses another one's models (`train.reuse`) already.
    """
    first: dict[str, str] = {}
    shared = []
    for config in configs:
        source = first.setdefault(config_hash(seed_fields(config)), config.run)
        if config.train.reuse is not None or source == config.run:
            shared.append(config)
        else:
            changes = {"train.reuse": source, "train.reuse_models": ["seed", "dense"]}
            shared.append(with_values(config, changes))
    return shared


def copy_finished_stages(config: RunConfig, others: Sequence[Location]) -> Mapping[str, Location]:
    """Copy embeddings, clustering, assignments and features that another run has made with the same fields.

    On one local disk, the copies are further names of the same files.

    A stage that was begun is not touched. The file that marks a stage as begun is copied last, so an interrupted copy
    is made again.

    Args:
        config: The run to copy to.
        others: Directories of runs, searched in this order; they need not exist.

    Returns:
        The directory that each copied stage comes from.
    """
    copied: dict[str, Location] = {}
    for name, stage in build_stages(open_run(config)).items():
        if name not in _SHARED_STAGES or (stage.directory / STARTED).exists():
            continue
        wanted = config_hash(stage.fields)
        for other in others:
            source = other / stage.directory.name
            manifest = read_manifest(source)
            if source != stage.directory and manifest is not None and manifest.config_hash == wanted:
                _copy(source, stage.directory)
                copied[name] = source
                break
    return copied


def delete_weights(config: RunConfig, others: Sequence[RunConfig]) -> None:
    """Delete the weights of a finished run's models and of its optimizers; the results stay.

    Args:
        config: The run.
        others: Runs that may reuse its models; those that they do are kept.
    """
    reused = {name for other in others if other.train.reuse == config.run for name in other.train.reuse_models}
    experts = stage_directories(config.directory)["train"]
    kept = [experts / name for name in reused]
    for file in experts.files(recursive=True):
        if file.name in (WEIGHTS_FILE, STATE_FILE) and file.parent not in kept:
            file.delete()


def _copy(source: Location, target: Location) -> None:
    last = (MANIFEST, STARTED)
    files = [file for file in source.files(recursive=True) if file not in [source / name for name in last]]
    for file in (*files, *(source / name for name in last)):
        file.link_or_copy_to(target / file.uri.removeprefix(f"{source.uri}/"))
