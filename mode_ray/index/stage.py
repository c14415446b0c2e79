"""`mode-ray index` and `mode-ray search`: two stages that make an index beside a run, and a query against it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from mode_ray.captions.listing import list_work_units
from mode_ray.cluster.clustering import Clustering
from mode_ray.config.base import config_hash
from mode_ray.config.run import RunConfig
from mode_ray.config.train import LockConfig
from mode_ray.embed.encoder import encoder_name
from mode_ray.embed.load import load_encoder
from mode_ray.errors import DataError, UsageError
from mode_ray.evaluate.measure.models import check_models, find_trained
from mode_ray.index.parts import Hit, ImageIndex, build_parts
from mode_ray.models.files import weights_mark
from mode_ray.run_directory import index_embeddings, index_parts, stage_directories
from mode_ray.stages.execute import UnitWork
from mode_ray.stages.manifest import Manifest, Stage, UnitRecord, combined_hash, read_manifest
from mode_ray.stages.resume import plan_units, refuse_replaced_sources, run_work_unit_stage
from mode_ray.stages.run import Run
from mode_ray.stages.work_unit import PAIR_FORMATS, WorkUnit, require_images
from mode_ray.storage import Location
from mode_ray.train.plan import expert_name
from mode_ray.util.ray_tasks import process_kept, task_result

_FEW_IMAGES = 10_000
_EXPERTS_FIELD = "inputs.train (weights of the experts)"


@dataclass(frozen=True)
class IndexStages:
    """The two stages of an index.

    Attributes:
        work_units: The work units.
        models: The experts' folders, in order of their ids; None for those that are left out.
        embed: Embeds the images, one output a shard.
        parts_directory: Of the faiss parts.
    """

    work_units: Sequence[WorkUnit]
    models: Sequence[Location | None]
    embed: Stage
    parts_directory: Location

    def parts(self, embedded: Manifest, rows_per_part: int) -> Stage:
        """The stage that makes faiss parts of the embeddings; it depends on their content."""
        fields: dict[str, object] = {
            "index.rows_per_part": rows_per_part,
            "inputs.index": embedded.content_hash,
        }
        return Stage("index parts", self.parts_directory, fields)


def index_stages(run: Run, train: Stage) -> IndexStages:
    """List the images and find the experts.

    Args:
        run: The run.
        train: Its train stage, on which the index depends.

    Raises:
        UsageError: The train stage is not done but for experts that are left out, or the shards hold captions only.
        DataError: An expert's model or an image file is missing or half-written; names the file.
    """
    config, captions = run.config, run.config.captions
    models = _present_experts(config)
    listing = captions.model_copy(
        update={
            "paths": config.index.images or captions.paths,
            "max_rows_per_unit": config.index.max_rows_per_unit,
        }
    )
    field = "index.images" if config.index.images else "captions.paths"
    work_units = list_work_units(listing, formats=PAIR_FORMATS, field=field)
    require_images(work_units)
    fields: dict[str, object] = {
        "captions.image_field": captions.image_field,
        "captions.key_field": captions.key_field,
        "captions.format": captions.format,
        "index.max_rows_per_unit": config.index.max_rows_per_unit,
        # Indexes of before have no such field.
        **({} if config.index.precision == "float32" else {"index.precision": config.index.precision}),
        "index.images (files found)": combined_hash(sorted({work_unit.uri for work_unit in work_units})),
        "limits.max_image_pixels": config.limits.max_image_pixels,
        "inputs.train": config_hash(train.fields),
        _EXPERTS_FIELD: _marks(config, models),
    }
    stage = Stage("index", index_embeddings(config.directory), fields)
    return IndexStages(work_units, models, stage, index_parts(config.directory))


def run_index(
    config: RunConfig,
    stages: IndexStages,
    on_begin: Callable[[str, int, int], None],
    on_record: Callable[[UnitRecord], None],
) -> Manifest:
    """Make the index, or what is left of it.

    Args:
        config: The run's config.
        stages: Its stages.
        on_begin: Called with a stage's name, its units, and how many of them stand.
        on_record: Called with every new record.

    Returns:
        The manifest of the faiss parts; `summary["parts"]` and `summary["images"]` tell what stands.

    Raises:
        UsageError: The index was begun with another config.
        DataError: More shards are unreadable, or more images unusable, than `limits` allows.
    """
    embedded = stages.embed.manifest() if stages.embed.state() == "done" else None
    if embedded is None:
        finished = plan_units(stages.embed, stages.work_units).finished
        on_begin("index", len(stages.work_units), len(finished))
        embedded = _embed(config, stages, on_record)
    else:
        refuse_replaced_sources(stages.embed, stages.work_units)
    parts = stages.parts(embedded, config.index.rows_per_part)
    done = parts.manifest() if parts.state() == "done" else None
    if done is not None:
        return done
    on_begin("index parts", 1, 0)
    parts.begin(1)
    kept = process_kept(embedded.rows_out <= _FEW_IMAGES)
    build: Any = ray.remote(num_cpus=config.index.pool.cpus_per_actor, **kept)(build_parts)
    count = task_result(
        build.options(name="index parts", label_selector=config.index.pool.required_labels).remote(
            stages.embed.directory, parts.directory, config.index.rows_per_part
        )
    )
    record = UnitRecord(
        unit="parts",
        source=stages.embed.directory.uri,
        rows_in=embedded.rows_out,
        rows_out=embedded.rows_out,
        attempt=parts.attempt,
    )
    on_record(record)
    return parts.finish([record], {"parts": count, "images": embedded.rows_out})


def search_index(config: RunConfig, texts: Sequence[str], count: int, *, as_one_task: bool = False) -> list[list[Hit]]:
    """Search the index of a run in this process.

    Args:
        config: The run's config; its `routing` weighs the experts and may differ from query to query.
        texts: The queries.
        count: Images to find for each.
        as_one_task: Whether all texts together are the task; by default each is a task of its own.

    Returns:
        For every query its hits, best first.

    Raises:
        UsageError: There is no finished index, or no text.
        DataError: A file is damaged, or clustering or index are of another encoder or other experts.
    """
    from mode_ray.index.query import QueryEncoder
    from mode_ray.models.together import load_experts  # these need torch, which usage errors need not wait for

    embeddings, parts = index_embeddings(config.directory), index_parts(config.directory)
    built = read_manifest(parts)
    if built is None:
        raise UsageError(f"{parts}: there is no finished index: run `mode-ray index` first")
    models = _present_experts(config)
    _check_experts(embeddings, models, _marks(config, models))
    clusters = stage_directories(config.directory)["cluster"]
    clustering = Clustering.load_for(clusters, encoder_name(config.encoder))
    present = {expert: folder for expert, folder in enumerate(models) if folder is not None}
    loaded = load_experts(present, "cpu")
    experts = [loaded.get(expert) for expert in range(len(models))]
    encoder = load_encoder(config.encoder, config.embed.encoder.elsewhere)
    query = QueryEncoder(experts, encoder, clustering, config.routing)
    index = ImageIndex(embeddings, parts, int(built.summary["parts"]))
    scores_lk, positions_lk = index.search(query.encode(texts, as_one_task=as_one_task), count)
    return [index.hits(scores, places) for scores, places in zip(scores_lk, positions_lk, strict=True)]


def _present_experts(config: RunConfig) -> list[Location | None]:
    """The experts' folders, trained and whole; None for those that `evaluate.leave_out_experts` names."""
    n, directory = config.train.experts, stage_directories(config.directory)["train"]
    left_out = config.evaluate.leave_out_experts
    find_trained(n, left_out, directory)
    names = [None if expert in left_out else expert_name(n, expert) for expert in range(n)]
    check_models(n, {name: directory / name for name in names if name is not None})
    return [None if name is None else directory / name for name in names]


