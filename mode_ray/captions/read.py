"""Reads and counts captions in any supported format."""

from mode_ray.captions.clean import CaptionTable
from mode_ray.captions.delimited import count_csv_rows, read_csv_captions
from mode_ray.captions.jsonl import count_jsonl_rows, read_jsonl_captions
from mode_ray.captions.parquet import count_parquet_rows, read_parquet_captions
from mode_ray.captions.webdataset import count_tar_rows, read_tar_captions
from mode_ray.config.captions import CaptionsConfig
from mode_ray.stages.work_unit import WorkUnit


def read_captions(work_unit: WorkUnit, config: CaptionsConfig) -> CaptionTable:
    """Read and clean the captions of one unit.

    Raises:
        DataError: The file cannot be read; names the file, and the column or sample.
    """
    match work_unit.format:
        case "parquet":
            return read_parquet_captions(work_unit, config)
        case "webdataset":
            return read_tar_captions(work_unit, config)
        case "jsonl":
            return read_jsonl_captions(work_unit, config)
        case "csv" | "tsv":
            return read_csv_captions(work_unit, config)


def count_captions(work_unit: WorkUnit, config: CaptionsConfig) -> int:
    """Count the captions of a unit, including refused ones: `rows_in` of `read_captions`.

    The count comes from the footer of parquet files, the headers of tars, and the lines of text files. The captions
    are read only if a pair may have several and all are selected.

    Raises:
        DataError: The file cannot be read.
    """
    one_a_row = config.select == "first"
    match work_unit.format:
        case "parquet":
            count = count_parquet_rows(work_unit, config)
            return read_captions(work_unit, config).rows_in if count is None else count
        case "webdataset" if one_a_row or config.caption_field is None:
            return count_tar_rows(work_unit)
        case "jsonl" if one_a_row:
            return count_jsonl_rows(work_unit)
        case "csv" | "tsv":
            return count_csv_rows(work_unit, config)
        case _:
            return read_captions(work_unit, config).rows_in
