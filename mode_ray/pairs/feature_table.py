"""The table of trunk features: its columns, and conversion to and from Arrow; one file for each work unit."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

CAPTION_ID = "caption_id"
"""Column: `mode_ray.pairs.reader.caption_id` of the caption, int64."""
IMAGE = "image"
"""Column: features of all views of the image side by side, float16 [views * k]; zeros without an image."""
TEXT = "text"
"""Column: features of the caption, float16 [k]."""
PROBLEM = "problem"
"""Column: why the image has no features; null if it has."""
_NOTE_KEY = b"mode_ray.features"

Half = npt.NDArray[np.float16]


@dataclass(frozen=True)
class FeatureNote:
    """What the features of a file were computed with.

    Attributes:
        trunk: Hash of the weights of the trunks.
        views: Views of every image.
        transform: How pixels become the input of the trunk.
    """

    trunk: str
    views: int
    transform: str

    @classmethod
    def of(cls, schema: pa.Schema) -> "FeatureNote":
        """From the schema of a table or file of features."""
        return cls(**json.loads((schema.metadata or {})[_NOTE_KEY]))


@dataclass(frozen=True)
class PairFeatures:
    """The features of some pairs.

    Attributes:
        image_bvk: Of the images, [b, views, k].
        text_bk: Of the captions, [b, k].
        caption_id_b: Ids of the captions, int64.
        problems: Why images have no features; None for those that have.
    """

    image_bvk: Half
    text_bk: Half
    caption_id_b: npt.NDArray[np.int64]
    problems: Sequence[str | None]


def feature_table(captions: pa.Table, features: PairFeatures, note: FeatureNote) -> pa.Table:
    """The features of one work unit.

    Args:
        captions: The unit's captions in the same order, with columns `row` and `caption_index`.
        features: Their features.
        note: What the features were computed with.
    """
    columns = {
        "row": captions["row"],
        "caption_index": captions["caption_index"],
        CAPTION_ID: pa.array(features.caption_id_b, pa.int64()),
        IMAGE: _column(features.image_bvk.reshape(len(captions), -1)),
        TEXT: _column(features.text_bk),
        PROBLEM: pa.array(features.problems, pa.string()),
    }
    return pa.table(columns).replace_schema_metadata({_NOTE_KEY: json.dumps(asdict(note)).encode()})


def feature_column(table: pa.Table, name: str) -> Half:
    """A column of features as [b, width]; without a copy if it is one chunk."""
    column = table[name].combine_chunks()
    flat: Half = column.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), column.type.list_size)


def _column(rows_bk: Half) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(rows_bk).reshape(-1)), rows_bk.shape[1])
