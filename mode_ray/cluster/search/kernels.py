"""Compiled inner loops of the nearest-center search and of Lloyd's sums.

A matrix product in few dimensions gives lower bounds of all distances. These loops compute the exact distances of
the few centers that the bounds do not exclude. Each row's result is computed from that row and the centers only, in a
fixed order, so it does not depend on batches, threads, hints or processes.

faiss would compute every distance in full (its SuperKMeans prunes too, but only probabilistically and inside a whole
fit); benchmarks/kmeans.py compares them.
"""

import os
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# The vectors, the centers and the bounds of a search:
#   bounds_bm   float32 [b, m], lower bounds of distance plus price from the heads of the projections, minus a
#               constant of each row
#   lengths_b   float32 [b], last coordinates of the vectors' heads; lengths_m float32 [m], those of the centers' heads
#   tails_bt    float32 [b, t], tails of the vectors' projections; tails_mt float32 [m, t], those of the centers'
#   vectors_bd  float32 [b, d]
#   centers_md  float32 [m, d]
#   prices_m    float32 [m]
#   slack_b     float32 [b]; a center can be best only if its bound is below best + slack
Bounded = tuple[Array, Array, Array, Array, Array, Array, Array, Array, Array]

# The candidates of b rows: fine_bk int32 [b, k], squared_distance_bk float32 [b, k] without prices, count_b int32 [b].
# Each row is filled up to its count, the best candidate first.
Candidates = tuple[Array, Array, Array]

# The lowest bound of each block is tested first; computing it compiles to a few vector instructions.
_BLOCK = 32

# Compiled once per machine if the package's folder is writable, else once per process.
_compiled = numba.njit(
    nogil=True, fastmath={"reassoc", "contract", "nsz", "nnan"}, cache=os.access(Path(__file__).parent, os.W_OK)
)


@_compiled
def squared_distance(left_d: Array, right_d: Array) -> np.float32:
    """Squared L2 distance of two float32 vectors; exactly 0 for equal vectors."""
    total = np.float32(0.0)
    for k in range(left_d.shape[0]):
        difference = left_d[k] - right_d[k]
        total += difference * difference
    return total


@_compiled
def lowest_of_blocks(bounds_m: Array, lowest_q: Array) -> None:
    """The lowest bound of every block of 32; the last block may be shorter."""
    whole = bounds_m.shape[0] // _BLOCK
    for q in range(whole):
        lowest = bounds_m[q * _BLOCK]
        # A fixed number of steps, and a choice in place of `min`: only so is the loop compiled to vector instructions.
        for j in range(_BLOCK):
            bound = bounds_m[q * _BLOCK + j]
            lowest = bound if bound < lowest else lowest
        lowest_q[q] = lowest
    if whole < lowest_q.shape[0]:
        lowest_q[whole] = bounds_m[whole * _BLOCK :].min()


@_compiled
def closer_bound(
    bound: np.float32, left_length: np.float32, right_length: np.float32, left_t: Array, right_t: Array
) -> np.float32:
    """Tighten a bound from heads to one from whole projections, using the tails instead of their lengths."""
    gap = left_length - right_length
    closer = bound - gap * gap
    for k in range(left_t.shape[0]):
        difference = left_t[k] - right_t[k]
        closer += difference * difference
    return closer


