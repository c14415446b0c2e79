"""Makes the atlas of a run on Ray: samples rows, reads their captions again, and summarises them in parallel."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import ray

from mode_ray.assign.table import DISTANCE, FINE
from mode_ray.atlas.data import AtlasFacts, atlas_data
from mode_ray.atlas.sample import CaptionSample, merge, summarise
from mode_ray.atlas.summary import CAPTIONS_PER_END, write_summary
from mode_ray.captions.read import read_captions
from mode_ray.cluster.clustering import Clustering
from mode_ray.cluster.search.nearest import NearestCenters
from mode_ray.config.run import RunConfig
from mode_ray.embed.table import EMBEDDING, embedding_vectors
from mode_ray.errors import DataError
from mode_ray.run_directory import ATLAS_HTML
from mode_ray.stages.manifest import read_manifest, read_output, read_units
from mode_ray.stages.run import Run
from mode_ray.stages.work_unit import WorkUnit
from mode_ray.storage import Location
from mode_ray.util.ray_tasks import process_kept, task_result
from mode_ray.util.sampling import allocate_sample, sample_positions
from mode_ray.util.versions import package_versions

MIN_SAMPLE_CAPTIONS = 100_000
SAMPLE_CAPTIONS_PER_CENTER = 24
MIN_UNITS = 16
_IO_RETRIES = 3
_FEW_CENTERS = 4096


def make_atlas(run: Run, sample_captions: int | None = None) -> Location:
    """Write `summary.json`, then `atlas.html`, to the clustering's directory; needs a running Ray.

    Rows come from the assignments if the assign stage is done; else from the embeddings, with their nearest centers.
    Units are drawn at random until there are enough rows and at least `MIN_UNITS` units. Rows are then drawn uniformly
    from them. A unit whose source can no longer be read is skipped, and the page reports it.

    Args:
        run: The run. Its embed and cluster stages must be done.
        sample_captions: Number of captions to sample. The default is the larger of `MIN_SAMPLE_CAPTIONS` and
            `SAMPLE_CAPTIONS_PER_CENTER` per fine center, so that every cluster has captions.

    Returns:
        The page.

    Raises:
        DataError: There is no clustering, or none of its captions can be read.
    """
    assigned = read_manifest(run.assignments) is not None
    rows = run.assignments if assigned else run.embeddings
    if sample_captions is None:
        sample_captions = max(MIN_SAMPLE_CAPTIONS, SAMPLE_CAPTIONS_PER_CENTER * _centers(run))
    wanted = choose_rows(rows, run.work_units, sample_captions, run.config.cluster.seed)
    by_unit = {work_unit.unit: work_unit for work_unit in run.work_units}
    # As `assign`, which reads the same files. Without labels, many tasks make the autoscaler start GPU machines.
    label_selector = run.config.assign.pool.required_labels
    sample_one = ray.remote(num_cpus=1)(_sample_unit).options(
        name="atlas: captions of a unit",
        label_selector=label_selector,
        max_retries=_IO_RETRIES,
        retry_exceptions=[OSError],
    )
    samples = [
        sample_one.remote(run.config, by_unit[unit], count, run.clusters, rows) for unit, count in wanted.items()
    ]
    write = ray.remote(num_cpus=1, **process_kept(_centers(run) <= _FEW_CENTERS))(_write).options(
        name="atlas", label_selector=label_selector
    )
    page: Location = task_result(write.remote(replace(run, work_units=()), assigned, *samples))
    return page


def _centers(run: Run) -> int:
    """Number of fine centers of the run's clustering."""
    if run.config.reuses_clustering:
        return len(Clustering.load(run.clusters).centers_md)
    return run.config.cluster.fine.centers


def choose_rows(rows: Location, work_units: Sequence[WorkUnit], sample_captions: int, seed: int) -> dict[str, int]:
    """Number of rows to sample from each chosen unit of a directory of embeddings or assignments.

    Raises:
        DataError: There are no rows.
    """
    known = {work_unit.unit for work_unit in work_units}
    rows_by_unit = {record.unit: record.rows_out for record in read_units(rows) if record.unit in known}
    units = sorted(unit for unit, count in rows_by_unit.items() if count)
    if not units:
        raise DataError(f"{rows}: no rows of the given captions for an atlas; run the embed or the assign stage first")
    shuffled = [units[position] for position in np.random.default_rng(seed).permutation(len(units))]
    enough = int(np.searchsorted(np.cumsum([rows_by_unit[unit] for unit in shuffled]), sample_captions)) + 1
    chosen = {unit: rows_by_unit[unit] for unit in shuffled[: max(enough, MIN_UNITS)]}
    return {unit: count for unit, count in allocate_sample(chosen, sample_captions, seed).items() if count}


