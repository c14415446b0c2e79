"""Vectorised caption cleaning. Refused captions are counted by reason, with the row of the first one."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

MISSING = "missing caption"
EMPTY = "empty caption"
TOO_LONG = "caption too long"
INVALID_UTF8 = "caption not UTF-8"
DUPLICATE_KEY = "key repeated in its shard"
NO_IMAGE = "no image"
UNREAD_IMAGE = "no image of a format that is read, but"
BAD_JSON = ".json member not a JSON object"
BIG_JSON = ".json member too large"
BAD_LINE = "line not a JSON object"
BIG_LINE = "line too long"
BAD_KEY = "key neither text nor number"
COLUMN_COUNT = "wrong number of columns"
BAD_RECORD = "CSV row cannot be read (unclosed quote, or too long)"
_BYTE_ORDER_MARK = "\ufeff"
# The white space of `str.split`; `\s` of Arrow's regular expressions is ASCII only.
_WHITE_SPACE = r"[\t-\r\x1c-\x1f\x{85}\p{Z}]+"


@dataclass(frozen=True)
class CaptionTable:
    """The usable captions of one shard.

    Attributes:
        table: row int64, caption_index int32, key string, caption string; for tars also image_offset, image_bytes,
            caption_offset, caption_bytes int64 (of the members' contents in the tar).
        rows_in: Captions found, including refused ones; a pair without captions counts as one.
        refused: Number of refused captions, by reason.
        examples: For each reason, the row of the first caption refused for it.
        ordinals: For each row of `table`, its position among the `rows_in` captions, int64; None if unknown.
    """

    table: pa.Table
    rows_in: int
    refused: Mapping[str, int]
    examples: Mapping[str, str]
    ordinals: np.ndarray | None = None

    def take(self, ordinals: np.ndarray) -> "CaptionTable":
        """The usable captions at some positions among all captions found.

        Args:
            ordinals: Positions below `rows_in`, int64.
        """
        if self.ordinals is None:
            raise ValueError("the positions of these captions are unknown")
        chosen = np.isin(self.ordinals, ordinals)
        return replace(self, table=self.table.filter(pa.array(chosen)), ordinals=self.ordinals[chosen])


def clean(
    columns: Mapping[str, pa.Array],
    raw_captions: pa.Array,
    max_caption_bytes: int,
    found_reasons: pa.Array | None = None,
) -> CaptionTable:
    """Keep the usable captions; count the others.

    A leading byte order mark is removed, Unicode white space (as in `str.split`) is trimmed, and runs of it become one
    space: `normalised` does the same to one caption. If several samples have the
    same key, only the first is kept.

    Args:
        columns: `row`, `caption_index`, `key`, and any further columns to carry along, all of one length.
        raw_captions: Binary array of undecoded captions; null for a missing caption.
        max_caption_bytes: Longer captions are refused.
        found_reasons: String array of the reader's reasons to refuse a caption; null for none.
    """
    text, invalid = _decode(raw_captions)
    text = pc.replace_substring_regex(text, f"^{_BYTE_ORDER_MARK}", "")
    text = pc.utf8_trim(pc.replace_substring_regex(text, _WHITE_SPACE, " "), " ")
    reasons = np.full(len(text), "", dtype=object)
    for mask, reason in (
        (_first_key_differs(columns), DUPLICATE_KEY),
        (_true(pc.equal(pc.binary_length(text), 0)), EMPTY),
        (invalid, INVALID_UTF8),
        # Overrides INVALID_UTF8: readers cut long captions, possibly inside a character.
        (_true(pc.greater(pc.binary_length(raw_captions), max_caption_bytes)), TOO_LONG),
        (raw_captions.is_null().to_numpy(zero_copy_only=False), MISSING),
    ):
        reasons[mask] = reason
    if found_reasons is not None:
        found = found_reasons.is_valid().to_numpy(zero_copy_only=False)
        reasons[found] = found_reasons.to_numpy(zero_copy_only=False)[found]
    keep = reasons == ""
    rows = columns["row"].to_numpy()
    names, first, counts = np.unique(reasons.astype(str), return_index=True, return_counts=True)
    refused = {str(name): int(count) for name, count in zip(names, counts, strict=True) if name}
    examples = {str(name): f"row {rows[index]}" for name, index in zip(names, first, strict=True) if name}
    table = pa.table({**columns, "caption": text}).filter(pa.array(keep))
    return CaptionTable(table, len(reasons), refused, examples, np.flatnonzero(keep))


def normalised(caption: str) -> str:
    """A usable caption as `clean` writes it."""
    return " ".join(caption.removeprefix(_BYTE_ORDER_MARK).split())


def _true(mask: pa.Array) -> np.ndarray:
    """A boolean array; null becomes false."""
    filled: np.ndarray = pc.fill_null(mask, False).to_numpy(zero_copy_only=False)
    return filled


def _decode(raw: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """UTF-8 strings (null if undecodable) and the mask of undecodable ones."""
    try:
        return raw.cast(pa.string()), np.zeros(len(raw), dtype=bool)
    except pa.ArrowInvalid:
        texts = [_decode_one(value.as_py()) for value in raw]
        decoded = pa.array(texts, pa.string())
        invalid = pc.and_(raw.is_valid(), decoded.is_null()).to_numpy(zero_copy_only=False)
        return decoded, invalid


def _decode_one(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None


def _first_key_differs(columns: Mapping[str, pa.Array]) -> np.ndarray:
    """Mask of captions whose key occurs in an earlier row."""
    numbers = columns["key"].dictionary_encode().indices.to_numpy()
    _, first_index, inverse = np.unique(numbers, return_index=True, return_inverse=True)
    rows = columns["row"].to_numpy()
    mask: np.ndarray = rows[first_index][inverse] != rows
    return mask
