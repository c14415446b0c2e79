"""The encoded images of one work unit. Rows are numbered like the rows of captions."""

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from mode_ray.captions.image_column import BadImageError, stored_image
from mode_ray.captions.parquet import open_parquet, row_group_range
from mode_ray.captions.tar_samples import IMAGE_SUFFIXES, read_tar_samples
from mode_ray.config.captions import CaptionsConfig
from mode_ray.errors import DataError
from mode_ray.stages.work_unit import WorkUnit
from mode_ray.storage import is_damage

MAX_IMAGE_BYTES = 64 << 20
_ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class EncodedImage:
    """One image of a file.

    Attributes:
        row: Its row, or the number of its sample in the tar.
        key: Its name: that of the tar member, the value of `captions.key_field`, or the row number.
        data: The encoded image; None if the row has none.
        problem: Why it has none, if that is known.
    """

    row: int
    key: str
    data: bytes | None
    problem: str = ""


def read_images(work_unit: WorkUnit, config: CaptionsConfig) -> Iterator[EncodedImage]:
    """The images of a work unit, in order.

    Args:
        work_unit: A parquet file, a part of one, or a tar.
        config: Names of the fields.

    Raises:
        DataError: The file is missing or damaged, or a column is missing or holds no images; names file and column.
    """
    return _tar_images(work_unit) if work_unit.format == "webdataset" else _parquet_images(work_unit, config)


def _tar_images(work_unit: WorkUnit) -> Iterator[EncodedImage]:
    for row, sample in enumerate(read_tar_samples(work_unit, IMAGE_SUFFIXES, MAX_IMAGE_BYTES)):
        data = next((content for suffix, content in sample.contents.items() if suffix in IMAGE_SUFFIXES), None)
        yield EncodedImage(row, sample.key, data)


def _parquet_images(work_unit: WorkUnit, config: CaptionsConfig) -> Iterator[EncodedImage]:
    file = open_parquet(work_unit)
    columns = [config.image_field] if config.key_field is None else [config.image_field, config.key_field]
    for name, setting in zip(columns, ("image_field", "key_field"), strict=False):
        if name not in file.schema_arrow.names:
            raise DataError(
                f"{work_unit.uri}: no column {name!r}; set captions.{setting} to one of {file.schema_arrow.names}"
            )
    row = work_unit.first_row
    try:
        batches = file.iter_batches(_ROWS_AT_ONCE, row_groups=list(row_group_range(work_unit, file)), columns=columns)
        for batch in batches:
            for values in batch.to_pylist():
                key = row if config.key_field is None else values[config.key_field]
                yield _stored(row, str(key), values[config.image_field], work_unit, config)
                row += 1
    except (pa.ArrowInvalid, OSError) as error:
        if not is_damage(error, work_unit.location):
            raise
        reason = " ".join(str(error).split())
        raise DataError(f"{work_unit.uri}: damaged near row {row} ({reason}); replace or remove it") from None


def _stored(row: int, key: str, value: object, work_unit: WorkUnit, config: CaptionsConfig) -> EncodedImage:
    try:
        data = stored_image(value, config.image_field, config.image_root, f"{work_unit.uri}: row {row}")
    except BadImageError as error:
        return EncodedImage(row, key, None, str(error))
    return EncodedImage(row, key, data)
