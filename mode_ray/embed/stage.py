"""Embed the captions: one embedding shard an input shard.

With `embed.keep: all` every caption is embedded. With `sample` only the rows that the clustering is fitted on are, and
`assign` encodes the captions itself in its one pass.
"""

from collections.abc import Callable, Mapping, Sequence

import pyarrow as pa

from mode_ray.captions.clean import CaptionTable
from mode_ray.captions.count import count_all_captions
from mode_ray.captions.read import read_captions
from mode_ray.config.run import CaptionsConfig, EncoderConfig, EncoderPlacement, RunConfig
from mode_ray.embed.load import load_encoder
from mode_ray.embed.table import EMBEDDING, embedding_column, place_columns, split_usable
from mode_ray.errors import DataError
from mode_ray.run_directory import CAPTION_COUNTS
from mode_ray.stages.manifest import Manifest, Stage, UnitRecord
from mode_ray.stages.resume import plan_units, run_work_unit_stage
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


def run_embed(
    config: RunConfig,
    stage: Stage,
    work_units: Sequence[WorkUnit],
    on_record: Callable[[UnitRecord], None],
    on_counted: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Run the embed stage, or what is left of it.

    Args:
        config: The run's config.
        stage: The stage.
        work_units: All of its units.
        on_record: Called with every new record.
        on_counted: With `embed.keep: sample`, called while captions are counted, with the units done and all units.

    Raises:
        DataError: More shards are unreadable, or more captions refused, than the config allows.
    """
    sample = None
    pool = config.embed.pool
    if config.embed.keep == "sample" and plan_units(stage, work_units).left:
        stage.begin(len(work_units))
        counts = count_all_captions(work_units, config.captions, pool, stage.directory / CAPTION_COUNTS, on_counted)
        # Units that stand keep the share that was allotted to them when a mended source changes the counts of others.
        sample = allocate_sample(counts, config.cluster.sample_rows, config.cluster.seed)
    arguments = (
        config.captions,
        config.encoder,
        config.embed.encoder,
        pool.threads_per_actor,
        sample,
        config.cluster.seed,
    )
    return run_work_unit_stage(config, stage, work_units, EmbedWorker, arguments, pool, on_record)
