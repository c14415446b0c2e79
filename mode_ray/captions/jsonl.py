"""Captions from JSON Lines: one object per line, with a caption or a list of captions in one of its fields.

The standard library parses each line, because one bad line makes Arrow's JSON reader fail for the whole file.
"""

from typing import Any

from mode_ray.captions.clean import BAD_KEY, BAD_LINE, BIG_LINE, CaptionTable
from mode_ray.captions.json_text import field_captions, json_object
from mode_ray.captions.parquet import DEFAULT_CAPTION_FIELD
from mode_ray.captions.rows import CaptionRows, text_key
from mode_ray.captions.text_lines import open_lines
from mode_ray.config.captions import CaptionsConfig
from mode_ray.errors import DataError
from mode_ray.stages.work_unit import WorkUnit

_FIELDS_NAMED = 20


def read_jsonl_captions(work_unit: WorkUnit, config: CaptionsConfig) -> CaptionTable:
    """Read and clean the captions of a JSON Lines shard.

    A row's number is that of its line, from 0; empty lines are skipped. Lines are refused if they are not a JSON
    object, are too long, or have a key that is neither text nor a number.

    Raises:
        DataError: Not a JSON Lines file, or no line has the field; names file and field.
    """
    field_name = config.caption_field or DEFAULT_CAPTION_FIELD
    rows = CaptionRows(work_unit, config)
    lines_read = 0
    first: dict[str, Any] | None = None
    field_seen = False
    with open_lines(work_unit) as lines:
        for row, line in enumerate(lines):
            if not lines.cut and not line.strip():
                continue
            lines_read += 1
            if lines.cut:
                rows.refuse(row, BIG_LINE)
                continue
            try:
                values = json_object(line)
            except ValueError:
                rows.refuse(row, BAD_LINE)
                continue
            first = values if first is None else first
            field_seen = field_seen or field_name in values
            key = _key(values, config.key_field, row)
            if key is None:
                rows.refuse(row, BAD_KEY)
                continue
            captions = field_captions(values, field_name)
            rows.add(row, key, captions[:1] if config.select == "first" else captions)
    if lines_read and first is None:
        raise DataError(f"{work_unit.uri}: not JSON Lines (none of its {lines_read} lines is a JSON object)")
    if first is not None and not field_seen:
        raise DataError(
            f"{work_unit.uri}: no line has a field {field_name!r}; set captions.caption_field to one of "
            f"{list(first)[:_FIELDS_NAMED]}"
        )
    return rows.cleaned()


def count_jsonl_rows(work_unit: WorkUnit) -> int:
    """Number of rows of a JSON Lines shard, including refused ones.

    Raises:
        DataError: The file cannot be read as text.
    """
    with open_lines(work_unit) as lines:
        return sum(1 for line in lines if lines.cut or line.strip())


def _key(values: dict[str, Any], key_field: str | None, row: int) -> str | None:
    """The row's key; its number if there is no key, and None if the key is neither text nor a number."""
    value = None if key_field is None else values.get(key_field)
    if value is None:
        return str(row)
    if isinstance(value, str):
        return text_key(value)
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
