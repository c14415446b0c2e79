"""Captions from WebDataset tars, with the byte offsets of the members so that training can fetch single pairs."""

from collections import Counter
from dataclasses import replace

import pyarrow as pa

from mode_ray.captions.clean import BAD_JSON, BIG_JSON, MISSING, NO_IMAGE, UNREAD_IMAGE, CaptionTable, clean
from mode_ray.captions.json_text import field_captions, json_object
from mode_ray.captions.tar_samples import UNREAD_IMAGE_SUFFIXES, TarSample, read_tar_samples
from mode_ray.config.captions import CaptionsConfig
from mode_ray.errors import DataError
from mode_ray.stages.work_unit import WorkUnit

TEXT_SUFFIX = "txt"
JSON_SUFFIX = "json"
MAX_JSON_BYTES = 1 << 20
_FIELDS_NAMED = 20


def read_tar_captions(work_unit: WorkUnit, config: CaptionsConfig) -> CaptionTable:
    """Read and clean a tar's captions.

    Captions come from the `.txt` member or, if `captions.caption_field` is set, from that field of the `.json` member
    (a string or a list of strings).

    Raises:
        DataError: As `read_tar_samples`, or no sample has the member or the field; names the file.
    """
    suffix = TEXT_SUFFIX if config.caption_field is None else JSON_SUFFIX
    limit = config.max_caption_bytes if config.caption_field is None else MAX_JSON_BYTES
    names = ("row", "caption_index", "key", "image_offset", "image_bytes", "caption_offset", "caption_bytes")
    columns: dict[str, list[int | str | None]] = {name: [] for name in names}
    raw: list[bytes | None] = []
    reasons: list[str | None] = []
    shown: dict[str, str] = {}
    found: Counter[str] = Counter()
    for row, sample in enumerate(read_tar_samples(work_unit, frozenset({suffix}), limit)):
        found.update(sample.members.keys() & {TEXT_SUFFIX, JSON_SUFFIX})
        image = sample.image()
        captions, reason = _captions_of(sample, suffix, config)
        reason = reason if image else _image_reason(sample)
        for index, caption in enumerate(captions):
            place = sample.members.get(suffix, (None, None))
            values = (row, index, sample.key, *(image or (None, None)), *place)
            for name, value in zip(names, values, strict=True):
                columns[name].append(value)
            raw.append(caption)
            reasons.append(reason)
        if reason is not None or suffix not in sample.members:
            shown.setdefault(reason or MISSING, f"row {row} ({sample.shown})")
    if raw and not any(caption is not None for caption in raw):
        _explain_missing(work_unit, config, found)
    kinds = {"caption_index": pa.int32(), "key": pa.string()}
    arrays = {name: pa.array(values, kinds.get(name, pa.int64())) for name, values in columns.items()}
    cleaned = clean(arrays, pa.array(raw, pa.binary()), config.max_caption_bytes, pa.array(reasons, pa.string()))
    return replace(cleaned, examples={reason: shown.get(reason, row) for reason, row in cleaned.examples.items()})


def _image_reason(sample: TarSample) -> str:
    unread = next((suffix for suffix in sample.members if suffix in UNREAD_IMAGE_SUFFIXES), None)
    return NO_IMAGE if unread is None else f"{UNREAD_IMAGE} .{unread}"


def _explain_missing(work_unit: WorkUnit, config: CaptionsConfig, found: Counter[str]) -> None:
    """Raise an error if the members show why no sample has a caption.

    Args:
        work_unit: The tar.
        config: How its captions were read.
        found: Number of samples with a `.txt` and with a `.json` member.
    """
    field = config.caption_field
    if field is None and found[JSON_SUFFIX] and not found[TEXT_SUFFIX]:
        raise DataError(
            f"{work_unit.uri}: its samples have no .txt member: set captions.caption_field to one of the fields of "
            f"their .json members: {_json_fields(work_unit)}"
        )
    if field is not None and not found[JSON_SUFFIX]:
        raise DataError(
            f"{work_unit.uri}: its samples have no .json member with captions.caption_field={field}"
            + ("; leave it unset to read their .txt members" if found[TEXT_SUFFIX] else "")
        )
    if field is not None and field not in (fields := _json_fields(work_unit)):
        raise DataError(
            f"{work_unit.uri}: its .json members have no captions in {field!r}; set captions.caption_field to one of "
            f"{fields}"
        )


def _json_fields(work_unit: WorkUnit) -> list[str]:
    """The fields of the first `.json` member that is an object."""
    for sample in read_tar_samples(work_unit, frozenset({JSON_SUFFIX}), MAX_JSON_BYTES):
        try:
            return list(json_object(sample.contents.get(JSON_SUFFIX, b"")))[:_FIELDS_NAMED]
        except ValueError:
            continue
    return []


def count_tar_rows(work_unit: WorkUnit) -> int:
    """Number of samples of a tar, from its headers; a remote tar is streamed whole.

    Raises:
        DataError: As `read_tar_samples`.
    """
    return sum(1 for _ in read_tar_samples(work_unit, frozenset(), 0))


def json_captions(content: bytes, field_name: str) -> list[bytes | None]:
    """The captions in one `.json` member; a single None if there is no caption.

    Raises:
        ValueError: Not a JSON object.
    """
    return field_captions(json_object(content), field_name)


def _captions_of(sample: TarSample, suffix: str, config: CaptionsConfig) -> tuple[list[bytes | None], str | None]:
    """A sample's captions, at least one entry, and the reason to refuse all of them, or None."""
    content = sample.contents.get(suffix)
    if content is None:
        return [None], None
    if config.caption_field is None:
        return [content], None
    if len(content) > MAX_JSON_BYTES:
        return [None], BIG_JSON
    try:
        captions = json_captions(content, config.caption_field)
    except ValueError:
        return [None], BAD_JSON
    return captions[:1] if config.select == "first" else captions, None
