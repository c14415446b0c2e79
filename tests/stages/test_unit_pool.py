"""The unit actor reads ahead, writes behind, repeats after I/O errors and quarantines bad shards.

Defects and outputs that cannot be written end it; the pool outlives its actors.
"""

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mode_ray.captions.listing import list_work_units
from mode_ray.config.base import ActorPool
from mode_ray.config.captions import CaptionsConfig, EncoderConfig, EncoderPlacement
from mode_ray.embed.stage import EmbedWorker
from mode_ray.errors import DataError, UsageError, WorkerError, WriteError
from mode_ray.stages.actor import UnitActor
from mode_ray.stages.execute import UnitWork, run_units
from mode_ray.stages.manifest import UnitRecord
from mode_ray.stages.tasks import are_few
from mode_ray.stages.work_unit import WorkUnit
from mode_ray.storage import Location

DEADLINE_SECONDS = 10.0
START_DEADLINE_SECONDS = 120.0


ONE = ActorPool(max_actors=1)


class ScriptedWorker:
    """Reads a unit's name; the script says what happens before.

    Args:
        on_read: Called with the unit and the number of its earlier reads.
        on_compute: Called with the unit.
    """

    def __init__(self, on_read: Callable[[str, int], None], on_compute: Callable[[str], None]) -> None:
        self.reads: list[str] = []
        self._on_read = on_read
        self._on_compute = on_compute

    def read(self, work_unit: WorkUnit) -> str:
        earlier = self.reads.count(work_unit.unit)
        self.reads.append(work_unit.unit)
        self._on_read(work_unit.unit, earlier)
        return work_unit.unit

    def compute(self, work_unit: WorkUnit, source: str) -> tuple[pa.Table, UnitRecord]:
        self._on_compute(source)
        table = pa.table({"unit": [source]})
        return table, UnitRecord(unit=work_unit.unit, source=work_unit.uri, rows_in=1, rows_out=1)


def nothing(*_: object) -> None:
    """Go on."""


def work_units(count: int) -> list[WorkUnit]:
    """Shards `u0`, `u1`, …"""
    return [WorkUnit(unit=f"u{number}", uri=f"/in/u{number}.tar", format="webdataset") for number in range(count)]


def process(
    output: Path,
    count: int,
    on_read: Callable[[str, int], None] = nothing,
    on_compute: Callable[[str], None] = nothing,
    retries: int = 2,
) -> tuple[list[UnitRecord], ScriptedWorker]:
    """Run an actor over work units, here and without Ray."""
    worker = ScriptedWorker(on_read, on_compute)
    actor = UnitActor(worker, Location(str(output)), "attempt-1", retries, first_pause_seconds=0.01)
    return list(actor.process(work_units(count))), worker


def names(folder: Path) -> list[str]:
    """All files in a folder, hidden ones too."""
    return sorted(file.name for file in folder.iterdir()) if folder.exists() else []


class TestOrder:
    def test_one_record_and_one_output_a_unit_in_order(self, tmp_path: Path) -> None:
        records, _ = process(tmp_path, 5)
        assert [record.unit for record in records] == [f"u{number}" for number in range(5)]
        assert names(tmp_path) == [f"u{number}.parquet" for number in range(5)]
        assert pq.read_table(tmp_path / "u3.parquet").to_pydict() == {"unit": ["u3"]}
        for record in records:
            assert record.attempt == "attempt-1"
            assert record.bytes_out == (tmp_path / f"{record.unit}.parquet").stat().st_size
            assert record.content_hash
            assert record.error is None

    def test_the_next_unit_is_read_while_one_is_computed(self, tmp_path: Path) -> None:
        begun = {f"u{number}": threading.Event() for number in range(3)}

        def wait_for_next(unit: str) -> None:
            following = begun.get(f"u{int(unit[1:]) + 1}")
            assert following is None or following.wait(DEADLINE_SECONDS), f"{unit} computed before the next was read"

        records, worker = process(tmp_path, 3, lambda unit, _: begun[unit].set(), wait_for_next)
        assert len(records) == 3
        assert worker.reads == ["u0", "u1", "u2"], "each is read once"

    def test_a_unit_is_written_while_the_next_is_read(self, tmp_path: Path) -> None:
        def wait_for_output(unit: str, _: int) -> None:
            before = tmp_path / f"u{int(unit[1:]) - 2}.parquet"
            deadline = time.monotonic() + DEADLINE_SECONDS
            while int(unit[1:]) >= 2 and not before.exists():
                assert time.monotonic() < deadline, f"{before} was not written while {unit} was read"
                time.sleep(0.005)

        records, _ = process(tmp_path, 4, wait_for_output)
        assert len(records) == 4


