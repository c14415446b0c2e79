"""A bounded look at a run's data: format, fields, an example of each, and about how many captions there are."""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import pyarrow as pa
from PIL import Image

from mode_ray.captions.json_text import json_object
from mode_ray.captions.listing import list_work_units
from mode_ray.captions.parquet import open_parquet
from mode_ray.captions.tar_samples import read_tar_samples
from mode_ray.captions.text_lines import open_lines
from mode_ray.captions.webdataset import JSON_SUFFIX, MAX_JSON_BYTES, TEXT_SUFFIX
from mode_ray.config.captions import CaptionsConfig
from mode_ray.errors import DataError
from mode_ray.stages.work_unit import ShardFormat, WorkUnit
from mode_ray.starter.delimited import look_at_delimited

SHARDS_READ = 2
_ROWS_READ = 64
_SHOWN_CHARACTERS = 80
_MAX_IMAGE_BYTES = 32 << 20
_WHOLE_FILES = 1 << 60  # rows of a unit: no file is opened to be split
_CAPTION_NAMES = (
    "caption",
    "text",
    "title",
    "captions",
    "texts",
    "alt",
    "alt_text",
    "description",
    "sentence",
    "prompt",
)
_IMAGE_NAMES = ("image", "jpg", "jpeg", "png", "webp", "img", "picture", "bytes", "image_bytes")
# Columns of web data that hold text, but no captions.
_NOT_CAPTIONS = ("url", "key", "id", "uid", "hash", "md5", "sha256", "path", "file", "status", "mime", "license")


@dataclass(frozen=True, kw_only=True)
class DataLook:
    """What was seen of the data.

    Attributes:
        paths: As given.
        format: Format of the shards.
        shards: Number of files.
        bytes: Their size.
        captions: About how many there are; from the shards that were read, in proportion to the bytes.
        caption_field: Column or field of the captions; None for the `.txt` members of tars.
        image_field: Parquet: the column of the images; None without one.
        has_images: Whether the pairs have images.
        fields: Other columns, fields or suffixes.
        header: CSV, TSV: whether the first line names the columns.
        delimiter: CSV, TSV: the character between columns, where it is not the usual one of the format.
        caption: The first caption.
        image_size: Width and height of the first image.
    """

    paths: Sequence[str]
    format: ShardFormat
    shards: int
    bytes: int
    captions: int
    caption_field: str | None
    image_field: str | None
    has_images: bool
    fields: Sequence[str]
    header: bool
    delimiter: str | None
    caption: str
    image_size: tuple[int, int] | None


@dataclass(frozen=True)
class _Rows:
    """The first rows of a shard, and about how many it has."""

    rows: Sequence[Mapping[str, Any]]
    captions: float
    header: bool = True
    delimiter: str | None = None


def look_at(paths: Sequence[str]) -> DataLook:
    """Read the beginnings of the first shards.

    Raises:
        DataError: There is no such file, the first shards cannot be read, or no field looks like captions.
    """
    units = list_work_units(CaptionsConfig(paths=tuple(paths), max_rows_per_unit=_WHOLE_FILES))
    first = units[0]
    read = [_beginning(unit) for unit in units[:SHARDS_READ]]
    rows = [row for shard in read for row in shard.rows]
    if not rows:
        raise DataError(f"{first.uri}: no rows in it; name shards with captions")
    names = list(dict.fromkeys(name for row in rows for name in row))
    caption_field = _caption_field(rows, names, first)
    image_field = _image_field(rows, names, first.format)
    caption = next(text for row in rows if (text := _text(row.get(caption_field))))
    size = None if image_field is None else _image_size(rows, image_field)
    has_images = first.format in ("webdataset", "parquet") and size is not None
    read_bytes = sum(unit.size_bytes for unit in units[:SHARDS_READ])
    total_bytes = sum(unit.size_bytes for unit in units)
    from_text = first.format == "webdataset" and caption_field == TEXT_SUFFIX
    return DataLook(
        paths=paths,
        format=first.format,
        shards=len(units),
        bytes=total_bytes,
        captions=max(1, round(sum(shard.captions for shard in read) * total_bytes / max(1, read_bytes))),
        caption_field=None if from_text else caption_field,
        image_field=image_field if has_images and first.format == "parquet" else None,
        has_images=has_images,
        fields=[name for name in names if name not in (caption_field, image_field)],
        header=all(shard.header for shard in read),
        delimiter=read[0].delimiter,
        caption=" ".join(caption.split()),
        image_size=size,
    )


def _beginning(unit: WorkUnit) -> _Rows:
    match unit.format:
        case "parquet":
            file = open_parquet(unit)
            names = [field.name for field in file.schema_arrow if not pa.types.is_nested(field.type) or _useful(field)]
            batch = next(file.iter_batches(_ROWS_READ, columns=names), None)
            return _Rows([] if batch is None else batch.to_pylist(), file.metadata.num_rows)
        case "webdataset":
            return _tar_rows(unit)
        case "jsonl":
            lines = _lines(unit)
            return _estimated(unit, [row for line in lines if (row := _object(line)) is not None], lines)
        case "csv" | "tsv":
            seen = look_at_delimited(unit, (*_CAPTION_NAMES, *_IMAGE_NAMES, *_NOT_CAPTIONS), _ROWS_READ)
            estimated = _estimated(unit, seen.rows, _lines(unit))
            return replace(estimated, header=seen.header, delimiter=seen.delimiter)


