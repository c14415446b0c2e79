"""All stages of a run in order; each is skipped where its manifest stands for the same config."""

import json
from collections.abc import Mapping, Sequence

from mode_ray.assign import run_assign
from mode_ray.captions.shards import Shard, list_shards
from mode_ray.cluster.run import run_cluster
from mode_ray.config import RunConfig, config_hash, fingerprint_fields
from mode_ray.config_file import dump_config
from mode_ray.embed import run_embed
from mode_ray.errors import UsageError
from mode_ray.evaluate.run import run_evaluate
from mode_ray.evaluate.tasks import load_tasks
from mode_ray.progress import Progress
from mode_ray.stage import Manifest, Stage, combined_hash, package_versions
from mode_ray.storage import Location
from mode_ray.train.run import run_train
from mode_ray.train.scheduler import TrialStatus
from mode_ray.train.trial import read_progress

STAGE_DIRECTORIES = {
    "embed": "embeddings",
    "cluster": "clusters",
    "assign": "assignments",
    "train": "experts",
    "evaluate": "evaluation",
}
STAGE_NAMES = tuple(STAGE_DIRECTORIES)


class Pipeline:
    """The stages of one run.

    Args:
        config: The run's config.
        progress: Where to say what happens.

    Raises:
        DataError: The input does not exist.
        UsageError: The run directory was begun with another config, or a task file is wrong.
    """

    def __init__(self, config: RunConfig, progress: Progress) -> None:
        self._config = config
        self._progress = progress
        self._shards = list_shards(config.captions)
        self._directories = stage_directories(config.directory)
        self._stages = build_stages(config, self._shards)
        # All of them before anything is written: a run of another config is refused whole.
        self._states = {name: stage.state() for name, stage in self._stages.items()}
        (config.directory / "config.yaml").write_text(dump_config(config))
        (config.directory / "versions.json").write_text(json.dumps(package_versions(), indent=1))

    def is_done(self, names: Sequence[str]) -> bool:
        """Whether there is nothing left to do."""
        return all(self._states[name] == "done" for name in names)

    def run(self, names: Sequence[str]) -> None:
        """Run stages in order, or what is left of them.

        Raises:
            UsageError: An earlier stage that one of these needs is not done.
            ModeRayError: As the stages raise.
        """
        for name in names:
            if self._states[name] == "done":
                self._progress.say(f"[{name}] done before")
                continue
            self._require_earlier(name)
            self._progress.end(self._run_stage(name))
            self._states[name] = "done"

    def _require_earlier(self, name: str) -> None:
        for earlier in STAGE_NAMES[: STAGE_NAMES.index(name)]:
            if self._states[earlier] != "done":
                raise UsageError(
                    f"{name} needs the {earlier} stage, which is not done: run `mode-ray {earlier}` first"
                )

    def _run_stage(self, name: str) -> Manifest:
        config, shards, places, progress = self._config, self._shards, self._directories, self._progress
        stage = self._stages[name]
        progress.begin(name, self._units(name))
        if name == "embed":
            return run_embed(config, stage, shards, progress.unit)
        if name == "cluster":
            return run_cluster(config, stage, places["embed"], progress.unit)
        if name == "assign":
            embeddings = places["embed"] if config.embed.keep == "all" else None
            return run_assign(config, stage, shards, places["cluster"], embeddings, progress.unit)
        if name == "train":
            return run_train(config, stage, shards, places["cluster"], places["assign"], self._say_trials)
        return run_evaluate(config, stage, shards, places, progress.unit)

    def _units(self, name: str) -> int:
        counts = {
            "embed": len(self._shards),
            "assign": len(self._shards),
            "evaluate": len(self._config.evaluate.tasks),
        }
        return counts.get(name, 1)

    def _say_trials(self, statuses: Mapping[str, TrialStatus]) -> None:
        points = {
            name: read_progress(self._directories["train"] / name)
            for name, status in statuses.items()
            if status.state == "running"
        }
        self._progress.trials(statuses, {name: point for name, point in points.items() if point is not None})


def stage_directories(run: Location) -> dict[str, Location]:
    """The directory of every stage of a run."""
    return {name: run / directory for name, directory in STAGE_DIRECTORIES.items()}


def build_stages(config: RunConfig, shards: Sequence[Shard]) -> dict[str, Stage]:
    """Every stage with the fields that decide its output: its config sections and the hash of the stage before."""
    listing = combined_hash(f"{shard.unit} {shard.uri}" for shard in shards)
    sampling = {}
    if config.embed.keep == "sample":
        sampling = {"cluster.sample_rows": config.cluster.sample_rows, "cluster.seed": config.cluster.seed}
    tasks = [task.model_dump_json() for task in load_tasks(config.evaluate.tasks)]
    own: dict[str, dict[str, object]] = {
        "embed": {
            **fingerprint_fields(config.captions, "captions"),
            **fingerprint_fields(config.encoder, "encoder"),
            **fingerprint_fields(config.embed, "embed"),
            **sampling,
            "captions (files found)": f"{len(shards)} units, {listing}",
        },
        "cluster": fingerprint_fields(config.cluster, "cluster"),
        "assign": fingerprint_fields(config.assign, "assign"),
        "train": fingerprint_fields(config.train, "train"),
        "evaluate": {
            **fingerprint_fields(config.routing, "routing"),
            **fingerprint_fields(config.evaluate, "evaluate"),
            "evaluate (content of the tasks)": combined_hash(tasks),
        },
    }
    stages: dict[str, Stage] = {}
    before: dict[str, object] = {}
    for name, directory in stage_directories(config.directory).items():
        stages[name] = Stage(name, directory, {**own[name], **before})
        before = {f"inputs.{name}": config_hash(stages[name].fields)}
    return stages