class TestRetries:
    def test_an_io_error_is_tried_again(self, tmp_path: Path) -> None:
        def fail_twice(unit: str, earlier: int) -> None:
            if unit == "u1" and earlier < 2:
                raise OSError("connection reset")

        records, worker = process(tmp_path, 3, fail_twice, retries=2)
        assert [record.error for record in records] == [None, None, None]
        assert worker.reads.count("u1") == 3
        assert len(names(tmp_path)) == 3

    def test_one_that_stays_is_quarantined_and_the_rest_goes_on(self, tmp_path: Path) -> None:
        def fail(unit: str, _: int) -> None:
            if unit == "u1":
                raise OSError("connection reset")

        records, worker = process(tmp_path, 3, fail, retries=2)
        assert worker.reads.count("u1") == 3
        assert [record.unit for record in records] == ["u0", "u1", "u2"]
        assert records[1].error == "/in/u1.tar: I/O error after 2 retries: connection reset"
        assert (records[1].source, records[1].rows_in) == ("/in/u1.tar", 0)
        assert names(tmp_path) == ["u0.parquet", "u2.parquet"]

    def test_damaged_data_is_quarantined_at_once(self, tmp_path: Path) -> None:
        def refuse(unit: str, _: int) -> None:
            if unit != "u1":
                raise DataError(f"/in/{unit}.tar: truncated")

        records, worker = process(tmp_path, 3, refuse)
        assert [record.error for record in records] == ["/in/u0.tar: truncated", None, "/in/u2.tar: truncated"]
        assert worker.reads == ["u0", "u1", "u2"]


class TestWriteErrors:
    def test_they_are_not_the_shards_fault_and_end_the_stage(self, tmp_path: Path) -> None:
        def block(unit: str) -> None:
            if unit == "u1":
                (tmp_path / "u1.parquet").mkdir()
                (tmp_path / "u1.parquet" / "in the way").touch()

        with pytest.raises(WriteError, match=f"{tmp_path}/u1.parquet: cannot be written .*run again"):
            process(tmp_path, 4, on_compute=block, retries=1)
        assert names(tmp_path) == ["u0.parquet", "u1.parquet"], "a temporary file stayed, or a later unit was written"

    def test_one_that_passes_is_tried_again(self, tmp_path: Path) -> None:
        def block_for_a_while(unit: str) -> None:
            if unit == "u1":
                (tmp_path / "u1.parquet").mkdir()
                threading.Timer(0.1, (tmp_path / "u1.parquet").rmdir).start()

        records, _ = process(tmp_path, 3, on_compute=block_for_a_while, retries=8)
        assert [record.error for record in records] == [None, None, None]
        assert names(tmp_path) == ["u0.parquet", "u1.parquet", "u2.parquet"]


class TestATaskThatRunsAgain:
    def test_what_this_invocation_finished_is_not_done_again(self, tmp_path: Path) -> None:
        first, _ = process(tmp_path, 3)
        before = [file.stat() for file in sorted(tmp_path.iterdir())]
        second, worker = process(tmp_path, 5)
        assert second[:3] == first
        assert worker.reads == ["u3", "u4"]
        after = [file.stat() for file in sorted(tmp_path.iterdir())][:3]
        assert [(stat.st_ino, stat.st_mtime_ns) for stat in after] == [
            (stat.st_ino, stat.st_mtime_ns) for stat in before
        ]

    def test_what_an_earlier_invocation_left_is_done_again_when_it_is_asked_for(self, tmp_path: Path) -> None:
        process(tmp_path, 2)
        worker = ScriptedWorker(nothing, nothing)
        records = list(UnitActor(worker, Location(str(tmp_path)), "attempt-2", 0).process(work_units(2)))
        assert worker.reads == ["u0", "u1"]
        assert {record.attempt for record in records} == {"attempt-2"}


