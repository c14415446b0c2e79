"""Captions from parquet shards; only the needed columns are read."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mode_ray.captions.clean import CaptionTable, clean
from mode_ray.config.captions import CaptionsConfig
from mode_ray.errors import DataError
from mode_ray.stages.work_unit import WorkUnit
from mode_ray.storage import is_damage

DEFAULT_CAPTION_FIELD = "caption"
_TEXTS = (
    *(pa.string(), pa.large_string(), pa.string_view()),
    *(pa.binary(), pa.large_binary(), pa.binary_view()),
    pa.null(),
)
_LISTS = (
    *(pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list),
    *(pa.types.is_list_view, pa.types.is_large_list_view),
)


def open_parquet(work_unit: WorkUnit) -> pq.ParquetFile:
    """Open a shard for reading; page checksums are verified if present.

    Raises:
        DataError: Not a readable parquet file.
    """
    try:
        file = pq.ParquetFile(work_unit.location.open_input(), page_checksum_verification=True)
        _ = file.schema_arrow.names  # decoded on demand; undecodable names are damage too
    except FileNotFoundError:
        raise DataError(f"{work_unit.uri}: no such file") from None
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:
        if not is_damage(error, work_unit.location):
            raise
        reason = " ".join(str(error).split())
        raise DataError(f"{work_unit.uri}: not a readable parquet file ({reason}); replace or remove it") from None
    return file


def row_group_range(work_unit: WorkUnit, file: pq.ParquetFile) -> range:
    """The row groups of a work unit."""
    return range(*(work_unit.row_groups or (0, file.num_row_groups)))


def read_parquet_captions(work_unit: WorkUnit, config: CaptionsConfig) -> CaptionTable:
    """Read and clean a shard's captions: a column of strings (or UTF-8 bytes), or of lists of strings.

    Arrow's views, dictionaries, and lists of every layout are read like plain strings and lists.

    Raises:
        DataError: The file cannot be read, or a column is missing or has another type; names file and column.
    """
    file = open_parquet(work_unit)
    field = config.caption_field or DEFAULT_CAPTION_FIELD
    names = [field] if config.key_field is None else [field, config.key_field]
    for name, setting in zip(names, ("caption_field", "key_field"), strict=False):
        if name not in file.schema_arrow.names:
            raise DataError(
                f"{work_unit.uri}: no column {name!r}; set captions.{setting} to one of {file.schema_arrow.names}"
            )
    try:
        table = file.read_row_groups(list(row_group_range(work_unit, file)), columns=names)
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:
        if not is_damage(error, work_unit.location):
            raise  # a retry may succeed
        reason = " ".join(str(error).split())
        raise DataError(f"{work_unit.uri}: damaged parquet data ({reason}); replace or remove it") from None
    rows = np.arange(work_unit.first_row, work_unit.first_row + table.num_rows)
    keys = _keys(table, config.key_field, rows, work_unit)
    captions = table[field].combine_chunks()
    if isinstance(captions, pa.ExtensionArray):
        captions = captions.storage
    if not _is_text(captions.type.value_type if _is_list(captions.type) else captions.type):
        raise DataError(
            f"{work_unit.uri}: column {field!r} has type {captions.type}, but captions are strings or lists of strings"
        )
    columns, raw = _one_a_caption(captions, rows, keys, first_only=config.select == "first")
    return clean(columns, raw, config.max_caption_bytes)


def count_parquet_rows(work_unit: WorkUnit, config: CaptionsConfig) -> int | None:
    """Number of captions from the file's footer; None if a pair may have several captions and all are selected.

    Raises:
        DataError: The file cannot be read.
    """
    if config.select == "first" and work_unit.rows is not None:
        return work_unit.rows
    file = open_parquet(work_unit)
    field = config.caption_field or DEFAULT_CAPTION_FIELD
    schema = file.schema_arrow
    if config.select == "all" and (field not in schema.names or not _is_text(schema.field(field).type)):
        return None
    return int(sum(file.metadata.row_group(group).num_rows for group in row_group_range(work_unit, file)))


def _keys(table: pa.Table, key_field: str | None, rows: np.ndarray, work_unit: WorkUnit) -> pa.Array:
    row_names = pa.array(rows).cast(pa.string())
    if key_field is None:
        return row_names
    keys = table[key_field].combine_chunks()
    try:
        return pc.coalesce(keys.cast(pa.string()), row_names)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
        raise DataError(
            f"{work_unit.uri}: column {key_field!r} has type {keys.type}, but keys are UTF-8 text or numbers "
            f"({error}); set captions.key_field to another column"
        ) from None


def _one_a_caption(
    captions: pa.Array, rows: np.ndarray, keys: pa.Array, *, first_only: bool
) -> tuple[Mapping[str, pa.Array], pa.Array]:
    """Columns with one entry per caption, and the undecoded captions."""
    if _is_list(captions.type):
        return _explode(captions, rows, keys, first_only=first_only)
    index = pa.array(np.zeros(len(rows), np.int32))
    return {"row": pa.array(rows), "caption_index": index, "key": keys}, captions.cast(pa.binary())


def _explode(
    captions: pa.Array, rows: np.ndarray, keys: pa.Array, *, first_only: bool
) -> tuple[Mapping[str, pa.Array], pa.Array]:
    """One entry per list element; a pair with an empty or missing list keeps one entry without a caption."""
    lengths = pc.fill_null(pc.list_value_length(captions), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    taken = np.minimum(lengths, 1) if first_only else lengths
    entries = np.maximum(taken, 1)
    parent = np.repeat(np.arange(len(rows)), entries)
    caption_index = np.arange(len(parent)) - np.repeat(np.cumsum(entries) - entries, entries)
    starts = np.cumsum(lengths) - lengths
    position = np.where(lengths[parent] > 0, starts[parent] + caption_index, -1)
    # flatten() skips null lists, so positions are among the elements of valid lists. A cast of list views to lists
    # would not do: Arrow 26 returns empty lists after a null.
    values = captions.flatten().cast(pa.binary())
    indices = pa.array(position, mask=position < 0)
    columns = {
        "row": pa.array(rows[parent]),
        "caption_index": pa.array(caption_index.astype(np.int32)),
        "key": keys.take(pa.array(parent)),
    }
    return columns, values.take(indices)


def _is_list(kind: pa.DataType) -> bool:
    return any(is_list(kind) for is_list in _LISTS)


def _is_text(kind: pa.DataType) -> bool:
    return (kind.value_type if pa.types.is_dictionary(kind) else kind) in _TEXTS