@_compiled
def nearest(
    bounded: Bounded,
    hint_b: Array,
    fine_b: Array,
    squared_distance_b: Array,
) -> None:
    """The center with the lowest squared distance plus price; ties go to the lowest id.

    Args:
        bounded: The vectors, the centers and the bounds.
        hint_b: int32 [b], the center to test first, or -1 for the one with the lowest bound.
        fine_b: int32 [b], filled.
        squared_distance_b: float32 [b], filled, without price.
    """
    bounds_bm, lengths_b, lengths_m, tails_bt, tails_mt, vectors_bd, centers_md, prices_m, slack_b = bounded
    m = centers_md.shape[0]
    lowest_q = np.empty(-(-m // _BLOCK), np.float32)
    near_k = np.empty(m + 1, np.int32)
    for b in range(vectors_bd.shape[0]):
        lowest_of_blocks(bounds_bm[b], lowest_q)
        first = hint_b[b]
        if first < 0:
            start = np.argmin(lowest_q) * _BLOCK
            first = np.int32(start + np.argmin(bounds_bm[b, start : start + _BLOCK]))
        best_distance = squared_distance(vectors_bd[b], centers_md[first])
        best, fine = best_distance + prices_m[first], first
        limit = best + slack_b[b]
        # The centers below the limit are listed without a branch: the processor could not predict it.
        count = 0
        for q in range(lowest_q.shape[0]):
            if lowest_q[q] > limit:
                continue
            for j in range(q * _BLOCK, min((q + 1) * _BLOCK, m)):
                near_k[count] = j
                count += bounds_bm[b, j] <= limit
        for j in near_k[:count]:
            if bounds_bm[b, j] > limit or j == first:
                continue
            bound = closer_bound(bounds_bm[b, j], lengths_b[b], lengths_m[j], tails_bt[b], tails_mt[j])
            if bound > limit:
                continue
            distance = squared_distance(vectors_bd[b], centers_md[j])
            total = distance + prices_m[j]
            if total < best or (total == best and j < fine):
                best, fine, best_distance = total, np.int32(j), distance
                limit = best + slack_b[b]
        fine_b[b] = fine
        squared_distance_b[b] = best_distance


@_compiled
def candidates(
    bounded: Bounded,
    fine_b: Array,
    squared_distance_b: Array,
    reach: float,
    found: Candidates,
) -> None:
    """Find the centers whose squared distance plus price is within `reach` of the best.

    Args:
        bounded: As in `nearest`.
        fine_b: int32 [b], the best center from `nearest`.
        squared_distance_b: float32 [b], its distance.
        reach: In units of squared distance.
        found: Filled. If more than k centers are in reach, the k best are kept; k is at least 2.
    """
    fine_bk, squared_distance_bk, count_b = found
    bounds_bm, lengths_b, lengths_m, tails_bt, tails_mt, vectors_bd, centers_md, prices_m, slack_b = bounded
    m, width = centers_md.shape[0], fine_bk.shape[1]
    lowest_q = np.empty(-(-m // _BLOCK), np.float32)
    totals_k = np.empty(width, np.float32)
    for b in range(vectors_bd.shape[0]):
        fine_bk[b, 0], squared_distance_bk[b, 0] = fine_b[b], squared_distance_b[b]
        count, worst = 1, 0
        cut = squared_distance_b[b] + prices_m[fine_b[b]] + np.float32(reach)
        lowest_of_blocks(bounds_bm[b], lowest_q)
        for q in range(lowest_q.shape[0]):
            if lowest_q[q] > cut + slack_b[b]:
                continue
            for j in range(q * _BLOCK, min((q + 1) * _BLOCK, m)):
                if bounds_bm[b, j] > cut + slack_b[b] or j == fine_b[b]:
                    continue
                bound = closer_bound(bounds_bm[b, j], lengths_b[b], lengths_m[j], tails_bt[b], tails_mt[j])
                if bound > cut + slack_b[b]:
                    continue
                distance = squared_distance(vectors_bd[b], centers_md[j])
                total = distance + prices_m[j]
                if total > cut:
                    continue
                place = count
                if count == width:
                    place = worst
                else:
                    count += 1
                fine_bk[b, place], squared_distance_bk[b, place], totals_k[place] = j, distance, total
                if count == width:
                    worst = 1 + int(np.argmax(totals_k[1:]))
                    cut = totals_k[worst]
        count_b[b] = count


@_compiled
def best_candidates(found: Candidates, prices_m: Array, fine_b: Array, squared_distance_b: Array) -> None:
    """The best candidate of every row under other prices; outputs as in `nearest`."""
    fine_bk, squared_distance_bk, count_b = found
    for b in range(fine_bk.shape[0]):
        fine, distance = fine_bk[b, 0], squared_distance_bk[b, 0]
        best = distance + prices_m[fine]
        for k in range(1, count_b[b]):
            total = squared_distance_bk[b, k] + prices_m[fine_bk[b, k]]
            if total < best or (total == best and fine_bk[b, k] < fine):
                best, fine, distance = total, fine_bk[b, k], squared_distance_bk[b, k]
        fine_b[b] = fine
        squared_distance_b[b] = distance


@_compiled
def move_rows(vectors_bc: Array, before_b: Array, after_b: Array, first: int, sums_md: Array) -> None:
    """Subtract rows from the sums of their previous centers and add them to those of their new centers, in place.

    Args:
        vectors_bc: float32 [b, c], c columns of the rows. The values are float16, so their sums in float64 are exact
            and subtracting a row leaves no remainder.
        before_b: int32 [b], previous centers; -1 for none.
        after_b: int32 [b], new centers.
        first: Position of the first of these columns in the sums.
        sums_md: float64 [m, d].
    """
    for b in range(vectors_bc.shape[0]):
        before, after = before_b[b], after_b[b]
        if before == after:
            continue
        for k in range(vectors_bc.shape[1]):
            sums_md[after, first + k] += np.float64(vectors_bc[b, k])
        if before >= 0:
            for k in range(vectors_bc.shape[1]):
                sums_md[before, first + k] -= np.float64(vectors_bc[b, k])


@_compiled
def hash_rows(bits_bd: Array, factors_d: Array, hash_b: Array) -> None:
    """Hash rows: the sum modulo 2^64 of bits times odd factors, each product mixed.

    Args:
        bits_bd: uint32 [b, d].
        factors_d: uint64 [d], odd.
        hash_b: uint64 [b], filled.
    """
    for b in range(bits_bd.shape[0]):
        total = np.uint64(0)
        for k in range(bits_bd.shape[1]):
            product = np.uint64(bits_bd[b, k]) * factors_d[k]
            # Without mixing, the low bits of the sum would depend only on the low bits of the values.
            total += product ^ (product >> np.uint64(29))
        hash_b[b] = total
