"""One entry to all caption formats."""

from mode_ray.captions.clean import CaptionTable
from mode_ray.captions.delimited import count_csv_rows, read_csv_captions
from mode_ray.captions.jsonl import count_jsonl_rows, read_jsonl_captions
from mode_ray.captions.parquet import count_parquet_rows, read_parquet_captions
from mode_ray.captions.webdataset import count_tar_rows, read_tar_captions
from mode_ray.config.run import CaptionsConfig
from mode_ray.stages.work_unit import Shard


def read_captions(shard: Shard, config: CaptionsConfig) -> CaptionTable:
    """Read and clean the captions of one shard.

    Raises:
        DataError: The shard cannot be read; names the file, and the column or sample.
    """
    match shard.format:
        case "parquet":
            return read_parquet_captions(shard, config)
        case "webdataset":
            return read_tar_captions(shard, config)
        case "jsonl":
            return read_jsonl_captions(shard, config)
        case "csv" | "tsv":
            return read_csv_captions(shard, config)


def count_captions(shard: Shard, config: CaptionsConfig) -> int:
    """Captions of a shard, refused ones included: `rows_in` of `read_captions`, mostly without reading them.

    Parquet is counted by its footer, tars by their headers, text by its lines; the captions are read only where a pair
    may have several that all count.

    Raises:
        DataError: The shard cannot be read.
    """
    one_a_row = config.select == "first"
    match shard.format:
        case "parquet":
            count = count_parquet_rows(shard, config)
            return read_captions(shard, config).rows_in if count is None else count
        case "webdataset" if one_a_row or config.caption_field is None:
            return count_tar_rows(shard)
        case "jsonl" if one_a_row:
            return count_jsonl_rows(shard)
        case "csv" | "tsv":
            return count_csv_rows(shard)
        case _:
            return read_captions(shard, config).rows_in
