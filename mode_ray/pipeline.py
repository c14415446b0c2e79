"""All stages of a run in order; each is skipped where its manifest stands for the same config."""

import json
from collections.abc import Callable, Sequence
from functools import partial

from mode_ray.assign.stage import run_assign
from mode_ray.atlas.stage import make_atlas
from mode_ray.captions.listing import list_work_units, read_listing, write_listing
from mode_ray.cluster.clustering import Clustering
from mode_ray.cluster.reuse import CONTENT_FIELD, find_reused, run_reuse
from mode_ray.cluster.stage import run_cluster
from mode_ray.config.base import config_hash, fingerprint_fields
from mode_ray.config.load import dump_config
from mode_ray.config.run import RunConfig
from mode_ray.embed.stage import run_embed
from mode_ray.errors import UsageError
from mode_ray.evaluate.stage import routing_entropies, run_evaluate
from mode_ray.evaluate.tasks.task import load_tasks
from mode_ray.new_data.drift import run_drift
from mode_ray.new_data.extend import ExtensionRequest, run_extension
from mode_ray.new_data.table import drift_view
from mode_ray.new_data.tally import training_quantiles
from mode_ray.observe.log import json_logger, log_format
from mode_ray.observe.metrics import PipelineMetrics
from mode_ray.observe.progress import Progress
from mode_ray.run_directory import LISTING, RUN_CONFIG, STAGE_NAMES, SUMMARY_FILE, VERSIONS, stage_directories
from mode_ray.stages.manifest import Manifest, Stage, combined_hash, package_versions
from mode_ray.stages.resume import plan_units, refuse_replaced_sources
from mode_ray.stages.work_unit import WorkUnit, require_images
from mode_ray.storage import Location
from mode_ray.sweep.results import SweepReport
from mode_ray.train.stage import TrainReports, retry_trial, run_train

WORK_UNIT_STAGES = ("embed", "assign")


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
        logger = json_logger() if log_format(config.ray.log_format) == "json" else None
        progress.follow(config.directory.uri, logger, lambda: PipelineMetrics(config.directory.uri))
        listing = config.directory / LISTING
        listed_before = read_listing(listing, config.captions)
        self._work_units = list_work_units(config.captions, listed_before)
        self._directories = stage_directories(config.directory)
        self._stages = build_stages(config, self._work_units)
        # All of them before anything is written: a run of another config is refused whole.
        self._states = {name: stage.state() for name, stage in self._stages.items()}
        for name in WORK_UNIT_STAGES:
            if self._states[name] == "done":
                refuse_replaced_sources(self._stages[name], self._work_units)
        if self._work_units != listed_before:
            write_listing(listing, self._work_units, config.captions)
        (config.directory / RUN_CONFIG).write_text(dump_config(config))
        (config.directory / VERSIONS).write_text(json.dumps(package_versions(), indent=1))

    def is_done(self, names: Sequence[str]) -> bool:
        """Whether there is nothing left to do."""
        return all(self._states[name] == "done" for name in names)

    def run(self, names: Sequence[str]) -> None:
        """Run stages in order, or what is left of them.

        Raises:
            UsageError: An earlier stage that one of these needs is not done, or there are no images to train on.
            ModeRayError: As the stages raise.
        """
        if "train" in names and self._states["train"] != "done":
            require_images(self._work_units)
        for name in names:
            if self._states[name] == "done":
                self._progress.say(f"[{name}] done before")
                continue
            self._require_earlier(name)
            self._progress.end(self._run_stage(name))
            self._states[name] = "done"
            if name == "assign" and self._config.reuses_clustering:
                self.drift()
            if name == "assign" and not (self._directories["cluster"] / SUMMARY_FILE).exists():
                self._progress.say(f"[assign] atlas: {self.atlas()}")  # a reused clustering came without one

    def drift(self) -> None:
        """Compare the assigned captions with what the clustering was fitted on, and show how they differ.

        Raises:
            UsageError: The assign stage is not done.
            DataError: The clustering does not say what it was fitted on.
        """
        report = run_drift(self._config, self._directories["cluster"], self._directories["assign"])
        self._progress.show(drift_view(report))

    def sweep(self) -> SweepReport:
        """Try out the training fields of `sweep`; the train stage is neither needed nor touched.

        Raises:
            ModeRayError: As `run_sweep`.
        """
        from mode_ray.sweep.run import run_sweep  # Ray Tune is slow to import, and the stages do without

        places = self._directories
        return run_sweep(self._config, self._work_units, places["cluster"], places["assign"], self._progress.say)

    def atlas(self) -> Location:
        """Write the clustering's atlas, an HTML page, and return where it lies.

        Raises:
            UsageError: The cluster stage is not done.
            DataError: None of the sampled captions can be read again.
        """
        if self._states["cluster"] != "done":
            raise UsageError("the atlas needs the cluster stage, which is not done: run `mode-ray cluster` first")
        return make_atlas(self._config, self._work_units, self._directories)

    def extend(self, request: ExtensionRequest) -> Clustering:
        """Write a clustering with new centers for the far captions of this run.

        Raises:
            ModeRayError: As `run_extension`.
        """
        self._progress.begin("cluster extend", len(self._work_units))
        return run_extension(self._config, request, self._work_units, self._directories, self._progress.unit)

    def retry(self, trial: str) -> None:
        """Train one run of the train stage alone, its failure forgotten; the stage is done if it was the last missing.

        Args:
            trial: Its name, or the number of an expert.

        Raises:
            UsageError: There is nothing to retry by that name, or the stage before is not done.
            TrainingError: It failed again.
        """
        self._require_earlier("train")
        self._begin("train")
        places, progress = self._directories, self._progress
        with progress.watching_trials() as on_change:
            manifest = retry_trial(
                self._config,
                self._stages["train"],
                self._work_units,
                places["cluster"],
                places["assign"],
                trial,
                TrainReports(_say_of_training(progress), on_change),
            )
        if manifest is None:
            progress.say(f"[train] {trial} is finished; other runs are not: `mode-ray train` goes on with them")
        else:
            progress.end(manifest)

    def _require_earlier(self, name: str) -> None:
        # An evaluation may leave out experts that failed: it looks itself at what the train stage left.
        needed = (*WORK_UNIT_STAGES, "cluster") if name == "evaluate" else STAGE_NAMES[: STAGE_NAMES.index(name)]
        for earlier in needed:
            if self._states[earlier] != "done":
                raise UsageError(
                    f"{name} needs the {earlier} stage, which is not done: run `mode-ray {earlier}` first"
                )

    def _run_stage(self, name: str) -> Manifest:
        config, work_units, places, progress = self._config, self._work_units, self._directories, self._progress
        stage = self._stages[name]
        self._begin(name)
        if name == "embed":
            return self._embed(stage)
        if name == "cluster":
            return self._cluster(stage)
        if name == "assign":
            embeddings = places["embed"] if config.embed.keep == "all" else None
            return run_assign(config, stage, work_units, places["cluster"], embeddings, progress.unit)
        if name == "train":
            with progress.watching_trials() as on_change:
                reports = TrainReports(_say_of_training(progress), on_change)
                return run_train(config, stage, work_units, places["cluster"], places["assign"], reports)
        manifest = run_evaluate(config, stage, work_units, places, progress.unit)
        progress.routing(routing_entropies(stage.directory))
        return manifest

    def _embed(self, stage: Stage) -> Manifest:
        if self._embeds_nothing:
            self._progress.say("[embed] nothing to embed: reused clustering")
            stage.begin(0)
            return stage.finish([], {"nothing to embed": "reused clustering"})
        counted = partial(self._progress.work, "embed: captions counted, in units")
        return run_embed(self._config, stage, self._work_units, self._progress.unit, counted)

    def _cluster(self, stage: Stage) -> Manifest:
        config, directory = self._config, self._directories["cluster"]
        if config.reuses_clustering:
            reused = find_reused(config, directory)
            training_quantiles(reused.clustering)  # the drift report needs them: better found out before assigning
            self._progress.say(f"[cluster] reused clustering of {reused.source}, content {reused.content_hash}")
            return run_reuse(config, stage, reused, self._progress.unit)
        progress = self._progress
        manifest = run_cluster(
            config, stage, self._directories["embed"], progress.unit, progress.say, progress.iteration
        )
        progress.say(f"[cluster] atlas: {make_atlas(config, self._work_units, self._directories)}")
        return manifest

    @property
    def _embeds_nothing(self) -> bool:
        return self._config.reuses_clustering and self._config.embed.keep == "sample"

    def _begin(self, name: str) -> None:
        """Say what there is to do."""
        if name not in WORK_UNIT_STAGES or self._units(name) == 0:
            self._progress.begin(name, self._units(name))
            return
        plan = plan_units(self._stages[name], self._work_units)
        pool = self._config.embed.pool if name == "embed" else self._config.assign.pool
        self._progress.begin(name, self._units(name), len(plan.finished), pool.max_actors)
        if plan.replaced:
            self._progress.say(f"[{name}] {len(plan.replaced)} units are done again: their source was replaced")
        if plan.vanished:
            self._progress.say(f"[{name}] {len(plan.vanished)} outputs are removed: no file has these units any more")

    def _units(self, name: str) -> int:
        counts = {
            "embed": 0 if self._embeds_nothing else len(self._work_units),
            "assign": len(self._work_units),
            "evaluate": len(self._config.evaluate.tasks),
        }
        return counts.get(name, 1)


