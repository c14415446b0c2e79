"""Counting captions of all shards: as many as reading finds, kept for the next invocation, no damaged shards."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mode_ray.captions.count import count_all_captions
from mode_ray.captions.listing import list_work_units
from mode_ray.captions.read import count_captions, read_captions
from mode_ray.config.base import ActorPool
from mode_ray.config.captions import CaptionsConfig
from mode_ray.stages.work_unit import WorkUnit
from mode_ray.storage import Location


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A split parquet file of lists, JSON Lines, CSV with a bad row, and a damaged tar."""
    folder = tmp_path / "in"
    folder.mkdir()
    lists = pa.array([["a", "b"], None, [], ["c", ""], ["d"]], pa.list_(pa.string()))
    pq.write_table(pa.table({"caption": lists}), folder / "a.parquet", row_group_size=2)
    (folder / "b.jsonl").write_text('{"caption": ["a", "b", "c"]}\nbad\n\n{"caption": "d"}\n')
    (folder / "c.csv").write_text("caption\na\nb,b\nc\n")
    (folder / "d.tar").write_bytes(b"no tar")
    return folder


def listed(folder: Path, select: str) -> tuple[CaptionsConfig, Sequence[WorkUnit]]:
    """The config and its shards; a parquet file has three units."""
    config = CaptionsConfig.model_validate(
        {"paths": [f"{folder}/{{a.parquet,b.jsonl,c.csv,d.tar}}"], "select": select, "max_rows_per_unit": 5}
    )
    work_units = list_work_units(config.model_copy(update={"max_rows_per_unit": 2}))
    return config, work_units


@pytest.mark.parametrize(("select", "expected"), [("first", [5, 3, 3]), ("all", [7, 5, 3])])
def test_every_format_is_counted_as_it_is_read(folder: Path, select: str, expected: list[int]) -> None:
    config, work_units = listed(folder, select)
    by_file = dict.fromkeys((work_unit.uri for work_unit in work_units), 0)
    for work_unit in work_units[:-1]:
        count = count_captions(work_unit, config)
        assert count == read_captions(work_unit, config).rows_in
        by_file[work_unit.uri] += count
    assert list(by_file.values()) == [*expected, 0]


@pytest.mark.usefixtures("ray_session")
def test_ray_tasks_count_once_for_all_invocations(folder: Path, tmp_path: Path) -> None:
    config, work_units = listed(folder, "first")
    kept, calls = Location(str(tmp_path / "run/caption_counts.parquet")), []
    pool = ActorPool(retries_per_unit=0)

    def count(listing: Sequence[WorkUnit]) -> dict[str, int]:
        return count_all_captions(listing, config, pool, kept, lambda done, total: calls.append((done, total)))

    first = count(work_units)
    assert first == {work_unit.unit: count_captions(work_unit, config) for work_unit in work_units[:-1]}, (
        "the tar is left out"
    )
    assert calls[-1] == (len(work_units), len(work_units))

    table = kept.read_table()
    kept.write_table(table.set_column(3, "captions", pa.array([1000] * table.num_rows)))
    (folder / "c.csv").write_text("caption\na\nb\nc\nd\ne\n")
    again = count(listed(folder, "first")[1])
    replaced = next(work_unit.unit for work_unit in work_units if work_unit.format == "csv")
    assert again.pop(replaced) == 5
    assert set(again.values()) == {1000}, "what was counted is not counted again"
