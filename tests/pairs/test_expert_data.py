"""Who belongs to which expert, and what is mixed in: drawn uniformly over all shards, a shard at a time."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mode_ray.errors import DataError
from mode_ray.pairs.members import SetSource, TrainingSet, stream_members
from mode_ray.stages.work_unit import WorkUnit
from mode_ray.storage import Location

FINE = np.random.default_rng(0).integers(0, 6, 1000)
GROUPS = np.array([0, 1, 2, 0, 1, 2], np.int32)
EXPERT = GROUPS[FINE]
SIZES = (10, 300, 0, 640, 50)  # of the shards
SHARDS = [WorkUnit(unit=f"s{n}", uri=f"/in/s{n}.parquet", format="parquet") for n in range(len(SIZES))]


def write_assignments(folder: Location, fine: np.ndarray, sizes: tuple[int, ...]) -> None:
    """Assignment shards of these sizes; `row` counts over all of them, so that it tells the pair."""
    ends = np.cumsum(sizes)
    for number, (end, size) in enumerate(zip(ends.tolist(), sizes, strict=True)):
        rows = np.arange(end - size, end)
        columns = {
            "row": pa.array(rows),
            "caption_index": pa.array(rows * 0, pa.int32()),
            "key": pa.array([str(row) for row in rows], pa.string()),
            "fine": pa.array(fine[rows], pa.int32()),
            "distance": pa.array(rows * 0.0, pa.float32()),
        }
        (folder / f"s{number}.parquet").write_table(pa.table(columns))


@pytest.fixture(scope="module")
def assignments(tmp_path_factory: pytest.TempPathFactory) -> Location:
    folder = Location(str(tmp_path_factory.mktemp("assignments")))
    write_assignments(folder, FINE, SIZES)
    return folder


def select(assignments: Location, members: TrainingSet) -> np.ndarray:
    """The pairs of a set, by their numbers."""
    tables = list(stream_members(SetSource(members, assignments, SHARDS, GROUPS)))
    work_units = np.repeat(np.arange(len(SIZES)), SIZES)
    for table in tables:
        assert np.array_equal(table["shard"].to_numpy(), work_units[table["row"].to_numpy()])
    return np.concatenate([table["row"].to_numpy() for table in tables])


def expert(number: int, share: float = 0.0, seed: int = 0) -> TrainingSet:
    return TrainingSet(kind="expert", experts=3, expert=number, out_of_cluster_share=share, seed=seed)


class TestMembers:
    def test_all(self, assignments: Location) -> None:
        assert np.array_equal(select(assignments, TrainingSet(kind="all")), np.arange(1000))

    def test_experts_share_the_pairs_out_by_the_coarse_map(self, assignments: Location) -> None:
        parts = [select(assignments, expert(number)) for number in range(3)]
        for number, part in enumerate(parts):
            assert np.array_equal(part, np.flatnonzero(number == EXPERT))

    @pytest.mark.parametrize("share", [0.02, 0.3])
    def test_a_share_is_drawn_from_the_other_clusters(self, assignments: Location, share: float) -> None:
        own = np.flatnonzero(EXPERT == 1)
        mixed = select(assignments, expert(1, share))
        assert np.all(np.diff(mixed) > 0), "ascending, none twice"
        assert set(own) <= set(mixed)
        assert (len(mixed) - len(own)) / len(mixed) == pytest.approx(share, abs=0.5 / len(own))
        assert np.array_equal(mixed, select(assignments, expert(1, share)))

    def test_every_pair_of_the_others_is_equally_likely_in_any_shard(self, assignments: Location) -> None:
        seeds = 200
        drawn = np.zeros(1000)
        for seed in range(seeds):
            drawn[select(assignments, expert(0, 0.2, seed))] += 1
        others = drawn[EXPERT != 0]
        share = others.sum() / (seeds * len(others))
        deviation = np.sqrt(seeds * share * (1 - share))
        work_units = np.repeat(np.arange(len(SIZES)), SIZES)[EXPERT != 0]
        for work_unit in (0, 1, 3, 4):
            mean = others[work_units == work_unit].mean()
            assert abs(mean - seeds * share) < 4 * deviation / np.sqrt((work_units == work_unit).sum())
        assert others.std() == pytest.approx(deviation, rel=0.15)

    def test_each_expert_draws_others_and_so_does_each_seed(self, assignments: Location) -> None:
        def extra(number: int, seed: int) -> frozenset[int]:
            chosen = select(assignments, expert(number, 0.1, seed))
            return frozenset(chosen[EXPERT[chosen] == 2].tolist())

        assert len({extra(number, seed) for number in (0, 1) for seed in (0, 1)}) == 4

    @pytest.mark.parametrize("share", [0.99, 1.0])
    def test_no_more_than_there_are(self, assignments: Location, share: float) -> None:
        assert np.array_equal(select(assignments, expert(0, share)), np.arange(1000))

    def test_the_random_control_has_the_experts_sizes_and_other_pairs(self, assignments: Location) -> None:
        parts = [select(assignments, TrainingSet(kind="random", experts=3, expert=number)) for number in range(3)]
        assert [len(part) for part in parts] == np.bincount(EXPERT).tolist()
        assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(1000))
        for number, part in enumerate(parts):
            own_share = (EXPERT[part] == number).mean()
            assert own_share == pytest.approx(np.mean(number == EXPERT), abs=0.1)

    def test_the_clustered_control_has_all_pairs_expert_by_expert(self, assignments: Location) -> None:
        chosen = select(assignments, TrainingSet(kind="clustered", experts=3, seed=5))
        assert sorted(chosen) == list(range(1000))
        assert (np.diff(EXPERT[chosen]) >= 0).all()

    def test_an_expert_without_pairs_is_an_error(self, assignments: Location) -> None:
        with pytest.raises(DataError, match=r"expert 3 of 4 has no pairs; lower train\.experts"):
            select(assignments, TrainingSet(kind="expert", experts=4, expert=3))

    def test_no_more_than_a_few_shards_are_read_ahead(self, tmp_path: Path) -> None:
        folder = Location(str(tmp_path))
        sizes = (10,) * 60
        write_assignments(folder, FINE, sizes)
        work_units = [WorkUnit(unit=f"s{n}", uri=f"/in/s{n}.parquet", format="parquet") for n in range(60)]
        tables = stream_members(SetSource(TrainingSet(kind="all"), folder, work_units, GROUPS))
        next(tables)
        for number in range(10, 60):
            (tmp_path / f"s{number}.parquet").unlink()
        with pytest.raises(DataError, match=r"/s10\.parquet: no such file; .* run `mode-ray assign` again"):
            list(tables)


class TestNames:
    def test_seed_and_dense_baseline_share_a_set(self) -> None:
        assert TrainingSet(kind="all", seed=0).name == TrainingSet(kind="all", seed=1).name == "all"

    def test_sets_of_other_pairs_have_other_names(self) -> None:
        names = Counter(
            replace(members, expert=number).name
            for members in (
                expert(0),
                expert(0, 0.02),
                expert(0, 0.02, 1),
                replace(expert(0), experts=4),
                TrainingSet(kind="random", experts=3),
                TrainingSet(kind="random", experts=3, seed=1),
            )
            for number in (0, 1)
        )
        assert set(names.values()) == {1}

    def test_a_seed_that_draws_nothing_changes_nothing(self) -> None:
        assert expert(1, seed=3).name == expert(1).name
        assert expert(1).name.startswith("n3-01-")
