"""The files of an ensemble: a run directory, an exported folder, or a model of the Hugging Face hub."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, ValidationError

from mode_ray.cluster.clustering import Clustering
from mode_ray.config.base import PositiveInt, Settings
from mode_ray.config.load import load_config
from mode_ray.config.run import EncoderConfig, EncoderPlacement, RoutingConfig, RunConfig
from mode_ray.embed.encoder import encoder_config
from mode_ray.errors import DataError, UsageError
from mode_ray.models.architecture import HUB_PREFIX, hub_name
from mode_ray.models.files import find_problem
from mode_ray.run_directory import FINE_FILE, RUN_CONFIG, stage_directories
from mode_ray.stages.manifest import read_manifest
from mode_ray.storage import Location
from mode_ray.train.plan import expert_name

ENSEMBLE_FILE = "mode_ray.json"
CLUSTERING_FOLDER = "clustering"
_HUB_PATTERNS = (ENSEMBLE_FILE, f"{CLUSTERING_FOLDER}/*", "expert-*/*")


class EnsembleDescription(Settings):
    """What an exported folder says of its ensemble; `mode_ray.json`."""

    experts: PositiveInt
    """Number of experts; their folders are `expert-00`, `expert-01`, …"""
    encoder: EncoderConfig = Field(default_factory=EncoderConfig)
    """The caption encoder that the clustering was made with."""
    routing: RoutingConfig = RoutingConfig()
    """The routing rule and its parameters."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EnsembleSource:
    """What an ensemble is read from; models and encoder are not loaded yet.

    Attributes:
        place: Where it was found.
        clusters: Directory of the clustering.
        clustering: The clustering.
        encoder: The caption encoder's config.
        encoder_placement: Device and batch size of the caption encoder.
        routing: The routing rule and its parameters.
        experts: The experts' folders in order of their ids; None for an expert that is left out.
    """

    place: Location
    clusters: Location
    clustering: Clustering
    encoder: EncoderConfig
    encoder_placement: EncoderPlacement
    routing: RoutingConfig
    experts: Sequence[Location | None]


def expert_folder(number: int) -> str:
    """Name of an expert's folder in an exported ensemble."""
    return f"expert-{number:02d}"


def find_source(source: str | Path | Location, leave_out: Sequence[int]) -> EnsembleSource:
    """Find out what a path or URI holds, and read its clustering.

    Args:
        source: A run directory, an exported folder, local, `s3://…` or `gs://…`, or `hf-hub:ORG/NAME`.
        leave_out: Experts to do without.

    Raises:
        UsageError: Nothing of the kind exists there, a stage is not done, or an expert to leave out does not exist.
        DataError: A file is missing or damaged; the message names it.
    """
    place = _fetched(source) if isinstance(source, str) and source.startswith(HUB_PREFIX) else _parsed(source)
    if (place / RUN_CONFIG).exists():
        return _of_run(place, leave_out)
    if (place / CLUSTERING_FOLDER / FINE_FILE).exists():
        return _of_export(place, leave_out)
    if not place.exists():
        raise UsageError(f"{place}: no such directory; name a run, a folder that `mode-ray export` wrote, or hf-hub:…")
    raise UsageError(
        f"{place}: neither a run (no {RUN_CONFIG}) nor an exported ensemble (no {CLUSTERING_FOLDER}/{FINE_FILE})"
    )


def read_run_config(run: Location, overrides: Sequence[str] = ()) -> RunConfig:
    """The config in a run's directory, with overrides.

    Raises:
        UsageError: There is none, or it is wrong.
    """
    file = run / RUN_CONFIG
    if not file.exists():
        raise UsageError(f"{run}: not a run directory: it has no {RUN_CONFIG}")
    return load_config(file.uri, [*overrides, f"run={run.uri}"])


def _parsed(source: str | Path | Location) -> Location:
    return source if isinstance(source, Location) else Location.parse(str(source))


def _fetched(source: str) -> Location:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Location.parse(snapshot_download(hub_name(source), allow_patterns=list(_HUB_PATTERNS)))
    except (OSError, HFValidationError) as error:
        raise UsageError(f"{source}: cannot be fetched from the hub: {_one_line(error)}") from None


def _of_run(run: Location, leave_out: Sequence[int]) -> EnsembleSource:
    config = read_run_config(run)
    directories, n = stage_directories(run), config.train.experts
    clusters = directories["cluster"]
    if read_manifest(clusters) is None:
        raise UsageError(f"{clusters}: the cluster stage is not done: run `mode-ray cluster` first")
    names = {expert: expert_name(n, expert) for expert in range(n)}
    return EnsembleSource(
        place=run,
        clusters=clusters,
        clustering=Clustering.load(clusters),
        encoder=config.encoder,
        encoder_placement=config.embed.encoder,
        routing=config.routing,
        experts=_folders(directories["train"], names, [*config.evaluate.leave_out_experts, *leave_out]),
    )


def _of_export(folder: Location, leave_out: Sequence[int]) -> EnsembleSource:
    clusters = folder / CLUSTERING_FOLDER
    clustering = Clustering.load(clusters)
    description = _described(folder, clustering)
    names = {expert: expert_folder(expert) for expert in range(description.experts)}
    return EnsembleSource(
        place=folder,
        clusters=clusters,
        clustering=clustering,
        encoder=description.encoder,
        encoder_placement=EncoderPlacement(),
        routing=description.routing,
        experts=_folders(folder, names, leave_out),
    )


def _described(folder: Location, clustering: Clustering) -> EnsembleDescription:
    file = folder / ENSEMBLE_FILE
    if file.exists():
        try:
            return EnsembleDescription.model_validate(json.loads(file.read_text()))
        except (ValueError, ValidationError) as error:
            raise DataError(f"{file}: no description of an ensemble ({_one_line(error)}); export again") from None
    # Version 0.1.0 exported no such file. The name of the encoder says which one it was.
    n = sum((folder / expert_folder(number)).exists() for number in range(max(clustering.coarse, default=0)))
    if n == 0:
        raise UsageError(f"{folder}: holds no expert-00: a single model is loaded by open_clip: local-dir:{folder}")
    return EnsembleDescription(experts=n, encoder=encoder_config(clustering.encoder_name))


def _folders(parent: Location, names: Mapping[int, str], leave_out: Sequence[int]) -> list[Location | None]:
    unknown = sorted(set(leave_out) - set(names))
    if unknown or set(leave_out) >= set(names):
        raise UsageError(f"leave_out={sorted(set(leave_out))}: experts are 0 to {len(names) - 1}, and one must stay")
    folders = [None if expert in leave_out else parent / name for expert, name in names.items()]
    for expert, folder in enumerate(folders):
        problem = None if folder is None else find_problem(folder)
        if problem is not None:
            raise DataError(f"{problem}: train or copy it again, or do without it: leave_out=[{expert}]")
    return folders


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
