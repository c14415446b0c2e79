"""A training set's file is written once, never used when stale, and copied once a node where it is remote."""

import os
import pickle
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mode_ray.errors import DataError
from mode_ray.pairs.index import PairIndex
from mode_ray.pairs.index_files import index_provenance
from mode_ray.pairs.members import TrainingSet
from mode_ray.pairs.training_set import SetFiles, open_training_set, write_set_units, write_training_set
from mode_ray.run_directory import MANIFEST
from mode_ray.stages.manifest import Stage, UnitRecord, read_units
from mode_ray.stages.work_unit import WorkUnit
from mode_ray.storage import Location

GROUPS = np.array([0, 1, 0, 1], np.int32)
SHARDS = [WorkUnit(unit=unit, uri=f"/in/{unit}.parquet", format="parquet") for unit in ("a", "b")]
EXPERT = TrainingSet(kind="expert", experts=2, expert=1)


def assign(folder: Location, fine: list[int]) -> None:
    """An assign stage that is done, every shard with these fine clusters."""
    folder.delete()
    stage = Stage("assign", folder, {})
    stage.begin(len(SHARDS))
    rows = np.arange(len(fine))
    table = pa.table(
        {
            "row": rows,
            "caption_index": pa.array(rows * 0, pa.int32()),
            "fine": pa.array(fine, pa.int32()),
            "distance": pa.array(rows * 0.0, pa.float32()),
        }
    )
    stage.finish([stage.write_unit(table, UnitRecord(unit=s.unit, source=s.uri, rows_in=1)) for s in SHARDS], {})


class Run:
    """A run directory with an assign stage."""

    def __init__(self, root: Location) -> None:
        self.assignments, self.folder = root / "assignments", root / "experts" / "training_sets"
        self.work_units = root / "experts" / "shards.parquet"
        write_set_units(self.work_units, SHARDS)
        assign(self.assignments, [0, 1, 2, 3])

    def files(self, members: TrainingSet, group_m: np.ndarray) -> SetFiles:
        return SetFiles(members, self.assignments, self.work_units, group_m)

    def write(self, members: TrainingSet = EXPERT, group_m: np.ndarray = GROUPS) -> Location:
        return write_training_set(self.files(members, group_m), self.folder)

    def open(self, members: TrainingSet = EXPERT, group_m: np.ndarray = GROUPS) -> PairIndex:
        return open_training_set(self.files(members, group_m), self.folder)


