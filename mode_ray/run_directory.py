"""The layout of a run directory: the name of every directory and file in it.

    config.yaml  versions.json  shards.parquet
    embeddings/ clusters/ assignments/ features/ experts/ evaluation/     one directory per stage
    far_captions/ index/ serving/ sweep/                        written by commands beside the stages

Other modules read and write these files and import their names from here. Two kinds of names belong to others: the
files of a model's folder, which open_clip defines (`mode_ray.models.architecture`), and the name of a training run,
which is its folder in `experts/` (`mode_ray.train.plan`). This module imports nothing heavy, so that `mode-ray
status` is fast.
"""

from mode_ray.errors import UsageError
from mode_ray.storage import Location

STAGE_DIRECTORIES = {
    "embed": "embeddings",
    "cluster": "clusters",
    "assign": "assignments",
    "features": "features",
    "train": "experts",
    "evaluate": "evaluation",
}
STAGE_NAMES = tuple(STAGE_DIRECTORIES)
OPTIONAL_STAGES = frozenset({"features"})
"""Stages that only some runs have."""

# In the run directory itself.
RUN_CONFIG = "config.yaml"
VERSIONS = "versions.json"
LISTING = "shards.parquet"
FAR_DIRECTORY = "far_captions"

# In the directory of every stage; the units of `cluster`, `train` and `evaluate` are not parquet files.
STARTED = "started.json"
UNITS = "units.parquet"
MANIFEST = "manifest.json"
QUARANTINE = "quarantine.json"
JOURNAL_DIRECTORY = "records"
JOURNAL_SUFFIX = ".records"  # not .parquet: that is the suffix of outputs
CAPTION_COUNTS = "caption_counts.parquet"

# In clusters/ and assignments/.
FINE_FILE = "fine.safetensors"
FIT_PROGRESS = "fit_progress.json"
FIT_STATE = "fit_state.safetensors"
ATLAS_HTML = "atlas.html"
SUMMARY_FILE = "summary.json"
DRIFT_FILE = "drift.json"
FINE_COUNTS_FILE = "fine_counts.json"

# In experts/.
LEASE_FILE = "lease.json"
PLAN_FILE = "trials.json"
WORK_UNITS_FILE = "shards.parquet"
TRAINING_SETS = "training_sets"
TENSORBOARD_FOLDER = "tensorboard"

# In the folder of one training run.
STATUS_FILE = "status.json"
PROGRESS_FILE = "progress.json"
METRICS_FILE = "metrics.json"
ERROR_FILE = "error.txt"
INTERRUPTIONS_FILE = "interruptions.json"
STOP_FILE = "stop.json"
STATE_FILE = "training_state.pt"
CURVE_FILE = "held_out.json"
CHECKPOINT_FOLDER = "checkpoints"
CHECKPOINT_WEIGHTS = "model.safetensors"

# In evaluation/, and in its directory of one task.
REPORT_JSON = "report.json"
REPORT_HTML = "report.html"
RULES_DIRECTORY = "rules"
TASK_SUMMARY = "task.json"
LABELS_FILE = "labels.npy"
ROUTING_FILE = "routing_texts.npy"

# In sweep/, and in its directory of one trial.
SWEEP_RESULTS = "results.json"
SWEEP_BEST = "best.yaml"
SWEEP_RESULT = "result.json"

# In a folder that `mode-ray export` wrote.
ENSEMBLE_FILE = "mode_ray.json"
CLUSTERING_FOLDER = "clustering"
TRUNK_FOLDER = "trunk"
"""The common trunk of the experts, whose folders then hold their heads only."""


def stage_directories(run: Location) -> dict[str, Location]:
    """The directory of every stage of a run."""
    return {name: run / directory for name, directory in STAGE_DIRECTORIES.items()}


def unit_output(directory: Location, unit: str) -> Location:
    """The output of a work unit of a stage."""
    return directory / f"{unit}.parquet"


def is_unit_output(file_name: str) -> bool:
    """Whether a file of a stage's directory is the output of a work unit."""
    return file_name.endswith(".parquet") and file_name not in (UNITS, CAPTION_COUNTS)


def coarse_file(n: int) -> str:
    """Name of the file in `clusters/` with the map of the fine centers to n experts."""
    return f"coarse-n{n}.safetensors"


def expert_folder(number: int) -> str:
    """Name of the folder of an expert in an exported ensemble."""
    return f"expert-{number:02d}"


def training_set_file(training_sets: Location, name: str) -> Location:
    """The index of a training set."""
    return training_sets / f"{name}.arrow"


def measured_task(evaluation: Location, task: str) -> Location:
    """The directory of a task's measurements in an evaluation."""
    return evaluation / "tasks" / task


def cosine_file(directory: Location, model: str) -> Location:
    """The cosines of a model in the directory of a task."""
    return directory / "cosines" / f"{model.replace('/', '_')}.npy"


def report_page(run: Location) -> Location:
    """The HTML report of a run."""
    return run / STAGE_DIRECTORIES["evaluate"] / REPORT_HTML


def index_embeddings(run: Location) -> Location:
    """The image embeddings of a run's index."""
    return run / "index" / "embeddings"


def index_parts(run: Location) -> Location:
    """The faiss parts of a run's index."""
    return run / "index" / "faiss"


def part_name(number: int) -> str:
    """Name of the file of a faiss part."""
    return f"part-{number:05d}.faiss"


def sweep_directory(run: Location) -> Location:
    """The directory of a run's sweep."""
    return run / "sweep"


def sweep_held_out(sweep: Location, places_hash: str) -> Location:
    """The held-out pairs of a sweep, by a hash of their places."""
    return sweep / f"{places_hash}-held_out.parquet"


def sweep_storage(sweep: Location) -> Location:
    """What Ray Tune stores of a sweep."""
    return sweep / "tune"


def served_tasks(run: Location) -> Location:
    """The tasks that clients register with the service of a run, unless `serve.task_directory` names another place."""
    return run / "serving" / "tasks"


def require_run(run: Location) -> None:
    """Check that a directory is that of a run.

    Raises:
        UsageError: It is not; the message says which directory was probably meant.
    """
    if (run / RUN_CONFIG).exists():
        return
    if run.name == RUN_CONFIG and run.exists():
        raise UsageError(f"{run}: the config of a run, not its directory: give {run.parent}")
    raise UsageError(f"{run}: no run here (no {RUN_CONFIG}); give the directory that the config calls `run`")
