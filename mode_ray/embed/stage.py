"""Embed the captions: one embedding shard an input shard.

With `embed.keep: all` every caption is embedded. With `sample` only the rows that the clustering is fitted on are, and
`assign` encodes the captions itself in its one pass.
"""

from collections.abc import Mapping
from functools import partial

import pyarrow as pa

from mode_ray.captions.clean import CaptionTable
from mode_ray.captions.count import count_all_captions
from mode_ray.captions.read import read_captions
from mode_ray.config.base import fingerprint_fields
from mode_ray.config.captions import CaptionsConfig, EncoderConfig, EncoderPlacement
from mode_ray.embed.load import load_encoder
from mode_ray.embed.table import EMBEDDING, embedding_column, place_columns, split_usable
from mode_ray.errors import DataError
from mode_ray.run_directory import CAPTION_COUNTS
from mode_ray.stages.execute import UnitWork
from mode_ray.stages.manifest import Manifest, Stage, UnitRecord, combined_hash
from mode_ray.stages.resume import plan_units, run_work_unit_stage
from mode_ray.stages.run import Run, StageReport
from mode_ray.stages.work_unit import WorkUnit
from mode_ray.util.sampling import allocate_sample, sample_positions


class EmbedWorker:
    """Embeds the captions of one shard; see `UnitWorker`.

    Args:
        captions: How to read them.
        encoder: The language model.
        placement: Its speed.
        threads: CPU threads.
        sample: Rows to take from each unit, or None for all.
        seed: Of the sample.
    """

    def __init__(
        self,
        captions: CaptionsConfig,
        encoder: EncoderConfig,
        placement: EncoderPlacement,
        threads: int,
        sample: Mapping[str, int] | None,
        seed: int,
    ) -> None:
        self._captions = captions
        self._encoder = load_encoder(encoder, placement, threads)
        self._sample = sample
        self._seed = seed

    def read(self, work_unit: WorkUnit) -> CaptionTable:
        """Read and clean the shard's captions, and take the sample."""
        captions = read_captions(work_unit, self._captions)
        if self._sample is None:
            return captions
        if work_unit.unit not in self._sample:
            raise DataError(f"{work_unit.uri}: could not be read when the sample was drawn, but can now; run again")
        return take_sample(captions, work_unit.unit, self._sample[work_unit.unit], self._seed)

    def compute(self, work_unit: WorkUnit, source: CaptionTable) -> tuple[pa.Table, UnitRecord]:
        """Encode."""
        vectors_bd = self._encoder.encode(source.table["caption"].to_pylist())
        usable, vectors_bd = split_usable(source, vectors_bd)
        table = pa.table({**place_columns(usable.table), EMBEDDING: embedding_column(vectors_bd)})
        return table, unit_record(work_unit, usable)


def take_sample(captions: CaptionTable, unit: str, count: int, seed: int) -> CaptionTable:
    """A unit's part of a uniform sample: `count` places among all captions found, and of those the usable ones.

    Places are drawn with the refused captions, as `count` was; so every usable caption of every unit is equally
    likely, and the sample is smaller than asked by the share of refused ones.
    """
    return captions.take(sample_positions(unit, captions.rows_in, count, seed))


def unit_record(work_unit: WorkUnit, captions: CaptionTable) -> UnitRecord:
    """The record of a unit before it is written."""
    return UnitRecord(
        unit=work_unit.unit,
        source=work_unit.uri,
        rows_in=captions.rows_in,
        rows_out=captions.table.num_rows,
        refused=captions.refused,
        examples=captions.examples,
    )


def embed_fields(run: Run) -> dict[str, object]:
    """The fields that decide the embeddings."""
    config = run.config
    # By name alone: a file that was fixed, and may now be split otherwise, does not make another run.
    files = sorted({work_unit.uri for work_unit in run.work_units})
    sampling = {}
    if config.embed.keep == "sample" and not config.reuses_clustering:
        sampling = {"cluster.sample_rows": config.cluster.sample_rows, "cluster.seed": config.cluster.seed}
    return {
        **fingerprint_fields(config.captions, "captions"),
        **fingerprint_fields(config.encoder, "encoder"),
        **fingerprint_fields(config.embed, "embed"),
        **sampling,
        "captions (files found)": f"{len(files)} files, {combined_hash(files)}",
    }


def run_embed(run: Run, stage: Stage, report: StageReport) -> Manifest:
    """Run the embed stage, or what is left of it.

    Raises:
        DataError: More shards are unreadable, or more captions refused, than the config allows.
    """
    config, pool = run.config, run.config.embed.pool
    if run.embeds_nothing:
        report.say("[embed] nothing to embed: the clustering is reused")
        stage.begin(0)
        return stage.finish([], {"nothing to embed": "reused clustering"})
    sample = None
    if config.embed.keep == "sample" and plan_units(stage, run.work_units).left:
        stage.begin(len(run.work_units))
        counted = partial(report.work, "embed: captions counted, in units")
        file = stage.directory / CAPTION_COUNTS
        counts = count_all_captions(run.work_units, config.captions, pool, file, counted)
        # Finished units keep their share of the sample when a fixed source changes the counts of others.
        sample = allocate_sample(counts, config.cluster.sample_rows, config.cluster.seed)
    arguments = (
        config.captions,
        config.encoder,
        config.embed.encoder,
        pool.threads_per_actor,
        sample,
        config.cluster.seed,
    )
    work = UnitWork(EmbedWorker, arguments, pool)
    return run_work_unit_stage(stage, run.work_units, work, config.limits, report.unit)
