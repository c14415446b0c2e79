"""The schema of embedding files, and conversion of vectors to and from Arrow without copies."""

import numpy as np
import pyarrow as pa

from mode_ray.captions.clean import CaptionTable

EMBEDDING = "embedding"
NO_EMBEDDING = "no embedding (no known word, or not finite)"
_PLACE_COLUMNS = (
    "row",
    "caption_index",
    "key",
    "image_offset",
    "image_bytes",
    "caption_offset",
    "caption_bytes",
)


def place_columns(table: pa.Table) -> dict[str, pa.ChunkedArray]:
    """The columns that identify a row's caption and the position of its members in the tar."""
    return {name: table[name] for name in _PLACE_COLUMNS if name in table.column_names}


def as_stored(vectors_bd: np.ndarray) -> np.ndarray:
    """Vectors [b, d] with the precision of stored embeddings: float16."""
    return vectors_bd.astype(np.float16)


def embedding_column(vectors_bd: np.ndarray) -> pa.FixedSizeListArray:
    """Vectors as `fixed_size_list<float16>[d]`."""
    half = np.ascontiguousarray(vectors_bd, dtype=np.float16)
    return pa.FixedSizeListArray.from_arrays(pa.array(half.reshape(-1)), vectors_bd.shape[1])


def embedding_vectors(table: pa.Table) -> np.ndarray:
    """The embedding column of a table as float16 [b, d]; without a copy if it is one chunk."""
    column = table[EMBEDDING].combine_chunks()
    flat: np.ndarray = column.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), column.type.list_size)


def split_usable(captions: CaptionTable, vectors_bd: np.ndarray) -> tuple[CaptionTable, np.ndarray]:
    """Refuse and count captions whose embedding is zero or not finite."""
    usable = np.isfinite(vectors_bd).all(axis=1) & (np.abs(vectors_bd) > 0).any(axis=1)
    if usable.all():
        return captions, vectors_bd
    first = int(np.argmin(usable))
    refused = {**captions.refused, NO_EMBEDDING: int((~usable).sum())}
    examples = {**captions.examples, NO_EMBEDDING: f"row {captions.table['row'][first].as_py()}"}
    kept = CaptionTable(captions.table.filter(pa.array(usable)), captions.rows_in, refused, examples)
    return kept, vectors_bd[usable]
