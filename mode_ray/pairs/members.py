"""The pairs that an expert is trained on. The coarse map gives the expert of each pair's fine cluster.

One set of assignments serves every number of experts n. Random samples are exactly uniform over the pairs of all work
units, without a list of all pairs: a first pass counts the pairs, and a second pass samples each work unit's share.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mode_ray.assign.table import FINE, NumberedUnit, assigned_units, stream_assignments
from mode_ray.errors import DataError
from mode_ray.pairs.held_out import is_kept
from mode_ray.pairs.index import SHARD, index_columns, index_rows
from mode_ray.stages.work_unit import WorkUnit, has_format
from mode_ray.storage import Location
from mode_ray.util.sampling import allocate_sample, sample_positions

BoolArray = npt.NDArray[np.bool_]
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """The pairs that a model is trained on.

    Attributes:
        kind: `all` pairs; the pairs of one `expert`; a `random` partition of the pairs with the experts' sizes (a
            control); or `clustered`: all pairs, those of the first expert first (another control).
        experts: n, for `expert` and `random`.
        expert: Number of the expert, from 0.
        out_of_cluster_share: Share of the set that is sampled from the other clusters.
        seed: Seed of the random samples.
        held_out_below: Rows whose hash is below this are left out (`mode_ray.pairs.held_out`); 0 for none.
    """

    kind: Literal["all", "expert", "random", "clustered"]
    experts: int = 1
    expert: int = 0
    out_of_cluster_share: float = 0.0
    seed: int = 0
    held_out_below: int = 0

    @property
    def drawn(self) -> "TrainingSet":
        """This set without the fields that do not affect its pairs, so that sets of equal pairs are equal."""
        if self.kind == "all":
            return TrainingSet(kind="all", held_out_below=self.held_out_below)
        if self.kind == "clustered":
            return replace(self, seed=0)
        return self if self.kind == "random" or self.out_of_cluster_share else replace(self, seed=0)

    @property
    def needs_all_units(self) -> bool:
        """Whether the rows of one work unit, or their place, depend on those of the others."""
        return self.kind in ("random", "clustered")

    @property
    def name(self) -> str:
        """A file name that is unique to the set's pairs."""
        if self.kind == "all" and not self.held_out_below:
            return "all"
        digest = hashlib.blake2b(repr(self.drawn).encode(), digest_size=4).hexdigest()
        if self.kind == "all":
            return f"all-{digest}"
        if self.kind == "clustered":
            return f"clustered-n{self.experts}-{digest}"
        return f"{'random-' if self.kind == 'random' else ''}n{self.experts}-{self.expert:02d}-{digest}"


@dataclass(frozen=True, eq=False)
class SetSource:
    """What a training set is chosen from.

    Attributes:
        members: The set.
        assignments: Directory of the assign stage.
        work_units: All work units of the run.
        group_m: Coarse map int32 [m]; empty for `all`, which needs none.
    """

    members: TrainingSet
    assignments: Location
    work_units: Sequence[WorkUnit]
    group_m: np.ndarray


def stream_members(
    source: SetSource, places: range | None = None, sampled: Mapping[str, int] | None = None
) -> Iterator[pa.Table]:
    """The index rows of a training set, in order of work units and rows; a few work units are in memory at a time.

    Only the `random` control holds data of every pair in memory, two bytes each. It needs all work units at once.

    Args:
        source: What the set is chosen from.
        places: Only the work units at these positions, unless the set needs all units.
        sampled: Pairs of other clusters by work unit, as `sample_sizes` returns them; by default they are computed.

    Raises:
        DataError: The set is empty, or no work unit has assignments.
    """
    members = source.members
    if members.kind == "clustered":
        for expert in range(members.experts):
            yield from stream_members(replace(source, members=replace(members, kind="expert", expert=expert)))
        return
    numbered = assigned_units(source.assignments, source.work_units, places)
    schema = index_columns(tars=has_format(source.work_units, "webdataset"))
    choose = _chooser(source, numbered, sampled)
    # Columns that assignments of parquet files lack are ignored. Most bytes are in the keys, which are not read.
    columns = [*(name for name in schema.names if name != SHARD), FINE]
    is_empty = places is None  # a part may be empty
    for number, work_unit, assigned in stream_assignments(source.assignments, numbered, columns):
        chosen = choose(work_unit.unit, assigned[FINE].to_numpy())
        if members.held_out_below:
            kept = is_kept(work_unit.unit, assigned["row"].to_numpy()[chosen], members.held_out_below)
            chosen = chosen[kept]
        if len(chosen):
            is_empty = False
            yield index_rows(assigned.take(pa.array(chosen)), number, schema)
    if is_empty:
        raise DataError(empty_set(members))


