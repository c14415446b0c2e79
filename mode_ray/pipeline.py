"""All stages of a run in order; each is skipped if its manifest exists for the same config."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mode_ray.assign.stage import assign_fields, run_assign
from mode_ray.atlas.stage import make_atlas
from mode_ray.captions.listing import list_work_units, read_listing, write_listing
from mode_ray.cluster.clustering import Clustering
from mode_ray.cluster.stage import cluster_fields, run_cluster
from mode_ray.config.base import ActorPool, config_hash
from mode_ray.config.former_defaults import keep_former_defaults
from mode_ray.config.load import dump_config
from mode_ray.config.run import RunConfig
from mode_ray.embed.stage import embed_fields, run_embed
from mode_ray.errors import UsageError
from mode_ray.evaluate.stage import evaluate_fields, run_evaluate
from mode_ray.evaluate.tasks.task import task_files
from mode_ray.features.stage import features_fields, run_features
from mode_ray.new_data.drift import run_drift
from mode_ray.new_data.extend import ExtensionRequest, run_extension
from mode_ray.new_data.table import drift_view
from mode_ray.observe.log import json_logger, log_format
from mode_ray.observe.metrics import PipelineMetrics
from mode_ray.observe.progress import Progress
from mode_ray.preflight import check_stages
from mode_ray.run_directory import LISTING, RUN_CONFIG, SUMMARY_FILE, VERSIONS, stage_directories
from mode_ray.stages.manifest import Manifest, Stage, StageState
from mode_ray.stages.resume import plan_units, refuse_replaced_sources
from mode_ray.stages.run import Run, StageReport
from mode_ray.storage import Location
from mode_ray.sweep.results import SweepReport
from mode_ray.train.stage import retry_trial, run_train, train_fields
from mode_ray.util.versions import package_versions


@dataclass(frozen=True)
class StageEntry:
    """What the pipeline knows of a stage.

    Attributes:
        run: Runs it, or what is left of it.
        fields: The config fields that decide its output.
        units: How many units it has.
        pool: Its actors; None for a stage that does not work shard by shard.
        needs: The stages that must be done before; None for all earlier ones.
        free: Fields that may change after it has begun; see `Stage`.
        independent: Whether its output does not depend on the stages before.
        belongs: Whether a run has this stage.
    """

    run: Callable[[Run, Stage, StageReport], Manifest]
    fields: Callable[[Run], Mapping[str, object]]
    units: Callable[[Run], int] = lambda _: 1
    pool: Callable[[RunConfig], ActorPool] | None = None
    needs: Sequence[str] | None = None
    free: Sequence[str] = ()
    independent: bool = False
    belongs: Callable[[RunConfig], bool] = lambda _: True


STAGES: Mapping[str, StageEntry] = {
    "embed": StageEntry(
        run_embed,
        embed_fields,
        units=lambda run: 0 if run.embeds_nothing else len(run.work_units),
        pool=lambda config: config.embed.pool,
    ),
    "cluster": StageEntry(run_cluster, cluster_fields),
    "assign": StageEntry(
        run_assign,
        assign_fields,
        units=lambda run: len(run.work_units),
        pool=lambda config: config.assign.pool,
    ),
    "features": StageEntry(
        run_features,
        features_fields,
        units=lambda run: len(run.work_units),
        pool=lambda config: config.features.pool,
        needs=(),
        independent=True,
        belongs=lambda config: config.uses_features,
    ),
    "train": StageEntry(run_train, train_fields),
    "evaluate": StageEntry(
        run_evaluate,
        evaluate_fields,
        units=lambda run: len(task_files(run.config.evaluate.tasks)),
        # It may leave out experts that failed, and checks itself what the train stage left.
        needs=("embed", "cluster", "assign"),
        # Which experts a task was measured with is stored beside its cosines.
        free=("evaluate.leave_out_experts",),
    ),
}


def open_run(config: RunConfig) -> Run:
    """List the input of a run; nothing is written.

    Raises:
        DataError: The input does not exist.
        UsageError: The config in the run directory is damaged.
    """
    config = keep_former_defaults(config, config.directory / RUN_CONFIG)
    listed_before = read_listing(config.directory / LISTING, config.captions)
    return Run(config, list_work_units(config.captions, listed_before))


def build_stages(run: Run) -> dict[str, Stage]:
    """Every stage with the fields that decide its output: its config sections and the hash of its input.

    The input is the stage before it, and the independent stages between the two.

    Raises:
        UsageError: A task file is wrong, or the clustering to reuse does not fit.
        DataError: The clustering to reuse is missing or damaged.
    """
    stages: dict[str, Stage] = {}
    before: dict[str, object] = {}
    for name, directory in stage_directories(run.directory).items():
        entry = STAGES[name]
        if not entry.belongs(run.config):
            continue
        inputs = {} if entry.independent else before
        stages[name] = Stage(name, directory, {**entry.fields(run), **inputs}, entry.free)
        own: dict[str, object] = {f"inputs.{name}": config_hash(stages[name].fields)}
        before = {**before, **own} if entry.independent else own
    return stages


class Pipeline:
    """The stages of one run; `Pipeline.open` makes it.

    Args:
        run: The run.
        stages: Its stages by name, in order.
        progress: Prints and exports what happens.
        entries: What runs each stage.
    """

    def __init__(
        self, run: Run, stages: Mapping[str, Stage], progress: Progress, entries: Mapping[str, StageEntry] = STAGES
    ) -> None:
        self._run = run
        self._stages = stages
        self._progress = progress
        self._entries = entries
        # All of them before anything is written: a run that was begun with another config is refused as a whole.
        self._states: dict[str, StageState] = {name: stage.state() for name, stage in stages.items()}
        self._checked: set[str] = set()

    @classmethod
    def open(cls, config: RunConfig, progress: Progress, names: Sequence[str] = ()) -> "Pipeline":
        """List the input, check it, and write the run's config.

        Nothing is written if a check fails, so a refused config leaves no run directory behind.

        Args:
            config: The run's config.
            progress: Prints and exports what happens.
            names: The stages that will run; as `check`.

        Raises:
            DataError: The input does not exist.
            UsageError: The run directory was begun with another config, a task file is wrong, a source of a
                finished stage was replaced, or as `check`.
        """
        run = open_run(config)
        logger = json_logger() if log_format(config.ray.log_format) == "json" else None
        progress.follow(config.directory.uri, logger, lambda: PipelineMetrics(config.directory.uri))
        pipeline = cls(run, build_stages(run), progress)
        pipeline.check(names)
        pipeline.claim()
        return pipeline

    def claim(self) -> None:
        """Write the listing and the config into the run directory.

        Raises:
            UsageError: A source of a finished stage was replaced.
        """
        run = self._run
        for name, stage in self._stages.items():
            if self._states[name] == "done" and self._entries[name].pool is not None:
                refuse_replaced_sources(stage, run.work_units)
        listing = run.directory / LISTING
        if run.work_units != read_listing(listing, run.config.captions):
            write_listing(listing, run.work_units, run.config.captions)
        (run.directory / RUN_CONFIG).write_text(dump_config(run.config))
        (run.directory / VERSIONS).write_text(json.dumps(package_versions(), indent=1))

    def is_done(self, names: Sequence[str]) -> bool:
        """Whether there is nothing left to do.

        Raises:
            UsageError: As `check`.
        """
        return all(self._states[name] == "done" for name in self._present(names))

    def check(self, names: Sequence[str]) -> None:
        """Check what stages need before the first one starts. Ray is not needed; `run` does not check again.

        Raises:
            UsageError: The run has none of these stages, or as `check_stages`.
        """
        left = {name for name in self._present(names) if self._states[name] != "done"} - self._checked
        check_stages(self._run, left)
        self._checked |= left

    def run(self, names: Sequence[str]) -> None:
        """Run stages in order, or what is left of them.

        Raises:
            UsageError: An earlier stage that one of these needs is not done, or as `check`.
            ModeRayError: As the stages raise.
        """
        self.check(names)
        for name in self._present(names):
            if self._states[name] == "done":
                self._progress.say(f"[{name}] done before")
                continue
            self._require_earlier(name)
            self._begin(name)
            manifest = self._entries[name].run(self._run, self._stages[name], self._progress)
            if name == "cluster" and not self._run.config.reuses_clustering:
                self._progress.say(f"[cluster] atlas: {self.make_atlas()}")
            self._progress.end(manifest)
            self._states[name] = "done"
            if name == "assign":
                self._after_assign()

    def drift(self) -> None:
        """Compare the assigned captions with those that the clustering was fitted on, and print the differences.

        Raises:
            UsageError: The assign stage is not done.
            DataError: The clustering does not say what it was fitted on.
        """
        self._progress.show(drift_view(run_drift(self._run)))

    def sweep(self) -> SweepReport:
        """Try out the training fields of `sweep`; the train stage is neither needed nor touched.

        Raises:
            ModeRayError: As `run_sweep`.
        """
        from mode_ray.sweep.run import run_sweep  # Ray Tune is slow to import, and the stages do without

        return run_sweep(self._run, self._progress.say)

    def atlas(self) -> Location:
        """Write the clustering's atlas, an HTML page, and return where it is.

        Raises:
            UsageError: The cluster stage is not done.
            DataError: None of the sampled captions can be read again.
        """
        if self._states["cluster"] != "done":
            raise UsageError("the atlas needs the cluster stage, which is not done: run `mode-ray cluster` first")
        return self.make_atlas()

    def make_atlas(self) -> Location:
        """Write the atlas of a clustering that exists, whether the stage is marked as done or not."""
        return make_atlas(self._run)

    def extend(self, request: ExtensionRequest) -> Clustering:
        """Write a clustering with new centers for the far captions of this run.

        Raises:
            ModeRayError: As `run_extension`.
        """
        self._progress.begin("cluster extend", len(self._run.work_units))
        return run_extension(self._run, request, self._progress.unit)

    def retry(self, trial: str) -> None:
        """Train one run of the train stage alone and forget its failure.

        The stage is done if it was the last one that was missing.

        Args:
            trial: Its name, or the number of an expert.

        Raises:
            UsageError: There is nothing to retry by that name, or the stage before is not done.
            TrainingError: It failed again.
        """
        self._require_earlier("train")
        self._begin("train")
        manifest = retry_trial(self._run, self._stages["train"], trial, self._progress)
        if manifest is None:
            self._progress.say(f"[train] {trial} is finished; other runs are not: `mode-ray train` continues them")
        else:
            self._progress.end(manifest)

    def _after_assign(self) -> None:
        run = self._run
        if run.config.reuses_clustering:
            self.drift()
        # A reused clustering may have been copied without an atlas; its captions can be sampled now.
        if not (run.clusters / SUMMARY_FILE).exists():
            self._progress.say(f"[assign] atlas: {self.make_atlas()}")

    def _present(self, names: Sequence[str]) -> list[str]:
        """Those of some stages that the run has.

        Raises:
            UsageError: It has none of them.
        """
        present = [name for name in names if name in self._states]
        if names and not present:
            raise UsageError(
                f"{', '.join(names)}: this run has no such stage; set train.data.mode=features, so that training "
                "reads features instead of images"
            )
        return present

    def _require_earlier(self, name: str) -> None:
        order = list(self._stages)
        needs = self._entries[name].needs
        for earlier in order[: order.index(name)] if needs is None else needs:
            if self._states[earlier] != "done":
                raise UsageError(
                    f"{name} needs the {earlier} stage, which is not done: run `mode-ray {earlier}` first"
                )

    def _begin(self, name: str) -> None:
        """Say what there is to do."""
        entry, progress = self._entries[name], self._progress
        units = entry.units(self._run)
        if entry.pool is None or units == 0:
            progress.begin(name, units)
            return
        plan = plan_units(self._stages[name], self._run.work_units)
        progress.begin(name, units, len(plan.finished), entry.pool(self._run.config).max_actors)
        if plan.replaced:
            progress.say(f"[{name}] {len(plan.replaced)} units are processed again: their source was replaced")
        if plan.vanished:
            progress.say(f"[{name}] {len(plan.vanished)} outputs are removed: no file has these units any more")
