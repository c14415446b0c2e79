"""The atlas of a real small run: from embeddings, from assignments, and with missing sources."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from mode_ray.atlas.stage import MIN_UNITS, choose_rows, make_atlas, sample_unit
from mode_ray.atlas.summary import AtlasSummary, read_summary
from mode_ray.captions.listing import list_work_units
from mode_ray.cli import main
from mode_ray.config.load import dump_config
from mode_ray.config.run import RunConfig
from mode_ray.errors import DataError, UsageError
from mode_ray.observe.progress import Progress
from mode_ray.pipeline import Pipeline
from mode_ray.run_directory import stage_directories
from mode_ray.stages.run import Run
from mode_ray.storage import Location

ANIMALS = ("cat", "dog", "bird", "horse", "frog", "whale")
ROWS_PER_SHARD, SHARDS = 60, 4


def captions_of(work_unit: int) -> list[str | None]:
    rows = [f"a {ANIMALS[row % 6]} near house {work_unit} and tree {row}" for row in range(ROWS_PER_SHARD)]
    return [None, *rows[1:]]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    folder = tmp_path_factory.mktemp("atlas_run")
    (folder / "data").mkdir()
    for work_unit in range(SHARDS):
        pq.write_table(pa.table({"caption": captions_of(work_unit)}), folder / "data" / f"{work_unit}.parquet")
    return RunConfig.model_validate(
        {
            "run": str(folder / "run"),
            "captions": {"paths": [str(folder / "data")]},
            "encoder": {"kind": "static", "model": "package:wordllama"},
            "embed": {"pool": {"max_actors": 1}},
            "cluster": {"fine": {"centers": 6}, "coarse": {"experts": [2, 3]}},
            "assign": {"pool": {"max_actors": 1}},
            "train": {"dense_samples": 1, "experts": 3},
        }
    )


@pytest.fixture(scope="module")
def pipeline(config: RunConfig, ray_session: None) -> Pipeline:
    pipeline = Pipeline.open(config, Progress(Console(quiet=True)))
    with pytest.raises(UsageError, match="run `mode-ray cluster` first"):
        pipeline.atlas()
    pipeline.run(("embed", "cluster"))
    return pipeline


def held_beside(page: Location) -> AtlasSummary:
    """The summary that is written with a page."""
    summary = read_summary(page.parent, centers=6)
    assert summary is not None
    assert page.exists()
    return summary


def test_before_and_after_assignment_the_same_captions_are_shown(config: RunConfig, pipeline: Pipeline) -> None:
    before = held_beside(pipeline.atlas())
    usable = SHARDS * (ROWS_PER_SHARD - 1)
    assert sum(before["clusters"]["sampled"]) == sum(before["clusters"]["rows"]) == usable
    assert before["facts"]["Usable captions"] == f"{usable:,}"
    assert "before assignment" in before["facts"]["Sampled for this page"]
    assert before["refused"] == {"missing caption": SHARDS}
    assert [chosen["n"] for chosen in before["maps"]] == [3, 2]
    assert all(len(near) == 5 for near in before["clusters"]["near"])
    pipeline.run(("assign",))
    after = held_beside(pipeline.atlas())
    assert "as assigned" in after["facts"]["Sampled for this page"]
    assert after["clusters"] == before["clusters"]


def test_the_command_prints_the_path_of_the_page(
    config: RunConfig, pipeline: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_text(dump_config(config))
    assert main(["atlas", "--config", str(tmp_path / "run.yaml")]) == 0
    assert f"atlas: {config.run}/clusters/atlas.html" in capsys.readouterr().out


def test_captions_are_joined_to_their_own_rows(config: RunConfig, pipeline: Pipeline) -> None:
    places = stage_directories(config.directory)
    work_unit = list_work_units(config.captions)[2]
    sample = sample_unit(config, work_unit, 30, places["cluster"], places["embed"])
    assert len(sample) == 30
    assert sample.missing == 0
    assert {caption.split(" and ")[0].rsplit(" ", 1)[1] for caption in sample.ends["caption"].to_pylist()} == {"2"}


def test_missing_sources_are_counted(config: RunConfig, pipeline: Pipeline, tmp_path: Path) -> None:
    work_units = list_work_units(config.captions)
    kept = Path(work_units[0].uri).read_bytes()
    try:
        Path(work_units[0].uri).unlink()
        shorter = pa.table({"caption": captions_of(1)[:40]})
        original = Path(work_units[1].uri).read_bytes()
        pq.write_table(shorter, work_units[1].uri)
        facts = held_beside(make_atlas(Run(config, work_units)))["facts"]
        assert facts["Skipped: units that cannot be read"] == "1"
        assert facts["Skipped: sampled captions no longer found in their source"] == "20"
        with pytest.raises(DataError, match="no such file"):
            make_atlas(Run(config, work_units[:1]))
    finally:
        Path(work_units[0].uri).write_bytes(kept)
        Path(work_units[1].uri).write_bytes(original)


def test_samples_are_bounded_seeded_and_of_several_units(config: RunConfig, pipeline: Pipeline) -> None:
    rows, work_units = stage_directories(config.directory)["embed"], list_work_units(config.captions)
    wanted = choose_rows(rows, work_units, 50, 0)
    assert sum(wanted.values()) == 50
    assert len(wanted) == min(MIN_UNITS, SHARDS)
    assert wanted == choose_rows(rows, work_units, 50, 0)
    assert wanted != choose_rows(rows, work_units, 50, 1)
    with pytest.raises(DataError, match="no rows of the given captions"):
        choose_rows(rows, [], 50, 0)
