"""The `export` command: folders that open_clip, `mode_ray.load` and the Hugging Face hub accept as they are."""

from dataclasses import dataclass

import numpy as np

from mode_ray.cluster.reuse import read_reused
from mode_ray.config.former_defaults import keep_former_defaults
from mode_ray.config.run import RunConfig
from mode_ray.errors import UsageError
from mode_ray.export.card import CARD_FILE, CardKind, is_license, render_card
from mode_ray.export.facts import ExpertFacts, RunFacts, collect_facts
from mode_ray.export.target import new_directory
from mode_ray.models.architecture import WEIGHTS_FILE, model_files
from mode_ray.routing.description import EnsembleDescription, write_description
from mode_ray.run_directory import CLUSTERING_FOLDER, RUN_CONFIG, expert_folder, stage_directories
from mode_ray.storage import Location


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """What to export.

    Attributes:
        target: Directory to write; absent or empty.
        expert: One expert alone; by default all of them.
        average: Write the mean of the experts' weights in place of the experts.
        uniform: Weight all experts equally in that mean, rather than by their pairs.
        shared_trunk: Write the experts' common trunk once, and a head for each of them, for `mode_ray.load`.
        license_id: Licence for the card; None leaves the choice to whoever publishes the model.
    """

    target: Location
    expert: int | None = None
    average: bool = False
    uniform: bool = False
    shared_trunk: bool = False
    license_id: str | None = None


def run_export(config: RunConfig, request: ExportRequest) -> None:
    """Write the export; nothing of the run changes.

    Raises:
        UsageError: The train stage is not done, there is no such expert, the target is not empty, or the experts have
            no common trunk.
        DataError: A model or the clustering is missing or damaged.
    """
    config = keep_former_defaults(config, config.directory / RUN_CONFIG)  # the card names the architecture
    _check(config, request)
    facts = collect_facts(config)
    clusters = stage_directories(config.directory)["cluster"]
    with new_directory(request.target) as folder:
        if request.average:
            _write_average(folder, facts, uniform=request.uniform)
            card = render_card(facts, "average", request.license_id, uniform=request.uniform)
        elif request.expert is not None:
            expert = facts.experts[request.expert]
            _copy_clustering(clusters, folder / CLUSTERING_FOLDER)
            _copy_model(expert, folder)
            card = render_card(facts, "expert", request.license_id, expert)
        else:
            _copy_clustering(clusters, folder / CLUSTERING_FOLDER)
            _write_experts(folder, facts, clusters, request)
            description = EnsembleDescription(
                experts=len(facts.experts), encoder=config.encoder, routing=config.routing, images=config.images
            )
            write_description(folder, description)
            kind: CardKind = "heads" if request.shared_trunk else "ensemble"
            card = render_card(facts, kind, request.license_id)
        (folder / CARD_FILE).write_text(card)


def _check(config: RunConfig, request: ExportRequest) -> None:
    n = config.train.experts
    if request.expert is not None and not 0 <= request.expert < n:
        raise UsageError(f"--expert {request.expert}: the experts of this run are 0 to {n - 1}")
    if request.average and request.expert is not None:
        raise UsageError("--average is of all experts: leave out --expert")
    if request.uniform and not request.average:
        raise UsageError("--uniform says how to average: give --average too")
    if request.shared_trunk and (request.average or request.expert is not None):
        raise UsageError("--shared-trunk is for all experts together: leave out --average and --expert")
    if request.license_id is not None and not is_license(request.license_id):
        raise UsageError(f"--license {request.license_id}: give a licence id such as apache-2.0")


def _write_experts(folder: Location, facts: RunFacts, clusters: Location, request: ExportRequest) -> None:
    if request.shared_trunk:
        from mode_ray.export.shared_trunk import write_shared_trunk  # needs torch, which copies do not

        write_shared_trunk([expert.folder for expert in facts.experts], folder)
        return
    for expert in facts.experts:
        own = folder / expert_folder(expert.number)
        _copy_model(expert, own)
        _copy_clustering(clusters, own / CLUSTERING_FOLDER)
        (own / CARD_FILE).write_text(render_card(facts, "expert", request.license_id, expert))


def _write_average(folder: Location, facts: RunFacts, *, uniform: bool) -> None:
    import safetensors.torch

    from mode_ray.export.average import average_weights  # needs torch, which copies do not

    experts = facts.experts
    weight_c = np.ones(len(experts)) if uniform else np.array([expert.pairs for expert in experts], np.float64)
    tensors = average_weights([expert.folder for expert in experts], weight_c)
    for file in model_files(experts[0].folder):
        if file.name == WEIGHTS_FILE:
            (folder / WEIGHTS_FILE).write_bytes(safetensors.torch.save(tensors))
        else:
            file.copy_to(folder / file.name)


def _copy_model(expert: ExpertFacts, target: Location) -> None:
    for file in model_files(expert.folder):
        file.copy_to(target / file.name)


def _copy_clustering(clusters: Location, target: Location) -> None:
    for name, data in read_reused(clusters).files.items():
        (target / name).write_bytes(data)
