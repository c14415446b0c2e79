"""The run that is served, read from its directory."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

from mode_ray.atlas.summary import near_captions, read_summary, terms_by_cluster
from mode_ray.cluster.clustering import Clustering
from mode_ray.config.run import RunConfig
from mode_ray.config.serve import ServeConfig
from mode_ray.embed.encoder import CaptionEncoder
from mode_ray.embed.load import load_encoder
from mode_ray.ensemble.source import read_run_config
from mode_ray.errors import DataError, UsageError
from mode_ray.models.files import find_problem
from mode_ray.models.preprocess import ImageGeometry, read_model_config
from mode_ray.run_directory import ATLAS_HTML, STAGE_DIRECTORIES, served_tasks, stage_directories
from mode_ray.stages.manifest import read_manifest
from mode_ray.storage import Location
from mode_ray.train.plan import expert_name
from mode_ray.train.runs.status import read_status

_NEEDED_STAGES = ("cluster", "train")
_MOST_GROWTHS = 100

_Held = TypeVar("_Held")


@dataclass(frozen=True, kw_only=True, eq=False)
class ServedRun:
    """A run as the service needs it.

    Attributes:
        run: Its directory.
        config: Its config, with overrides.
        clustering: Fine centers and coarse maps.
        experts: The experts' folders by id.
        geometry: How images are resized for the experts.
        captions: Captions near every fine center, nearest first; empty lists if no atlas was made.
        terms: Typical words of every fine cluster; empty lists if no atlas was made.
        atlas: The atlas page; None if no atlas was made.
    """

    run: Location
    config: RunConfig
    clustering: Clustering
    experts: Mapping[int, Location]
    geometry: ImageGeometry
    captions: Sequence[Sequence[str]]
    terms: Sequence[Sequence[str]]
    atlas: Location | None

    @property
    def n(self) -> int:
        """Number of experts."""
        return self.config.train.experts

    @property
    def task_directory(self) -> Location:
        """Directory of the registered tasks."""
        return task_directory(self.run, self.config.serve)

    def load_encoder(self) -> CaptionEncoder:
        """The caption encoder that the clustering was made with.

        Raises:
            UsageError: It cannot be found.
            DataError: Its files are damaged.
        """
        return load_encoder(self.config.encoder, self.config.embed.encoder.elsewhere)

    @classmethod
    def load(cls, run: Location, overrides: Sequence[str] = ()) -> Self:
        """Read a trained run.

        Args:
            run: Its directory, which may have been copied.
            overrides: `dotted.key=value` texts that change its config.

        Raises:
            UsageError: The directory is no run, a stage is not done, or an override is wrong.
            DataError: A file is missing or damaged, or the experts take images of different sizes.
        """
        config = read_run_config(run, overrides)
        directories = stage_directories(run)
        for stage in _NEEDED_STAGES:
            if read_manifest(directories[stage]) is None:
                raise UsageError(f"{directories[stage]}: the {stage} stage is not done: run `mode-ray {stage}` first")
        clustering = Clustering.load(directories["cluster"])
        n = config.train.experts
        clustering.experts_of(n)
        experts = {expert: directories["train"] / expert_name(n, expert) for expert in range(n)}
        for problem in filter(None, map(find_problem, experts.values())):
            raise DataError(f"{problem}: copy or train it again (`mode-ray train retry`): serving needs every expert")
        centers = len(clustering.centers_md)
        summary = read_summary(directories["cluster"], centers)
        page = directories["cluster"] / ATLAS_HTML
        return cls(
            run=run,
            config=config,
            clustering=clustering,
            experts=experts,
            geometry=_shared_geometry(list(experts.values())),
            captions=near_captions(summary, centers),
            terms=terms_by_cluster(summary, centers),
            atlas=page if page.exists() else None,
        )

    @staticmethod
    def expert_folder(run: Location, expert: int, folder: str | None = None) -> Location:
        """The folder of an expert's model.

        Args:
            run: The run's directory.
            expert: The expert's number.
            folder: Another folder than the run's.

        Raises:
            UsageError: There is no such run, or the run has no expert with this number: no router would ask it.
        """
        n = read_run_config(run).train.experts
        if not 0 <= expert < n:
            raise UsageError(f"{run}: there is no expert {expert}: the run has {n}, from 0 to {n - 1}")
        return run / STAGE_DIRECTORIES["train"] / expert_name(n, expert) if folder is None else Location.parse(folder)


def task_directory(run: Location, settings: ServeConfig) -> Location:
    """Directory of the tasks that clients register with the service of a run."""
    return Location.parse(settings.task_directory) if settings.task_directory else served_tasks(run)


def held_experts(grown: ServedRun, models: Mapping[_Held, Location]) -> dict[int, _Held]:
    """Which applications serve experts of a run that reuses experts of another run (`train add`).

    Args:
        grown: The run.
        models: The folder that each model was loaded from, by what serves it.

    Returns:
        What serves an expert by its number in the grown run, without experts that nothing serves.
    """
    holders = {folder.uri: held for held, folder in models.items()}
    found = {
        expert: next((holders[origin.uri] for origin in _origins(folder) if origin.uri in holders), None)
        for expert, folder in grown.experts.items()
    }
    return {expert: held for expert, held in found.items() if held is not None}


def _origins(folder: Location) -> Iterator[Location]:
    """A model's folder, the folder that it was copied from, and so on; copies are equal byte by byte."""
    for _ in range(_MOST_GROWTHS):
        yield folder
        status = read_status(folder)
        if status is None or status.taken_from is None:
            return
        folder = Location.parse(status.taken_from)


def _shared_geometry(folders: Sequence[Location]) -> ImageGeometry:
    geometries = [ImageGeometry.of_model(read_model_config(folder)) for folder in folders]
    for folder, geometry in zip(folders, geometries, strict=True):
        if geometry != geometries[0]:
            raise DataError(
                f"{folder}: takes images as {geometry}, but {folders[0]} as {geometries[0]}: experts that are served "
                "together must take the same images"
            )
    return geometries[0]