def _useful(field: pa.Field) -> bool:
    """Whether a nested column may hold captions (lists of strings) or images (structs with bytes)."""
    kind = field.type
    if pa.types.is_struct(kind):
        return "bytes" in [inner.name for inner in kind]
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _lines(unit: WorkUnit) -> list[bytes]:
    with open_lines(unit) as lines:
        return [line.rstrip(b"\r\n") for line in islice(lines, _ROWS_READ) if line.strip()]


def _estimated(unit: WorkUnit, rows: Sequence[Mapping[str, Any]], lines: Sequence[bytes]) -> _Rows:
    """Rows of a text file by the mean length of its first lines, if it is not compressed."""
    mean = sum(len(line) + 1 for line in lines) / max(1, len(lines))
    return _Rows(rows, len(rows) if len(lines) < _ROWS_READ else unit.size_bytes / mean)


def _object(line: bytes) -> Mapping[str, Any] | None:
    try:
        return json_object(line)
    except ValueError:
        return None


def _tar_rows(unit: WorkUnit) -> _Rows:
    """The first samples of a tar as rows: fields of the `.json` member, the `.txt` member, and one image."""
    rows: list[dict[str, Any]] = []
    used, complete = 0, True
    for sample in read_tar_samples(unit, frozenset({TEXT_SUFFIX, JSON_SUFFIX}), MAX_JSON_BYTES):
        if len(rows) == _ROWS_READ:
            complete = False
            break
        row: dict[str, Any] = dict(_object(sample.contents.get(JSON_SUFFIX, b"")) or {})
        if TEXT_SUFFIX in sample.contents:
            row[TEXT_SUFFIX] = sample.contents[TEXT_SUFFIX].decode(errors="replace")
        place = sample.image()
        if place is not None:
            with unit.location.open_input() as file:
                row["image"] = bytes(file.read_at(min(place[1], _MAX_IMAGE_BYTES), place[0])) if not rows else b""
        used = max(used, *(start + size for start, size in sample.members.values()))
        rows.append(row)
    return _Rows(rows, len(rows) if complete else len(rows) * unit.size_bytes / max(1, used))


def _text(value: object) -> str:
    """A caption in a value: a string, or the first of a list of strings."""
    if isinstance(value, list):
        value = next((item for item in value if isinstance(item, str)), None)
    return value.strip() if isinstance(value, str) else ""


def _caption_field(rows: Sequence[Mapping[str, Any]], names: Sequence[str], unit: WorkUnit) -> str:
    texts = {name: [text for row in rows if (text := _text(row.get(name)))] for name in names}
    filled = [name for name in names if texts[name]]
    if unit.format == "webdataset" and TEXT_SUFFIX in filled:
        return TEXT_SUFFIX
    by_name = {name.lower(): name for name in reversed(filled)}
    known = next((by_name[name] for name in _CAPTION_NAMES if name in by_name), None)
    if known is not None:
        return known
    likely = [name for name in filled if not any(part in name.lower() for part in _NOT_CAPTIONS)]
    if not likely:
        raise DataError(
            f"{unit.uri}: no field looks like captions; there are {', '.join(names) or 'none'}. Write the config with "
            "captions.caption_field by hand (docs/config.md)"
        )
    return max(likely, key=lambda name: sum(" " in text for text in texts[name]))


def _image_field(rows: Sequence[Mapping[str, Any]], names: Sequence[str], kind: ShardFormat) -> str | None:
    """The field with encoded images: by its name, else the first whose values are images."""
    if kind not in ("parquet", "webdataset"):
        return None
    ordered = sorted(names, key=lambda name: (name.lower() not in _IMAGE_NAMES, names.index(name)))
    return next((name for name in ordered if _image_size(rows, name) is not None), None)


def _image_size(rows: Sequence[Mapping[str, Any]], field: str) -> tuple[int, int] | None:
    for data in _image_bytes(rows, field):
        try:
            with Image.open(io.BytesIO(data)) as image:
                return image.size
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            continue
    return None


def _image_bytes(rows: Sequence[Mapping[str, Any]], field: str) -> Iterator[bytes]:
    for row in rows:
        value = row.get(field)
        data = value.get("bytes") if isinstance(value, dict) else value
        if isinstance(data, bytes) and data:
            yield data


def summary(look: DataLook) -> str:
    """What was seen, in one line."""
    if look.image_size is None or not look.has_images:
        images = "without images"
    else:
        images = f"with images (the first has {look.image_size[0]} x {look.image_size[1]} pixels)"
    size = f"{look.bytes / 1e9:,.3g} GB" if look.bytes >= 1e8 else f"{look.bytes:,} bytes"
    return (
        f"{look.shards:,} {look.format} shard{'s' if look.shards > 1 else ''}, {size}, about {look.captions:,} "
        f"captions {images}; the first caption: {json.dumps(look.caption[:_SHOWN_CHARACTERS], ensure_ascii=False)}"
    )
