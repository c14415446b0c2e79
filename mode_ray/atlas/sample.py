"""Summarises sampled captions for the atlas: figures of each, term counts, and texts at both ends of a cluster."""

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mode_ray.atlas.summary import MAX_CAPTION_CHARACTERS
from mode_ray.atlas.terms import count_terms
from mode_ray.cluster.search.nearest import Float32Array, Int32Array

# Joiners shape emoji and Indic letters. Other format characters could reorder or hide text.
_JOINERS = "\u200c\u200d"


@dataclass(frozen=True, eq=False)
class CaptionSample:
    """Sampled captions by fine cluster.

    Attributes:
        fine_b: int32 [b], cluster of every sampled caption.
        squared_distance_b: float32 [b], squared distance to its center.
        text_hash_b: uint64 [b], to count distinct captions.
        terms: As `count_terms` returns.
        ends: The captions nearest to and farthest from each center: fine int32, squared_distance float32,
            text_hash uint64, caption string (shortened).
        missing: Number of sampled rows whose caption is no longer in the source.
    """

    fine_b: Int32Array
    squared_distance_b: Float32Array
    text_hash_b: npt.NDArray[np.uint64]
    terms: pa.Table
    ends: pa.Table
    missing: int = 0

    def __len__(self) -> int:
        return len(self.fine_b)


def summarise(
    fine_b: Int32Array, squared_distance_b: Float32Array, captions: Sequence[str], per_end: int, missing: int = 0
) -> CaptionSample:
    """Summarise captions: 16 bytes per row, and `per_end` texts nearest to each center and farthest from it."""
    hashes = [hashlib.blake2b(caption.encode(), digest_size=8).digest() for caption in captions]
    text_hash_b = np.frombuffer(b"".join(hashes), np.uint64)
    kept = end_positions(fine_b, squared_distance_b, text_hash_b, per_end)
    ends = pa.table(
        {
            "fine": pa.array(fine_b[kept]),
            "squared_distance": pa.array(squared_distance_b[kept]),
            "text_hash": pa.array(text_hash_b[kept]),
            "caption": pa.array([shown(captions[position]) for position in kept.tolist()], pa.string()),
        }
    )
    return CaptionSample(fine_b, squared_distance_b, text_hash_b, count_terms(captions, fine_b), ends, missing)


def merge(samples: Sequence[CaptionSample], per_end: int) -> CaptionSample:
    """Merge samples; the result does not depend on how captions were distributed to them."""
    terms = pa.concat_tables([sample.terms for sample in samples])
    terms = terms.group_by(["term", "fine"]).aggregate([("captions", "sum")]).rename_columns(terms.column_names)
    ends = pa.concat_tables([sample.ends for sample in samples]).combine_chunks()
    columns = [ends[name].to_numpy() for name in ("fine", "squared_distance", "text_hash")]
    kept = end_positions(columns[0], columns[1], columns[2], per_end)
    return CaptionSample(
        np.concatenate([sample.fine_b for sample in samples]),
        np.concatenate([sample.squared_distance_b for sample in samples]),
        np.concatenate([sample.text_hash_b for sample in samples]),
        terms.sort_by([("fine", "ascending"), ("term", "ascending")]),
        ends.take(pa.array(kept)),
        sum(sample.missing for sample in samples),
    )


def end_positions(
    fine_b: npt.NDArray[np.integer],
    squared_distance_b: npt.NDArray[np.floating],
    text_hash_b: npt.NDArray[np.uint64],
    per_end: int,
) -> npt.NDArray[np.intp]:
    """Positions of the distinct captions nearest to and farthest from each center, up to `per_end` each.

    They are in order of cluster, distance and hash.
    """
    order = np.lexsort((text_hash_b, squared_distance_b, fine_b))
    pairs = np.rec.fromarrays([fine_b[order], text_hash_b[order]])
    order = order[np.sort(np.unique(pairs, return_index=True)[1])]
    fine = fine_b[order]
    first = np.searchsorted(fine, fine)
    last = np.searchsorted(fine, fine, side="right") - 1
    position = np.arange(len(fine))
    kept: npt.NDArray[np.intp] = order[(position - first < per_end) | (last - position < per_end)]
    return kept


def shown(caption: str) -> str:
    """A caption safe to show on a page: one line without control or direction characters, cut if it is long."""
    plain = caption[: 4 * MAX_CAPTION_CHARACTERS]
    if not plain.isprintable():
        plain = "".join(
            character if unicodedata.category(character)[0] != "C" or character in _JOINERS else " "
            for character in plain
        )
    return clipped(" ".join(plain.split()), MAX_CAPTION_CHARACTERS)


def clipped(text: str, characters: int) -> str:
    """A text cut to at most `characters`, with an ellipsis at its end."""
    return text if len(text) <= characters else text[: characters - 1].rstrip() + "…"
