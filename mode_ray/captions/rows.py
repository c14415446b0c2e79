"""Collects captions that are read row by row into Arrow arrays, and cleans them."""

import pyarrow as pa

from mode_ray.captions.clean import CaptionTable, clean
from mode_ray.config.captions import CaptionsConfig
from mode_ray.errors import DataError
from mode_ray.stages.work_unit import WorkUnit

MAX_TEXT_BYTES = 1 << 30
_BLOCK_ROWS = 1 << 16
_KINDS = {
    "row": pa.int64(),
    "caption_index": pa.int32(),
    "key": pa.string(),
    "caption": pa.binary(),
    "reason": pa.string(),
}


class CaptionRows:
    """Collects the captions of one text shard, within the config's limits on rows and captions."""

    def __init__(self, work_unit: WorkUnit, config: CaptionsConfig) -> None:
        self._work_unit = work_unit
        self._config = config
        self._blocks: list[pa.Table] = []
        self._block: list[tuple[int, int, str, bytes | None, str | None]] = []
        self._rows = self._bytes = 0

    def add(self, row: int, key: str, captions: list[bytes | None]) -> None:
        """Add one row's captions, at least one entry."""
        for index, caption in enumerate(captions):
            # One byte beyond the limit is enough to refuse a caption.
            text = None if caption is None else caption[: self._config.max_caption_bytes + 1]
            self._append((row, index, key, text, None))

    def refuse(self, row: int, reason: str) -> None:
        """Count an unreadable row as refused."""
        # A unique key: row numbers are already used as the keys of rows without one.
        self._append((row, 0, f"refused row {row}", None, reason))

    def _append(self, entry: tuple[int, int, str, bytes | None, str | None]) -> None:
        self._rows += 1
        self._bytes += len(entry[3] or b"") + len(entry[2])
        limit = self._config.max_rows_per_unit
        if self._rows > limit:
            raise DataError(
                f"{self._work_unit.uri}: more than captions.max_rows_per_unit={limit} captions, and text files are "
                "not split into units; distribute them over several files, or raise that setting"
            )
        if self._bytes > MAX_TEXT_BYTES:
            raise DataError(
                f"{self._work_unit.uri}: more than {MAX_TEXT_BYTES} bytes of text; distribute it over several files"
            )
        self._block.append(entry)
        if len(self._block) >= _BLOCK_ROWS:
            self._flush()

    def _flush(self) -> None:
        columns = zip(*self._block, strict=True) if self._block else ((),) * len(_KINDS)
        arrays = {name: pa.array(values, kind) for (name, kind), values in zip(_KINDS.items(), columns, strict=True)}
        self._blocks.append(pa.table(arrays))
        self._block = []

    def cleaned(self) -> CaptionTable:
        """The collected captions, cleaned and counted."""
        self._flush()
        table = pa.concat_tables(self._blocks).combine_chunks()
        columns = {name: table[name].combine_chunks() for name in table.column_names}
        raw, reasons = columns.pop("caption"), columns.pop("reason")
        return clean(columns, raw, self._config.max_caption_bytes, reasons)


def text_key(value: str) -> str:
    """A key whose invalid UTF-8 (lone surrogates) is written as escapes."""
    return value.encode(errors="backslashreplace").decode()
