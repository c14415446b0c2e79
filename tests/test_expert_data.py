"""Training sets are index entries: who belongs to which expert, what is mixed in, and what lies nearest."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mode_ray.captions.shards import Shard
from mode_ray.errors import DataError
from mode_ray.expert_data import PairIndex, TrainingSet, fine_counts, load_index, nearest_rows, select_members
from mode_ray.storage import Location

FINE = np.random.default_rng(0).integers(0, 6, 1000)
GROUPS = np.array([0, 1, 2, 0, 1, 2], np.int32)
EXPERT = GROUPS[FINE]


def assignment(rows: list[int], fine: list[int], *, tar: bool = False) -> pa.Table:
    """An assignment shard."""
    columns: dict[str, pa.Array] = {
        "row": pa.array(rows, pa.int64()),
        "caption_index": pa.array([0] * len(rows), pa.int32()),
        "key": pa.array([str(row) for row in rows]),
        "fine": pa.array(fine, pa.int32()),
        "distance": pa.array([0.5] * len(rows), pa.float32()),
    }
    if tar:
        for name in ("image_offset", "image_bytes", "caption_offset", "caption_bytes"):
            columns[name] = pa.array([512 * (row + 1) for row in rows], pa.int64())
    return pa.table(columns)


class TestLoading:
    SHARDS = tuple(Shard(unit=unit, uri=f"/in/{unit}.x", format="parquet") for unit in "abcd")

    def test_pairs_come_in_order_of_the_shards_and_quarantined_shards_are_left_out(self, tmp_path: Path) -> None:
        folder = Location(str(tmp_path))
        (folder / "c.parquet").write_table(assignment([0, 2], [1, 1], tar=True))
        (folder / "a.parquet").write_table(assignment([5], [0]))
        (folder / "d.parquet").write_table(assignment([], []))
        (folder / "units.parquet").write_table(pa.table({"unit": ["a"]}))
        index = load_index(folder, self.SHARDS)
        assert len(index) == 3
        assert index.shards == self.SHARDS
        assert index.table.select(["shard", "row", "fine", "image_offset"]).to_pydict() == {
            "shard": [0, 2, 2],
            "row": [5, 0, 2],
            "fine": [0, 1, 1],
            "image_offset": [None, 512, 1536],
        }
        assert "key" not in index.table.column_names, "names would be most of an index's memory"
        assert index.take(np.array([2, 0])).table["row"].to_pylist() == [2, 5]

    def test_no_assignment_at_all(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="no assignment of the given shards; run `mode-ray assign` first"):
            load_index(Location(str(tmp_path)), self.SHARDS)


class TestMembers:
    def test_all(self) -> None:
        members = select_members(FINE, GROUPS, TrainingSet(kind="all"))
        assert np.array_equal(members, np.arange(1000))

    def test_experts_share_the_pairs_out_by_the_coarse_map(self) -> None:
        parts = [select_members(FINE, GROUPS, TrainingSet(kind="expert", experts=3, expert=e)) for e in range(3)]
        for expert, part in enumerate(parts):
            assert np.array_equal(part, np.flatnonzero(expert == EXPERT))
        assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(1000))

    @pytest.mark.parametrize("share", [0.02, 0.3])
    def test_a_share_is_drawn_from_the_other_clusters(self, share: float) -> None:
        own = np.flatnonzero(EXPERT == 1)
        members = TrainingSet(kind="expert", experts=3, expert=1, out_of_cluster_share=share)
        mixed = select_members(FINE, GROUPS, members)
        assert np.all(np.diff(mixed) > 0), "ascending, none twice"
        assert set(own) <= set(mixed)
        assert (len(mixed) - len(own)) / len(mixed) == pytest.approx(share, abs=0.5 / len(own))
        assert np.array_equal(mixed, select_members(FINE, GROUPS, members))

    def test_each_expert_draws_others_and_so_does_each_seed(self) -> None:
        def extra(expert: int, seed: int) -> set[int]:
            members = TrainingSet(kind="expert", experts=3, expert=expert, out_of_cluster_share=0.1, seed=seed)
            chosen = select_members(FINE, GROUPS, members)
            return set(chosen[EXPERT[chosen] == 2])

        assert len({frozenset(extra(expert, seed)) for expert in (0, 1) for seed in (0, 1)}) == 4

    def test_no_more_than_there_are(self) -> None:
        members = TrainingSet(kind="expert", experts=3, expert=0, out_of_cluster_share=0.99)
        assert np.array_equal(select_members(FINE, GROUPS, members), np.arange(1000))

    def test_the_random_control_has_the_experts_sizes_and_other_pairs(self) -> None:
        parts = [select_members(FINE, GROUPS, TrainingSet(kind="random", experts=3, expert=e)) for e in range(3)]
        assert [len(part) for part in parts] == np.bincount(EXPERT).tolist()
        assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(1000))
        for expert, part in enumerate(parts):
            own_share = (EXPERT[part] == expert).mean()
            assert own_share == pytest.approx(np.mean(expert == EXPERT), abs=0.1)

    def test_an_expert_without_pairs_is_an_error(self) -> None:
        with pytest.raises(DataError, match=r"expert 3 of 4 has no pair; lower train\.experts"):
            select_members(FINE, GROUPS, TrainingSet(kind="expert", experts=4, expert=3))


class TestFigures:
    @pytest.fixture
    def index(self) -> PairIndex:
        generator = np.random.default_rng(1)
        table = pa.table(
            {"fine": pa.array(FINE, pa.int32()), "distance": pa.array(generator.random(1000), pa.float32())}
        )
        return PairIndex((), table)

    def test_counts_name_empty_clusters_too(self, index: PairIndex) -> None:
        assert fine_counts(index, 8).tolist() == [*np.bincount(FINE).tolist(), 0, 0]

    def test_the_nearest_captions_of_each_center(self, index: PairIndex) -> None:
        distance = index.table["distance"].to_numpy()
        expected = []
        for center in range(6):
            members = np.flatnonzero(center == FINE)
            expected += members[np.argsort(distance[members])][:5].tolist()
        assert nearest_rows(index, 8, 5).tolist() == expected

    def test_small_clusters_give_what_they_have(self) -> None:
        table = pa.table(
            {"fine": pa.array([2, 0, 2], pa.int32()), "distance": pa.array([0.3, 0.1, 0.2], pa.float32())}
        )
        assert nearest_rows(PairIndex((), table), 4, 5).tolist() == [1, 2, 0]