@pytest.fixture(params=["local", "s3"])
def run(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """With a node's temporary folder of its own."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    local = request.param == "local"
    return Run(Location(str(tmp_path)) if local else Location.parse(request.getfixturevalue("bucket")))


def rows_of(index: PairIndex) -> dict[str, list[int]]:
    return {name: index.column(name).tolist() for name in index.dtype.names or ()}


def test_what_is_written_is_opened(run: Run) -> None:
    file = run.write()
    assert file == run.folder / f"{EXPERT.name}.arrow"
    index = run.open()
    assert index.work_units == tuple(SHARDS)
    assert rows_of(index) == {"shard": [0, 0, 1, 1], "row": [1, 3, 1, 3], "caption_index": [0] * 4}


class TestStaleness:
    def test_an_existing_index_is_not_written_again(self, run: Run) -> None:
        def modified(file: Location) -> float:
            entry = file.entry()
            assert entry is not None
            return entry.modified_unix_seconds

        first = modified(run.write(TrainingSet(kind="all", seed=0)))
        time.sleep(1.1)  # S3 states whole seconds
        assert modified(run.write(TrainingSet(kind="all", seed=1))) == first

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            (lambda run: assign(run.assignments, [3, 3, 0, 0]), "assignments"),
            (lambda run: run.write(group_m=1 - GROUPS), "coarse_map"),
        ],
        ids=["assignments", "map"],
    )
    def test_what_was_made_of_something_else_is_refused_until_it_is_written_again(
        self, run: Run, change: Callable[[Run], None], named: str
    ) -> None:
        run.write()
        change(run)
        with pytest.raises(DataError, match=rf"\.arrow: made of other {named}; run `mode-ray train` again"):
            run.open()
        run.write()
        assert len(run.open()) == 4

    def test_other_source_shards_are_noticed(self, run: Run) -> None:
        run.write()
        write_set_units(run.work_units, SHARDS[::-1])
        with pytest.raises(DataError, match="made of other shards"):
            run.open()

    def test_a_missing_file_is_named(self, run: Run) -> None:
        with pytest.raises(DataError, match=rf"{EXPERT.name}\.arrow: missing; run `mode-ray train` again"):
            run.open()

    def test_half_a_file_counts_as_none(self, run: Run) -> None:
        file = run.write()
        content = file.read_bytes()
        for size in (0, 5, len(content) // 2, len(content) - 1):
            file.write_bytes(content[:size])
            assert index_provenance(file) is None
        run.write()
        assert file.read_bytes() == content

    def test_without_a_finished_assign_stage_nothing_is_written(self, run: Run) -> None:
        (run.assignments / MANIFEST).delete()
        with pytest.raises(DataError, match="no manifest; run `mode-ray assign` first"):
            run.write()


class TestCopies:
    @pytest.fixture
    def run(self, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        run = Run(Location.parse(bucket))
        run.write()
        return run

    @pytest.fixture
    def copies(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """URIs that were copied; each copy takes a moment."""
        made: list[str] = []
        real = Location.copy_to

        def slow(self: Location, target: Location) -> None:
            made.append(self.uri)
            temporary = Path(target.path).with_name(f".{target.name}.{'0' * 12}.tmp")
            temporary.touch()
            time.sleep(0.3)
            temporary.unlink()
            real(self, target)

        monkeypatch.setattr(Location, "copy_to", slow)
        return made

    def folder(self) -> Path:
        return Path(tempfile.gettempdir()) / f"mode-ray-{os.getuid()}" / "training_sets"

    def test_a_node_copies_a_remote_index_once(self, run: Run, copies: list[str]) -> None:
        first = threading.Thread(target=run.open)
        first.start()
        while not copies:
            time.sleep(0.001)
        time.sleep(0.05)
        assert len(run.open()) == 4
        first.join()
        run.open()
        assert len(copies) == 1
        assert [file.suffix for file in self.folder().iterdir()] == [".arrow"]

    def test_another_version_is_copied_anew(self, run: Run, copies: list[str]) -> None:
        run.open()
        assign(run.assignments, [1, 1, 1, 3])
        run.write()
        assert len(run.open()) == 8
        assert len(copies) == 2

    def test_a_copy_whose_process_died_is_not_waited_for(self, run: Run, copies: list[str]) -> None:
        run.open()
        target = next(self.folder().iterdir())
        dead = target.with_name(f".{target.name}.{'a' * 12}.tmp")
        target.rename(dead)
        os.utime(dead, (time.time() - 3600, time.time() - 3600))
        assert len(run.open()) == 4
        assert len(copies) == 2


class TestParts:
    """An index of many work units has a part for every thousand; here, for each of the two."""

    MEMBERS = (
        EXPERT,
        TrainingSet(kind="expert", experts=2, expert=0, out_of_cluster_share=0.25, seed=3),
        TrainingSet(kind="all"),
        TrainingSet(kind="all", held_out_below=1 << 62),
        TrainingSet(kind="random", experts=2, expert=1),
    )

    @pytest.mark.parametrize("members", MEMBERS, ids=[members.name for members in MEMBERS])
    def test_the_parts_have_the_rows_of_the_whole(self, run: Run, members: TrainingSet) -> None:
        run.write(members)
        whole = rows_of(run.open(members))
        files = replace(run.files(members, GROUPS), units_per_part=1)
        folder = run.folder.parent / "parts"
        asked: list[range] = []

        def run_parts(function: Callable[[range], Any], parts: Sequence[range]) -> list[Any]:
            asked.extend(parts)
            shared = pickle.loads(pickle.dumps(function))  # noqa: S301 - our own, as a Ray task gets it
            return [shared(part) for part in parts]

        write_training_set(files, folder, run_parts)
        index = open_training_set(files, folder)
        assert rows_of(index) == whole
        assert rows_of(pickle.loads(pickle.dumps(index))) == whole  # noqa: S301 - our own
        assert set(asked) == ({range(2)} if members.kind == "random" else {range(1), range(1, 2)})

    def test_they_are_not_written_again_and_leave_nothing_when_they_are_replaced(self, run: Run) -> None:
        files = replace(run.files(EXPERT, GROUPS), units_per_part=1)
        file = write_training_set(files, run.folder)
        before = run.folder.entries(recursive=True)
        assert len(before) == 3
        write_training_set(files, run.folder)
        assert run.folder.entries(recursive=True) == before
        changed = replace(files, group_m=1 - GROUPS)
        write_training_set(changed, run.folder)
        with pytest.raises(DataError, match="made of other coarse_map; run `mode-ray train` again"):
            open_training_set(files, run.folder)
        assert open_training_set(changed, run.folder).column("row").tolist() == [0, 2, 0, 2]
        assert len(run.folder.files(recursive=True)) == 3
        assert not file.exists()

    def test_a_part_without_rows_has_no_file(self, run: Run) -> None:
        stage = Stage("assign", run.assignments, {})
        units = read_units(run.assignments)
        table = (run.assignments / "a.parquet").read_table()
        only_others = table.set_column(2, "fine", pa.array([0] * len(table), pa.int32()))
        stage.finish([stage.write_unit(only_others, units[0]), units[1]], {})
        files = replace(run.files(EXPERT, GROUPS), units_per_part=1)
        write_training_set(files, run.folder)
        assert open_training_set(files, run.folder).column("shard").tolist() == [1, 1]

    def test_an_empty_set_is_an_error(self, run: Run) -> None:
        nobody = replace(EXPERT, experts=3, expert=2)
        with pytest.raises(DataError, match="expert 2 of 3 has no pairs"):
            write_training_set(replace(run.files(nobody, GROUPS), units_per_part=1), run.folder)
        assert run.folder.files(recursive=True) == []
