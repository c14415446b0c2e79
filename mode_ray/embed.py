"""Embed the captions: one embedding shard an input shard.

With `embed.keep: all` every caption is embedded. With `sample` only the rows that the clustering is fitted on are, and
`assign` encodes the captions itself in its one pass.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from mode_ray.captions.clean import CaptionTable
from mode_ray.captions.read import count_rows, read_captions
from mode_ray.captions.shards import Shard
from mode_ray.config import CaptionsConfig, EncoderConfig, EncoderPlacement, RunConfig
from mode_ray.embeddings import EMBEDDING, embedding_column, place_columns, split_usable
from mode_ray.encoders.encoder import load_encoder
from mode_ray.errors import DataError
from mode_ray.sampling import allocate_sample, sample_positions
from mode_ray.stage import Manifest, Stage, UnitRecord
from mode_ray.units import run_shard_stage

_ROW_COUNTERS = 8


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

    def read(self, shard: Shard) -> CaptionTable:
        """Read and clean the shard's captions, and take the sample."""
        captions = read_captions(shard, self._captions)
        if self._sample is None:
            return captions
        positions = sample_positions(shard.unit, captions.table.num_rows, self._sample[shard.unit], self._seed)
        return CaptionTable(
            captions.table.take(pa.array(positions)), captions.rows_in, captions.refused, captions.examples
        )

    def compute(self, shard: Shard, source: CaptionTable) -> tuple[pa.Table, UnitRecord]:
        """Encode."""
        vectors_bd = self._encoder.encode(source.table["caption"].to_pylist())
        usable, vectors_bd = split_usable(source, vectors_bd)
        table = pa.table({**place_columns(usable.table), EMBEDDING: embedding_column(vectors_bd)})
        return table, unit_record(shard, usable)


def unit_record(shard: Shard, captions: CaptionTable) -> UnitRecord:
    """The record of a unit before it is written."""
    return UnitRecord(
        unit=shard.unit,
        source=shard.uri,
        rows_in=captions.rows_in,
        rows_out=captions.table.num_rows,
        refused=captions.refused,
        examples=captions.examples,
    )


def _rows(shard: Shard, captions: CaptionsConfig) -> int:
    """Rows of a shard; none where it cannot be read: the unit that reads it is quarantined, with the reason."""
    try:
        return count_rows(shard, captions)
    except DataError:
        return 0


def run_embed(
    config: RunConfig, stage: Stage, shards: Sequence[Shard], on_record: Callable[[UnitRecord], None]
) -> Manifest:
    """Run the embed stage, or what is left of it.

    Raises:
        DataError: More shards are unreadable, or more captions refused, than the config allows.
    """
    sample = None
    if config.embed.keep == "sample":
        with ThreadPoolExecutor(_ROW_COUNTERS) as counters:
            counts = counters.map(lambda shard: _rows(shard, config.captions), shards)
            rows = {shard.unit: count for shard, count in zip(shards, counts, strict=True)}
        sample = allocate_sample(rows, config.cluster.sample_rows, config.cluster.seed)
    pool = config.embed.pool
    arguments = (
        config.captions,
        config.encoder,
        config.embed.encoder,
        pool.threads_per_actor,
        sample,
        config.cluster.seed,
    )
    return run_shard_stage(config, stage, shards, EmbedWorker, arguments, pool, on_record)