def is_sampled(members: TrainingSet) -> bool:
    """Whether pairs of other clusters are sampled for the set, which needs the counts of all work units first."""
    return members.kind == "expert" and members.out_of_cluster_share > 0


def count_members(source: SetSource, places: range | None = None) -> dict[str, tuple[int, int]]:
    """Pairs of the set's expert, and of the others, in each work unit.

    Raises:
        DataError: No work unit has assignments.
    """
    counts = {}
    numbered = assigned_units(source.assignments, source.work_units, places)
    for _, work_unit, assigned in stream_assignments(source.assignments, numbered, [FINE]):
        own = int((source.group_m[assigned[FINE].to_numpy()] == source.members.expert).sum())
        counts[work_unit.unit] = (own, assigned.num_rows - own)
    return counts


def sample_sizes(members: TrainingSet, counts: Mapping[str, tuple[int, int]]) -> dict[str, int]:
    """Number of pairs of other clusters in each work unit's sample, as if sampled from all work units at once.

    Args:
        members: The set.
        counts: Of all work units, as `count_members` returns them.

    Raises:
        DataError: The expert has no pairs.
    """
    share = members.out_of_cluster_share
    other_rows = {unit: others for unit, (_, others) in counts.items()}
    own, others = sum(own for own, _ in counts.values()), sum(other_rows.values())
    if own == 0:
        raise DataError(empty_set(members))
    wanted = min(others, round(own * share / (1 - share))) if share < 1 else others
    if wanted == 0:
        return {}
    return allocate_sample(other_rows, wanted, _sample_seed(members))


def empty_set(members: TrainingSet) -> str:
    """The message for a set without pairs."""
    if members.kind == "all":
        return f"{members.name}: the training set is empty; add more captions"
    return f"expert {members.expert} of {members.experts} has no pairs; lower train.experts or add more captions"


def _chooser(
    source: SetSource, numbered: Sequence[NumberedUnit], sampled: Mapping[str, int] | None
) -> Callable[[str, np.ndarray], Int64Array]:
    """A function from a work unit's name and the fine clusters of its rows to the rows that belong to the set."""
    members, group_m = source.members, source.group_m
    if members.kind == "all":
        return lambda _, fine_p: np.arange(len(fine_p))
    if members.kind == "random":
        shuffled = _shuffled(_experts_of_pairs(source, numbered), members)
        return lambda unit, _: np.flatnonzero(shuffled[unit] == members.expert)
    if sampled is None:
        sampled = sample_sizes(members, count_members(source)) if is_sampled(members) else {}
    return lambda unit, fine_p: expert_rows(members, group_m[fine_p] == members.expert, unit, sampled.get(unit, 0))


def _experts_of_pairs(source: SetSource, numbered: Sequence[NumberedUnit]) -> dict[str, npt.NDArray[np.int16]]:
    return {
        work_unit.unit: source.group_m[assigned[FINE].to_numpy()].astype(np.int16)
        for _, work_unit, assigned in stream_assignments(source.assignments, numbered, [FINE])
    }


def _shuffled(experts: Mapping[str, npt.NDArray[np.int16]], members: TrainingSet) -> dict[str, npt.NDArray[np.int16]]:
    """The experts of all pairs, permuted over all work units."""
    ends = np.cumsum([len(expert_p) for expert_p in experts.values()])
    everything = np.concatenate(list(experts.values()))
    np.random.default_rng((members.seed, members.experts)).shuffle(everything)
    return dict(zip(experts, np.split(everything, ends[:-1]), strict=True))


def expert_rows(members: TrainingSet, own_p: BoolArray, unit: str, sampled: int) -> Int64Array:
    """Rows of one work unit that belong to an expert's set, ascending: `own_p`, and a sample of the other rows."""
    chosen_p = own_p.copy()
    if sampled:
        others = np.flatnonzero(~own_p)
        chosen_p[others[sample_positions(unit, len(others), sampled, _sample_seed(members))]] = True
    return np.flatnonzero(chosen_p)


def _sample_seed(members: TrainingSet) -> int:
    """A seed that differs between experts."""
    name = f"{members.seed} {members.experts} {members.expert}"
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest())