def _say_of_training(progress: Progress) -> Callable[[str], None]:
    return lambda text: progress.say(f"[train] {text}")


def build_stages(config: RunConfig, work_units: Sequence[WorkUnit]) -> dict[str, Stage]:
    """Every stage with the fields that decide its output: its config sections and the hash of the stage before."""
    # By name alone: a file that was mended, and may now be split otherwise, does not make another run.
    files = sorted({work_unit.uri for work_unit in work_units})
    sampling = {}
    if config.embed.keep == "sample" and not config.reuses_clustering:
        sampling = {"cluster.sample_rows": config.cluster.sample_rows, "cluster.seed": config.cluster.seed}
    tasks = [task.model_dump_json() for task in load_tasks(config.evaluate.tasks)]
    own: dict[str, dict[str, object]] = {
        "embed": {
            **fingerprint_fields(config.captions, "captions"),
            **fingerprint_fields(config.encoder, "encoder"),
            **fingerprint_fields(config.embed, "embed"),
            **sampling,
            "captions (files found)": f"{len(files)} files, {combined_hash(files)}",
        },
        "cluster": _cluster_fields(config),
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
        # Experts that are left out: which of them a task was measured with stands beside its cosines.
        free = ("evaluate.leave_out_experts",) if name == "evaluate" else ()
        stages[name] = Stage(name, directory, {**own[name], **before}, free)
        before = {f"inputs.{name}": config_hash(stages[name].fields)}
    return stages


def _cluster_fields(config: RunConfig) -> dict[str, object]:
    """What decides the clustering: the fields of a fit, or the content of the reused one."""
    if config.reuses_clustering:
        copy = stage_directories(config.directory)["cluster"]
        return {CONTENT_FIELD: find_reused(config, copy).content_hash}
    fields = fingerprint_fields(config.cluster, "cluster")
    del fields["cluster.reuse"]
    return fields
