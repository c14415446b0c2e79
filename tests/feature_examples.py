"""Features of made-up numbers, as the stage writes them."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from mode_ray.pairs.feature_table import FeatureNote, PairFeatures, feature_table
from mode_ray.pairs.reader import caption_id
from mode_ray.run_directory import unit_output
from mode_ray.stages.manifest import Stage, UnitRecord, write_unit
from mode_ray.storage import Location

Row = tuple[int, int, str, str | None]
"""Row, caption index, caption, and why its image has no features."""
VIEWS, IMAGE_WIDTH, TEXT_WIDTH = 2, 3, 4


def image_of(unit: int, row: int) -> np.ndarray:
    """The features of an image, [views, k]."""
    return np.arange(VIEWS * IMAGE_WIDTH, dtype=np.float16).reshape(VIEWS, -1) + 100 * unit + 10 * row


def text_of(caption: str) -> np.ndarray:
    """The features of a caption, [k]."""
    return np.full(TEXT_WIDTH, len(caption), np.float16)


def write_features(
    directory: Location, units: Sequence[Sequence[Row]], trunks: Sequence[str] = "tt", transforms: Sequence[str] = "cc"
) -> None:
    """Write the outputs of a features stage, unit `u0` first, and finish it."""
    stage = Stage("features", directory, {})
    stage.begin(len(units))
    records = []
    for number, rows in enumerate(units):
        captions = pa.table(
            {
                "row": pa.array([row[0] for row in rows], pa.int64()),
                "caption_index": pa.array([row[1] for row in rows], pa.int32()),
            }
        )
        features = PairFeatures(
            image_bvk=np.stack([image_of(number, row[0]) * (row[3] is None) for row in rows]),
            text_bk=np.stack([text_of(row[2]) for row in rows]),
            caption_id_b=np.array([caption_id(row[2]) for row in rows]),
            problems=[row[3] for row in rows],
        )
        record = UnitRecord(unit=f"u{number}", source=f"/data/u{number}.tar", rows_in=len(rows), rows_out=len(rows))
        table = feature_table(captions, features, FeatureNote(trunks[number], VIEWS, transforms[number]))
        records.append(write_unit(unit_output(directory, record.unit), table, record))
    stage.finish(records, {})
