"""Which pairs an expert is trained on, shard by shard: the coarse map turns fine clusters into experts by a lookup.

One set of assignments serves every n. All draws are exactly uniform over the pairs of all shards, though no list of
them is made: a first pass counts, a second one draws in each shard what was allotted to it.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mode_ray.assign.table import FINE, assigned_units, stream_assignments
from mode_ray.errors import DataError
from mode_ray.pairs.held_out import is_kept
from mode_ray.pairs.index import SHARD, index_columns, index_rows
from mode_ray.stages.work_unit import WorkUnit
from mode_ray.storage import Location
from mode_ray.util.sampling import allocate_sample, sample_positions

BoolArray = npt.NDArray[np.bool_]
Int64Array = npt.NDArray[np.int64]
_Chooser = Callable[[str, np.ndarray], Int64Array]


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
        held_out_below: Rows whose hash is below this are left out (`mode_ray.pairs.held_out`); 0 for none.
    """

    kind: Literal["all", "expert", "random"]
    experts: int = 1
    expert: int = 0
    out_of_cluster_share: float = 0.0
    seed: int = 0
    held_out_below: int = 0

    @property
    def drawn(self) -> "TrainingSet":
        """This set without what does not decide its pairs, so that sets of equal pairs are equal."""
        if self.kind == "all":
            return TrainingSet(kind="all", held_out_below=self.held_out_below)
        return self if self.kind == "random" or self.out_of_cluster_share else replace(self, seed=0)

    @property
    def name(self) -> str:
        """A file name that no set of other pairs has."""
        if self.kind == "all" and not self.held_out_below:
            return "all"
        digest = hashlib.blake2b(repr(self.drawn).encode(), digest_size=4).hexdigest()
        if self.kind == "all":
            return f"all-{digest}"
        return f"{'random-' if self.kind == 'random' else ''}n{self.experts}-{self.expert:02d}-{digest}"


def stream_members(
    members: TrainingSet, assignments: Location, work_units: Sequence[WorkUnit], group_m: np.ndarray
) -> Iterator[pa.Table]:
    """The index rows of a training set, in order of shards and rows; a few shards are in memory at a time.

    Only the deal of the `random` control holds a number for every pair, two bytes each.

    Args:
        members: The set.
        assignments: Directory of the assignment shards.
        work_units: All source shards.
        group_m: Coarse map for n experts; unused for `all`.

    Raises:
        DataError: The set is empty, or there is no assignment at all.
    """
    numbered = assigned_units(assignments, work_units)
    schema = index_columns(tars=any(work_unit.format == "webdataset" for _, work_unit in numbered))
    choose = _chooser(members, assignments, numbered, group_m)
    # Parquet shards have fewer of these columns; without keys, most of a shard's bytes stay unread.
    columns = [*(name for name in schema.names if name != SHARD), FINE]
    for number, work_unit, assigned in stream_assignments(assignments, numbered, columns):
        chosen = choose(work_unit.unit, assigned[FINE].to_numpy())
        if members.held_out_below:
            kept = is_kept(work_unit.unit, assigned["row"].to_numpy()[chosen], members.held_out_below)
            chosen = chosen[kept]
        if len(chosen):
            yield index_rows(assigned.take(pa.array(chosen)), number, schema)


def _chooser(
    members: TrainingSet, assignments: Location, numbered: Sequence[tuple[int, WorkUnit]], group_m: np.ndarray
) -> _Chooser:
    """What tells the rows of a shard, given its name and fine clusters, that belong to a set."""
    if members.kind == "all":
        return lambda _, fine_p: np.arange(len(fine_p))
    own_rows: dict[str, int] = {}
    other_rows: dict[str, int] = {}
    dealt: dict[str, npt.NDArray[np.int16]] = {}
    for _, work_unit, assigned in stream_assignments(assignments, numbered, [FINE]):
        expert_p = group_m[assigned[FINE].to_numpy()]
        own_rows[work_unit.unit] = int((expert_p == members.expert).sum())
        other_rows[work_unit.unit] = len(expert_p) - own_rows[work_unit.unit]
        if members.kind == "random":
            dealt[work_unit.unit] = expert_p.astype(np.int16)
    own = sum(own_rows.values())
    if own == 0:
        raise DataError(
            f"expert {members.expert} of {members.experts} has no pair; lower train.experts or bring more captions"
        )
    if members.kind == "random":
        _shuffle_all(dealt, members)
        return lambda unit, _: np.flatnonzero(dealt[unit] == members.expert)
    drawn = _allotted(members, own, other_rows)
    return lambda unit, fine_p: expert_rows(members, group_m[fine_p] == members.expert, unit, drawn.get(unit, 0))


def _shuffle_all(dealt: dict[str, npt.NDArray[np.int16]], members: TrainingSet) -> None:
    """Permute the experts of all pairs, over all shards."""
    units = list(dealt)
    ends = np.cumsum([len(dealt[unit]) for unit in units])
    everything = np.concatenate([dealt[unit] for unit in units])
    np.random.default_rng((members.seed, members.experts)).shuffle(everything)
    dealt.update(zip(units, np.split(everything, ends[:-1]), strict=True))


def _allotted(members: TrainingSet, own: int, other_rows: Mapping[str, int]) -> dict[str, int]:
    """How many pairs of other clusters each shard gives, as if they were drawn from all shards at once."""
    share, others = members.out_of_cluster_share, sum(other_rows.values())
    wanted = min(others, round(own * share / (1 - share))) if share < 1 else others
    if wanted == 0:
        return {}
    return allocate_sample(other_rows, wanted, _draw_seed(members))


def expert_rows(members: TrainingSet, own_p: BoolArray, unit: str, drawn: int) -> Int64Array:
    """Rows of one shard that belong to an expert's set, ascending.

    Args:
        members: The set.
        own_p: Whether a row is of the expert's own clusters.
        unit: Name of the shard.
        drawn: How many of its other rows belong to the set too.
    """
    chosen_p = own_p.copy()
    if drawn:
        others = np.flatnonzero(~own_p)
        chosen_p[others[sample_positions(unit, len(others), drawn, _draw_seed(members))]] = True
    return np.flatnonzero(chosen_p)


def _draw_seed(members: TrainingSet) -> int:
    """Every expert draws others."""
    name = f"{members.seed} {members.experts} {members.expert}"
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest())
