"""One entry to all caption formats."""

from mode_ray.captions.clean import CaptionTable
from mode_ray.captions.parquet import open_parquet, read_parquet_captions, row_group_range
from mode_ray.captions.shards import Shard
from mode_ray.captions.webdataset import read_tar_captions
from mode_ray.config import CaptionsConfig


def read_captions(shard: Shard, config: CaptionsConfig) -> CaptionTable:
    """Read and clean the captions of one shard.

    Raises:
        DataError: The shard cannot be read; names the file, and the column or sample.
    """
    if shard.format == "parquet":
        return read_parquet_captions(shard, config)
    return read_tar_captions(shard, config)


def count_rows(shard: Shard, config: CaptionsConfig) -> int:
    """Usable captions of a shard; for parquet an upper bound, from the footer alone.

    Raises:
        DataError: The shard cannot be read.
    """
    if shard.format == "parquet" and config.select == "first":
        file = open_parquet(shard)
        return sum(file.metadata.row_group(group).num_rows for group in row_group_range(shard, file))
    return int(read_captions(shard, config).table.num_rows)
