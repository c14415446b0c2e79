"""Merges byte ranges that are close together, so that one request reads several of them."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class MergedRanges:
    """Requests that cover a set of ranges.

    Attributes:
        files_q: Number of the file that each request reads, int64 [q].
        starts_q: First byte of each request.
        ends_q: The byte after the last one of each request.
        request_r: The request that covers each range, int64 [r].
        range_bytes: Bytes of all ranges; bytes of overlapping ranges count once.
    """

    files_q: Int64Array
    starts_q: Int64Array
    ends_q: Int64Array
    request_r: Int64Array
    range_bytes: int

    @property
    def request_bytes(self) -> int:
        """Bytes of all requests."""
        return int((self.ends_q - self.starts_q).sum())


def merge_ranges(files_r: Int64Array, starts_r: Int64Array, sizes_r: Int64Array, slack: float) -> MergedRanges:
    """Merge ranges of the same file across the smallest gaps, up to a limit on the total size of the gaps.

    Args:
        files_r: Number of each range's file, int64 [r].
        starts_r: First byte of each range.
        sizes_r: Length of each range.
        slack: Maximum bytes in gaps, as a share of the ranges' own bytes.
    """
    if len(files_r) == 0:
        return MergedRanges(files_r, starts_r, starts_r, files_r, 0)
    order = np.lexsort((starts_r, files_r))
    files, starts = files_r[order], starts_r[order]
    ends = starts + sizes_r[order]
    # Shift each file's ranges behind those of the file before it, so that running maxima do not mix files.
    base = (np.cumsum(np.diff(files, prepend=files[:1]) != 0)) * (int(ends.max()) + 1)
    reached = np.maximum.accumulate(ends + base) - base
    same_file = files[1:] == files[:-1]
    gaps = np.maximum(0, starts[1:] - reached[:-1])
    covered_before = np.where(same_file, np.maximum(starts[1:], reached[:-1]), starts[1:])
    range_bytes = int(ends[0] - starts[0] + np.maximum(0, ends[1:] - covered_before).sum())
    inner = np.flatnonzero(same_file)
    by_size = inner[np.argsort(gaps[inner], kind="stable")]
    bridged = by_size[np.cumsum(gaps[by_size]) <= slack * range_bytes]
    begins = np.ones(len(files), bool)
    begins[bridged + 1] = False
    firsts = np.flatnonzero(begins)
    request_r = np.empty(len(files), np.int64)
    request_r[order] = np.cumsum(begins) - 1
    lasts = np.append(firsts[1:], len(files)) - 1
    return MergedRanges(files[firsts], starts[firsts], reached[lasts], request_r, range_bytes)
