"""The files of an ensemble: a run directory, an exported folder, or a model of the Hugging Face hub."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mode_ray.cluster.clustering import Clustering
from mode_ray.config.captions import EncoderConfig, EncoderPlacement
from mode_ray.config.evaluate import RoutingConfig
from mode_ray.config.images import ImagesConfig
from mode_ray.config.load import load_config
from mode_ray.config.run import RunConfig
from mode_ray.embed.encoder import encoder_config
from mode_ray.errors import DataError, UsageError
from mode_ray.models.architecture import HUB_PREFIX, hub_name
from mode_ray.models.files import find_problem
from mode_ray.routing.description import EnsembleDescription, read_description
from mode_ray.run_directory import (
    CLUSTERING_FOLDER,
    ENSEMBLE_FILE,
    FINE_FILE,
    RUN_CONFIG,
    TRUNK_FOLDER,
    expert_folder,
    require_run,
    stage_directories,
)
from mode_ray.stages.manifest import read_manifest
from mode_ray.storage import Location
from mode_ray.train.plan import expert_name

# Read from the hub: what the ensemble needs, and nothing else of the repository.
_HUB_PATTERNS = (ENSEMBLE_FILE, f"{CLUSTERING_FOLDER}/*", f"{TRUNK_FOLDER}/*", "expert-*/*")


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
        images: How images become pixels, as in the training of the experts.
        experts: The experts' folders in order of their ids; None for an expert that is left out.
    """

    place: Location
    clusters: Location
    clustering: Clustering
    encoder: EncoderConfig
    encoder_placement: EncoderPlacement
    routing: RoutingConfig
    images: ImagesConfig
    experts: Sequence[Location | None]


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
    if place.name == RUN_CONFIG:
        require_run(place)
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
    require_run(run)
    return load_config((run / RUN_CONFIG).uri, [*overrides, f"run={run.uri}"])


def _parsed(source: str | Path | Location) -> Location:
    return source if isinstance(source, Location) else Location.parse(str(source))


def _fetched(source: str) -> Location:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Location.parse(snapshot_download(hub_name(source), allow_patterns=list(_HUB_PATTERNS)))
    except (OSError, HFValidationError) as error:
        raise UsageError(f"{source}: cannot be read from the Hugging Face hub: {_one_line(error)}") from None


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
        images=config.images,
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
        images=description.images,
        experts=_folders(folder, names, leave_out),
    )


def _described(folder: Location, clustering: Clustering) -> EnsembleDescription:
    description = read_description(folder)
    if description is None:
        # Version 0.1.0 exported no description. The clustering names its encoder.
        n = sum((folder / expert_folder(number)).exists() for number in range(max(clustering.coarse, default=0)))
        if n == 0:
            raise UsageError(
                f"{folder}: a single expert, not an ensemble (no {expert_folder(0)}): "
                f"open_clip loads it as local-dir:{folder}"
            )
        description = EnsembleDescription(experts=n, encoder=encoder_config(clustering.encoder_name))
    if description.experts not in clustering.coarse:
        raise DataError(
            f"{folder}: {description.experts} experts, but its clustering has maps for {sorted(clustering.coarse)} "
            "experts: copy or export it again"
        )
    return description


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