def _marks(config: RunConfig, models: Sequence[Location | None]) -> list[str | None]:
    """The identities of the experts' weights."""
    locked = config.train.model.lock != LockConfig()
    return [None if folder is None else weights_mark(folder, locked=locked) for folder in models]


def _check_experts(embeddings: Location, models: Sequence[Location | None], present: Sequence[str | None]) -> None:
    """Refuse a search with an expert whose block the index does not have."""
    manifest = read_manifest(embeddings)
    marks: Any = None if manifest is None else manifest.fields.get(_EXPERTS_FIELD)
    fix = f"delete {embeddings.parent} and run `mode-ray index` again"
    if not isinstance(marks, list) or len(marks) != len(models):
        raise DataError(f"{embeddings}: the index is not of this run's {len(models)} experts: {fix}")
    for expert, (mark, folder, found) in enumerate(zip(marks, models, present, strict=True)):
        if folder is None:
            continue
        if mark is None:
            raise DataError(
                f"{embeddings}: the index was made without expert {expert}: search without it "
                f"(evaluate.leave_out_experts=[{expert}]), or {fix}"
            )
        if mark != found:
            raise DataError(f"{embeddings}: the index was made with other weights than those of {folder}: {fix}")


def _embed(config: RunConfig, stages: IndexStages, on_record: Callable[[UnitRecord], None]) -> Manifest:
    from mode_ray.index.embed import IndexWorker  # needs torch, which the driver has no use for

    work = UnitWork(IndexWorker, (config, stages.models), config.index.pool, "images")
    return run_work_unit_stage(stages.embed, stages.work_units, work, config.limits, on_record)
