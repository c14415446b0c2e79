"""A restart of `train` on S3 makes as many requests for many work units as for few."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest

from mode_ray.assign.counts import fine_counts
from mode_ray.pairs.index_files import index_provenance
from mode_ray.pairs.members import TrainingSet
from mode_ray.pairs.training_set import SetFiles, write_set_units, write_training_set
from mode_ray.stages.manifest import Stage, UnitRecord
from mode_ray.stages.work_unit import WorkUnit
from mode_ray.storage import Location

EXPERT = TrainingSet(kind="expert", experts=2, expert=1)
GROUP_M = np.array([0, 1], np.int32)


def assign(root: Location, units: int) -> list[WorkUnit]:
    """The work units of a run whose assign stage is done."""
    work_units = [
        WorkUnit(unit=f"{number:04d}", uri=f"s3://in/{number:04d}.tar", format="webdataset") for number in range(units)
    ]
    stage = Stage("assign", root / "assignments", {})
    stage.begin(units)
    place = pa.array([0, 1], pa.int64())
    columns = ("row", "caption_index", "image_offset", "image_bytes", "caption_offset", "caption_bytes")
    table = pa.table({**dict.fromkeys(columns, place), "fine": pa.array([0, 1], pa.int32())})

    def write(work_unit: WorkUnit) -> UnitRecord:
        return stage.write_unit(table, UnitRecord(unit=work_unit.unit, source=work_unit.uri, rows_in=2, rows_out=2))

    with ThreadPoolExecutor(8) as writers:
        stage.finish(writers.map(write, work_units), {})
    write_set_units(root / "shards.parquet", work_units)
    return work_units


@pytest.mark.drill
@pytest.mark.parametrize("units_per_part", [1024, 16])
def test_they_do_not_grow_with_the_units(
    bucket: str, s3_requests: Callable[[], Counter[str]], units_per_part: int
) -> None:
    taken = []
    for units in (20, 60):
        root = Location.parse(f"{bucket}/{units_per_part}-{units}")
        work_units = assign(root, units)
        files = SetFiles(EXPERT, root / "assignments", root / "shards.parquet", GROUP_M, units_per_part)

        def start(root: Location = root, work_units: list[WorkUnit] = work_units, files: SetFiles = files) -> None:
            assert fine_counts(root / "assignments", work_units, 2).tolist() == [len(work_units)] * 2
            file = write_training_set(files, root / "training_sets")
            assert index_provenance(file) == files.provenance()

        s3_requests()
        start()
        assert s3_requests().total() > units, "the first start reads all assignments"
        start()
        taken.append(s3_requests())
    assert taken[0] == taken[1]
    assert taken[0].total() < 40
