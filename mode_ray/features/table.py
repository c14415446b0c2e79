"""The table of trunk features: its columns, and conversion to and from Arrow; one file for each work unit."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

IMAGE = "image"
"""Column: features of all views of the image side by side, float16 [views * k]; zeros without an image."""
TEXT = "text"
"""Column: features of the caption, float16 [k]."""
PROBLEM = "problem"
"""Column: why the image has no features; null if it has."""

Half = npt.NDArray[np.float16]


def feature_table(places: pa.Table, image_bvk: Half, text_bk: Half, problems: list[str | None]) -> pa.Table:
    """The features of one work unit, in the order of its assignments.

    Args:
        places: Columns `row` and `caption_index`.
        image_bvk: Of the images, [b, views, k].
        text_bk: Of the captions, [b, k].
        problems: Of the images.
    """
    return pa.table(
        {
            "row": places["row"],
            "caption_index": places["caption_index"],
            IMAGE: _column(image_bvk.reshape(len(image_bvk), -1)),
            TEXT: _column(text_bk),
            PROBLEM: pa.array(problems, pa.string()),
        }
    )


def feature_rows(table: pa.Table, name: str) -> Half:
    """A column of features as [b, width]; without a copy if it is one chunk."""
    column = table[name].combine_chunks()
    flat: Half = column.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), column.type.list_size)


def _column(rows_bk: Half) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(rows_bk).reshape(-1)), rows_bk.shape[1])