class TestDefects:
    @pytest.mark.parametrize("where", ["read", "compute"])
    def test_they_are_not_swallowed_and_finished_units_stand(self, tmp_path: Path, where: str) -> None:
        def fail(unit: str, *_: int) -> None:
            if unit == "u2":
                raise ZeroDivisionError("a defect")

        scripts: dict[str, Any] = {f"on_{where}": fail}
        with pytest.raises(ZeroDivisionError, match="a defect"):
            process(tmp_path, 4, **scripts)
        assert "u0.parquet" in names(tmp_path)
        assert not [name for name in names(tmp_path) if name >= "u2"]

    def test_they_name_the_shard(self, tmp_path: Path) -> None:
        def fail(unit: str) -> None:
            raise ZeroDivisionError("a defect")

        with pytest.raises(ZeroDivisionError) as caught:
            process(tmp_path, 1, on_compute=fail)
        assert caught.value.__notes__ == ["while processing /in/u0.tar"]


@pytest.mark.usefixtures("ray_session")
class TestOnRay:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        for number in range(5):
            pq.write_table(pa.table({"caption": [f"a cat {number}", "a dog"]}), tmp_path / f"{number}.parquet")
        (tmp_path / "3.parquet").write_bytes(b"garbage")
        return tmp_path

    @pytest.mark.parametrize("files", [5, 9], ids=["in a task", "in a pool"])
    def test_units_are_done_and_records_arrive(self, folder: Path, files: int) -> None:
        for number in range(5, files):
            shutil.copy(folder / "0.parquet", folder / f"{number}.parquet")
        captions = CaptionsConfig(paths=(str(folder),))
        encoder = EncoderConfig(kind="static", model="package:wordllama")
        arguments = (captions, encoder, EncoderPlacement(), 1, None, 0)
        output = Location(str(folder / "out"))
        arrived: list[UnitRecord] = []
        todo = list_work_units(captions)
        assert are_few(todo) == (files == 5)
        made = run_units(todo, UnitWork(EmbedWorker, arguments, ActorPool()), output, "attempt-7", arrived.append)
        records = list(made.values())
        assert records == arrived
        by_unit = {record.unit: record for record in records}
        assert by_unit.keys() == {work_unit.unit for work_unit in todo}
        bad = [record for record in records if record.error is not None]
        assert [record.source for record in bad] == [f"{folder}/3.parquet"]
        assert len(names(folder / "out")) == len(todo) - 1
        assert {record.attempt for record in records} == {"attempt-7"}

    @pytest.mark.parametrize("units", [1, 2], ids=["in a task", "in a pool"])
    def test_a_defect_ends_the_stage(self, folder: Path, units: int) -> None:
        class Defective:
            """Local, so that it reaches the workers by value."""

            def read(self, work_unit: WorkUnit) -> str:
                raise ZeroDivisionError(f"a defect at {work_unit.unit}")

            def compute(self, *_: object) -> tuple[pa.Table, UnitRecord]:
                raise AssertionError("never reached")

        with pytest.raises(RuntimeError, match=r"a defect at u0\nwhile reading /in/u0\.tar"):
            run_units(work_units(units), UnitWork(Defective, (), ONE), Location(str(folder / "out")), "a", nothing)
        assert names(folder / "out") == []

    @pytest.mark.parametrize("units", [1, 2], ids=["in a task", "in a pool"])
    def test_what_a_worker_refuses_reaches_the_user_as_it_was_said(self, folder: Path, units: int) -> None:
        def refuse() -> NoReturn:
            raise UsageError("no such encoder")

        with pytest.raises(UsageError) as caught:
            run_units(
                work_units(units),
                UnitWork(refuse, (), ONE),
                Location(str(folder / "out")),
                "a",
                nothing,
            )
        assert str(caught.value) == "no such encoder"

    def test_a_pool_grows_when_units_are_handed_out_one_by_one(self, folder: Path) -> None:
        class Waiting:
            """Finishes a unit when two processes work. Local, so that it reaches the workers by value."""

            def read(self, work_unit: WorkUnit) -> str:
                return work_unit.unit

            def compute(self, work_unit: WorkUnit, source: str) -> tuple[pa.Table, UnitRecord]:
                (folder / f"{os.getpid()}.pid").touch()
                deadline = time.monotonic() + START_DEADLINE_SECONDS
                while len(list(folder.glob("*.pid"))) < 2:
                    assert time.monotonic() < deadline, "there is no second actor"
                    time.sleep(0.05)
                return pa.table({"unit": [source]}), UnitRecord(
                    unit=source, source=work_unit.uri, rows_in=1, rows_out=1
                )

        pool = ActorPool(min_actors=1, max_actors=2)
        assert (
            len(run_units(work_units(4), UnitWork(Waiting, (), pool), Location(str(folder / "out")), "a", nothing))
            == 4
        )

    def test_a_task_whose_process_is_lost_is_repeated_with_what_is_left(self, folder: Path) -> None:
        class KilledOnce:
            """Local, so that it reaches the workers by value."""

            def read(self, work_unit: WorkUnit) -> str:
                return work_unit.unit

            def compute(self, work_unit: WorkUnit, source: str) -> tuple[pa.Table, UnitRecord]:
                with (folder / f"{source}.starts").open("a") as starts:
                    starts.write("x")
                if source == "u3" and (folder / "u3.starts").read_text() == "x":
                    os.kill(os.getpid(), signal.SIGKILL)
                return pa.table({"unit": [source]}), UnitRecord(
                    unit=source, source=work_unit.uri, rows_in=1, rows_out=1
                )

        few = [replace(work_unit, size_bytes=1) for work_unit in work_units(5)]
        arrived: list[UnitRecord] = []
        run_units(few, UnitWork(KilledOnce, (), ONE), Location(str(folder / "out")), "a", arrived.append)
        assert [record.unit for record in arrived] == [f"u{number}" for number in range(5)]
        assert (folder / "u0.starts").read_text() == "x", "what was finished is not done again"
        assert [record.error for record in arrived] == [None] * 5

    def test_a_process_that_dies_before_it_has_a_worker_is_no_fault_of_a_shard(self, folder: Path) -> None:
        def die() -> NoReturn:
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError

        pool = ActorPool(max_actors=1, retries_per_unit=1)
        with pytest.raises(WorkerError, match="worker processes die while they start"):
            run_units(work_units(1), UnitWork(die, (), pool), Location(str(folder / "out")), "a", nothing)

    @pytest.mark.drill
    def test_a_shard_that_kills_its_worker_is_quarantined_alone(self, folder: Path) -> None:
        class Killed:
            """Local, so that it reaches the workers by value."""

            def read(self, work_unit: WorkUnit) -> str:
                return work_unit.unit

            def compute(self, work_unit: WorkUnit, source: str) -> tuple[pa.Table, UnitRecord]:
                if source == "u2":
                    os.kill(os.getpid(), signal.SIGKILL)
                return pa.table({"unit": [source]}), UnitRecord(
                    unit=source, source=work_unit.uri, rows_in=1, rows_out=1
                )

        pool = ActorPool(max_actors=1, retries_per_unit=1)
        output = Location(str(folder / "out"))
        records = run_units(work_units(16), UnitWork(Killed, (), pool), output, "a", nothing).values()
        assert sorted(record.unit for record in records) == sorted(work_unit.unit for work_unit in work_units(16))
        assert {record.unit: record.error for record in records if record.error is not None} == {
            "u2": "/in/u2.tar: its worker process died 2 times while processing only this unit (out of memory?)"
        }
        assert len(names(folder / "out")) == 15


def test_nothing_to_do_needs_no_ray(tmp_path: Path) -> None:
    assert run_units([], UnitWork(ScriptedWorker, (), ActorPool()), Location(str(tmp_path)), "a", nothing) == {}
