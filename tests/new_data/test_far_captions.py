"""The far captions of a shard: the same embeddings whether they were kept or are made again."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mode_ray.captions.listing import list_work_units
from mode_ray.captions.read import read_captions
from mode_ray.cluster.clustering import Clustering
from mode_ray.config.run import RunConfig
from mode_ray.embed.encoder import encoder_name
from mode_ray.embed.load import load_encoder
from mode_ray.embed.table import as_stored, embedding_column, embedding_vectors, place_columns
from mode_ray.errors import DataError
from mode_ray.new_data.far_captions import FarSample, FarWorker
from mode_ray.run_directory import stage_directories
from mode_ray.stages.run import Run
from mode_ray.stages.work_unit import WorkUnit
from mode_ray.storage import Location

CAPTIONS = [["a red cat", "a blue dog"], ["a ship at sea"], [], ["snow", "rain on a roof", "  "], ["a green tree"]]
DISTANCES = np.array([0.1, 0.9, 0.8, 0.2, 0.7, 0.5], np.float32)
FAR = [(0, 1), (1, 0), (3, 1)]


def config(folder: Path, keep: str) -> RunConfig:
    return RunConfig.model_validate(
        {
            "run": str(folder / "run"),
            "captions": {"paths": [str(folder / "captions")], "select": "all"},
            "encoder": {"kind": "static", "model": "package:wordllama"},
            "embed": {"keep": keep},
            "train": {"dense_samples": 1},
        }
    )


class Assigned:
    """One shard of six usable captions, embedded and assigned with the distances above."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "captions").mkdir()
        pq.write_table(pa.table({"caption": CAPTIONS}), folder / "captions/a.parquet")
        run = config(folder, "all")
        self.directories: Mapping[str, Location] = stage_directories(run.directory)
        (self.work_unit,) = list_work_units(run.captions)
        table = read_captions(self.work_unit, run.captions).table
        encoder = load_encoder(run.encoder, run.embed.encoder)
        self.vectors_nd = as_stored(encoder.encode(table["caption"].to_pylist()))
        places = place_columns(table)
        self.name = f"{self.work_unit.unit}.parquet"
        (self.directories["embed"] / self.name).write_table(
            pa.table({**places, "embedding": embedding_column(self.vectors_nd)})
        )
        (self.directories["assign"] / self.name).write_table(
            pa.table({**places, "fine": pa.array(np.zeros(6, np.int32)), "distance": pa.array(DISTANCES)})
        )
        Clustering(
            centers_md=self.vectors_nd[:1],
            prices_m=np.zeros(1),
            mass_m=np.array([6]),
            squared_distance_m=np.ones(1),
            encoder_name=encoder_name(run.encoder),
            coarse={1: np.zeros(1, np.int32)},
        ).save(self.directories["cluster"])

    def far(self, keep: str, count: int = 3, seed: int = 0) -> pa.Table:
        """What a worker collects from the shard."""
        sample = FarSample(0.6, {self.work_unit.unit: count}, seed)
        worker = FarWorker(Run(config(self.folder, keep), ()), sample)
        work_unit: WorkUnit = self.work_unit
        table, record = worker.compute(work_unit, worker.read(work_unit))
        assert (record.rows_in, record.rows_out) == (table.num_rows, table.num_rows)
        return table


@pytest.fixture
def assigned(tmp_path: Path) -> Assigned:
    return Assigned(tmp_path)


def places(table: pa.Table) -> list[tuple[int, int]]:
    return list(zip(table["row"].to_pylist(), table["caption_index"].to_pylist(), strict=True))


@pytest.mark.parametrize("keep", ["all", "sample"])
def test_captions_above_the_threshold_with_their_stored_embeddings(assigned: Assigned, keep: str) -> None:
    table = assigned.far(keep)
    assert places(table) == FAR
    np.testing.assert_array_equal(embedding_vectors(table), assigned.vectors_nd[DISTANCES > 0.6])


def test_a_seeded_part_of_them_the_same_by_both_ways(assigned: Assigned) -> None:
    chosen = {seed: places(assigned.far("all", 2, seed)) for seed in range(6)}
    assert all(len(part) == 2 and set(part) < set(FAR) for part in chosen.values())
    assert len({tuple(part) for part in chosen.values()}) > 1
    assert places(assigned.far("sample", 2, 3)) == chosen[3]


def test_a_source_that_lost_captions_is_named(assigned: Assigned) -> None:
    pq.write_table(pa.table({"caption": CAPTIONS[:2]}), assigned.folder / "captions/a.parquet")
    with pytest.raises(DataError, match=r"a.parquet: 1 of its assigned captions are missing"):
        assigned.far("sample")


def test_missing_or_damaged_assignments_are_named_with_the_fix(assigned: Assigned) -> None:
    output = Path((assigned.directories["assign"] / assigned.name).path)
    output.write_bytes(output.read_bytes()[:100])
    with pytest.raises(DataError, match=r"damaged .*delete it and .*manifest\.json, and run `mode-ray .*` again"):
        assigned.far("all")
    output.unlink()
    with pytest.raises(DataError, match=r"no such file.*delete .*manifest\.json and run `mode-ray assign` again"):
        assigned.far("all")