def sample_unit(
    config: RunConfig, work_unit: WorkUnit, count: int, clusters: Location, rows: Location
) -> CaptionSample:
    """Sample stored rows of one unit, read their captions again, and summarise them.

    If `rows` are embeddings rather than assignments, their nearest centers are computed.

    Raises:
        DataError: The source cannot be read.
    """
    table = read_output(rows, work_unit.unit)
    table = table.take(pa.array(sample_positions(work_unit.unit, table.num_rows, count, config.cluster.seed)))
    captions = read_captions(work_unit, config.captions).table
    place_of = {identity: place for place, identity in enumerate(_identities(captions))}
    places = [place_of.get(identity) for identity in _identities(table)]
    found = np.array([place is not None for place in places], np.bool_)
    kept = pa.array([place for place in places if place is not None], pa.int64())
    texts = captions["caption"].take(kept).to_pylist()
    table = table.filter(pa.array(found))
    if EMBEDDING in table.column_names:
        clustering = Clustering.load(clusters)
        prices_m = clustering.prices_m if config.assign.rule == "priced" else None
        fine_b, squared_distance_b = NearestCenters(clustering.centers_md, prices_m).search(embedding_vectors(table))
    else:
        fine_b, squared_distance_b = table[FINE].to_numpy(), table[DISTANCE].to_numpy()
    return summarise(fine_b, squared_distance_b, texts, CAPTIONS_PER_END, int((~found).sum()))


def _identities(table: pa.Table) -> Iterator[tuple[int, int]]:
    """Pairs of row and caption index."""
    return zip(table["row"].to_pylist(), table["caption_index"].to_pylist(), strict=True)


def _sample_unit(
    config: RunConfig, work_unit: WorkUnit, count: int, clusters: Location, rows: Location
) -> CaptionSample | str:
    """The sample, or the error if the source cannot be read; the atlas then shows the other units."""
    try:
        return sample_unit(config, work_unit, count, clusters, rows)
    except DataError as error:
        return str(error)


def _write(run: Run, assigned: bool, *results: CaptionSample | str) -> Location:
    unreadable = [result for result in results if isinstance(result, str)]
    samples = [result for result in results if isinstance(result, CaptionSample)]
    if not sum(len(sample) for sample in samples):
        reason = unreadable[0] if unreadable else "its captions are no longer in their sources"
        raise DataError(f"atlas: no sampled caption can be read: {reason}")
    sample = merge(samples, CAPTIONS_PER_END)
    config, clustering = run.config, Clustering.load(run.clusters)
    counted = read_manifest(run.embeddings)
    if assigned and (counted is None or not counted.rows_in):  # with `cluster.reuse`, captions may not be embedded
        counted = read_manifest(run.assignments)
    usable = 0 if counted is None else counted.rows_in - sum(counted.refused.values())
    skipped = {
        "units that cannot be read": len(unreadable),
        "sampled captions no longer found in their source": sample.missing,
    }
    priced = config.assign.rule == "priced"
    about = {
        "Run": run.directory.uri,
        "Made": time.strftime("%Y-%m-%d %H:%M", time.gmtime()) + " UTC",
        "Encoder": f"{clustering.encoder_name}, {clustering.dimension} dimensions",
        "Usable captions": f"{usable:,}",
        "Sizes and shares": "counted in the sampled captions (assignments are priced)"
        if priced
        else f"from the {int(clustering.mass_m.sum()):,} captions of the fit",
        "Sampled for this page": f"{len(sample):,} captions of {len(samples):,} units, "
        + ("as assigned" if assigned else "by nearest center, before assignment"),
        **{f"Skipped: {what}": f"{count:,}" for what, count in skipped.items() if count},
    }
    facts = AtlasFacts(
        about=about,
        slack=config.cluster.coarse.slack,
        first_map=config.train.experts,
        refused={} if counted is None else counted.refused,
        versions=package_versions(),
        count_sample=priced,
    )
    summary = atlas_data(clustering, sample, facts)
    write_summary(run.clusters, summary)
    from mode_ray.atlas.page import render_atlas  # imports jinja2, which the driver does without

    page = run.clusters / ATLAS_HTML
    page.write_text(render_atlas(summary))
    return page
