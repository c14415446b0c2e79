"""The table of an index's embeddings: float32, unlike caption embeddings, because inner products are scores."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

EMBEDDING = "embedding"
CAPTION = "caption"
"""The first caption of the image's pair; null without one. Indexes of mode_ray 0.1 do not have this column."""

Float32Array = npt.NDArray[np.float32]


def index_table(
    rows: Sequence[int], keys: Sequence[str], captions: Sequence[str | None], embeddings_bd: Float32Array
) -> pa.Table:
    """The table of a work unit: `row` int64, `key` and `caption` string, `embedding` float32[d]."""
    flat = pa.array(np.ascontiguousarray(embeddings_bd, np.float32).reshape(-1))
    return pa.table(
        {
            "row": pa.array(rows, pa.int64()),
            "key": pa.array(keys, pa.string()),
            CAPTION: pa.array(captions, pa.string()),
            EMBEDDING: pa.FixedSizeListArray.from_arrays(flat, embeddings_bd.shape[1]),
        }
    )


def embedding_rows(table: pa.Table) -> Float32Array:
    """The embeddings of a table, float32 [b, d]."""
    column = table[EMBEDDING].combine_chunks()
    flat: Float32Array = column.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), column.type.list_size)
