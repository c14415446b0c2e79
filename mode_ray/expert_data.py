"""Each expert's training set: an index over the source shards; no pair is copied.

The index of a training set names (shard, row, caption) and, for tars, the byte offsets that `assign` recorded. The
coarse map turns fine clusters into experts by a table lookup, so one set of assignments serves every n.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mode_ray.assign import DISTANCE, FINE
from mode_ray.captions.shards import Shard
from mode_ray.errors import DataError
from mode_ray.stage import read_output
from mode_ray.storage import Location

SHARD = "shard"
_INDEX_COLUMNS = (
    "row",
    "caption_index",
    "image_offset",
    "image_bytes",
    "caption_offset",
    "caption_bytes",
    FINE,
    DISTANCE,
)
_INDEX_READERS = 8


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """Which pairs a model is trained on.

    Attributes:
        kind: `all` pairs; those of one `expert`; or a `random` deal of the pairs with the experts' sizes (the
        control).
        experts: n, for `expert` and `random`.
        expert: Which of them.
        out_of_cluster_share: Share of the set that is drawn from the other clusters.
        seed: Of the draws.
        held_out_below: Rows whose hash is below this are left out (`mode_ray.held_out`); 0 for none.
    """

    kind: Literal["all", "expert", "random"]
    experts: int = 1
    expert: int = 0
    out_of_cluster_share: float = 0.0
    seed: int = 0
    held_out_below: int = 0


@dataclass(frozen=True)
class PairIndex:
    """Where the pairs of a training set lie.

    Attributes:
        shards: The source shards.
        table: One row a (pair, caption): `shard` int32 (position in `shards`), `row`, `caption_index`, `fine`,
            `distance`, and for tars the members' offsets and sizes.
    """

    shards: tuple[Shard, ...]
    table: pa.Table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def take(self, positions: np.ndarray) -> "PairIndex":
        """The index of a subset."""
        return PairIndex(self.shards, self.table.take(pa.array(positions)))


def load_index(assignments: Location, shards: Sequence[Shard]) -> PairIndex:
    """Read the index of all pairs from the assignment shards; shards without one (quarantined) are left out.

    Raises:
        DataError: There is no assignment at all.
    """
    present = {file.name.removesuffix(".parquet") for file in assignments.files()}
    numbered = [(number, shard) for number, shard in enumerate(shards) if shard.unit in present]
    if not numbered:
        raise DataError(f"{assignments}: no assignment of the given shards; run `mode-ray assign` first")
    with ThreadPoolExecutor(_INDEX_READERS) as readers:
        tables = list(readers.map(lambda item: _shard_index(assignments, *item), numbered))
    return PairIndex(tuple(shards), pa.concat_tables(tables, promote_options="default").combine_chunks())


def _shard_index(assignments: Location, number: int, shard: Shard) -> pa.Table:
    table = read_output(assignments, shard.unit)
    table = table.select([name for name in _INDEX_COLUMNS if name in table.column_names])
    numbers = pa.array(np.full(table.num_rows, number, np.int32))
    return table.replace_schema_metadata(None).add_column(0, SHARD, numbers)


def fine_counts(index: PairIndex, centers: int) -> np.ndarray:
    """Captions of each fine cluster, int64 [m]."""
    return np.bincount(index.table[FINE].to_numpy(), minlength=centers)


def select_members(fine_p: np.ndarray, group_m: np.ndarray, members: TrainingSet) -> np.ndarray:
    """Positions of a training set's pairs, ascending, int64.

    Args:
        fine_p: Fine cluster of every pair.
        group_m: Coarse map for n experts; unused for `all`.
        members: The set.

    Raises:
        DataError: The set is empty.
    """
    if members.kind == "all":
        return np.arange(len(fine_p))
    expert_p = group_m[fine_p]
    if members.kind == "random":
        expert_p = np.random.default_rng((members.seed, members.experts)).permutation(expert_p)
    own = np.flatnonzero(expert_p == members.expert)
    if len(own) == 0:
        raise DataError(
            f"expert {members.expert} of {members.experts} has no pair; lower train.experts or bring more captions"
        )
    if members.kind == "random" or members.out_of_cluster_share == 0.0:
        return own
    others = np.flatnonzero(expert_p != members.expert)
    share = members.out_of_cluster_share
    wanted = min(len(others), round(len(own) * share / (1 - share))) if share < 1 else len(others)
    generator = np.random.default_rng((members.seed, members.experts, members.expert))
    return np.sort(np.concatenate([own, generator.choice(others, size=wanted, replace=False)]))


def nearest_rows(index: PairIndex, centers: int, per_center: int) -> np.ndarray:
    """Positions of the captions nearest to each center, up to `per_center` each, in order of centers; for reports."""
    order = pc.sort_indices(index.table, [(FINE, "ascending"), (DISTANCE, "ascending")]).to_numpy()
    fine = index.table[FINE].to_numpy()[order]
    starts = np.searchsorted(fine, np.arange(centers))
    nearest: np.ndarray = order[np.arange(len(fine)) - starts[fine] < per_center]
    return nearest
