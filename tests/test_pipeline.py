"""What a pipeline finds before it runs anything: the listing it keeps, and sources that are other files now."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from mode_ray.captions.clean import CaptionTable
from mode_ray.config.run import RunConfig
from mode_ray.embed.stage import unit_record
from mode_ray.errors import UsageError
from mode_ray.observe.progress import Progress
from mode_ray.pipeline import Pipeline, build_stages
from mode_ray.run_directory import LISTING
from mode_ray.stages.actor import with_source
from mode_ray.stages.manifest import Stage
from mode_ray.stages.run import Run
from mode_ray.stages.work_unit import read_work_units
from mode_ray.storage import Location


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """A run over two parquet files, of two units each."""
    for name in "ab":
        write(tmp_path / f"in/{name}.parquet", 20)
    return config_of(tmp_path)


def config_of(folder: Path, paths: str = "in") -> RunConfig:
    return RunConfig.model_validate(
        {
            "run": str(folder / "run"),
            "captions": {"paths": [str(folder / paths)], "max_rows_per_unit": 10},
            "cluster": {"fine": {"centers": 8}, "coarse": {"experts": [2]}},
            "train": {"dense_samples": 1, "experts": 2},
        }
    )


def write(file: Path, rows: int) -> None:
    file.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"caption": [f"caption {row}" for row in range(rows)]}), file, row_group_size=10)


def pipeline(config: RunConfig) -> Pipeline:
    return Pipeline.open(config, Progress(Console(quiet=True)))


def finish(config: RunConfig, name: str) -> Stage:
    """A shard stage as if it had been run."""
    work_units = read_work_units(config.directory / LISTING)
    stage = build_stages(Run(config, work_units))[name]
    stage.begin(len(work_units))
    table = pa.table({"row": [1]})
    records = [
        with_source(unit_record(work_unit, CaptionTable(table, 1, {}, {})), work_unit) for work_unit in work_units
    ]
    stage.finish([stage.write_unit(table, record) for record in records], {})
    return stage


class TestTheListing:
    def test_it_is_kept_and_written_again_only_when_it_changes(self, config: RunConfig, tmp_path: Path) -> None:
        pipeline(config)
        kept = tmp_path / "run" / LISTING
        assert [(Path(work_unit.uri).name, work_unit.rows) for work_unit in read_work_units(Location(str(kept)))] == [
            ("a.parquet", 10),
            ("a.parquet", 10),
            ("b.parquet", 10),
            ("b.parquet", 10),
        ]
        before = kept.stat().st_mtime_ns
        pipeline(config)
        assert kept.stat().st_mtime_ns == before
        write(tmp_path / "in/a.parquet", 30)
        pipeline(config)
        assert len(read_work_units(Location(str(kept)))) == 5

    def test_it_is_used_instead_of_the_files(self, config: RunConfig, tmp_path: Path) -> None:
        pipeline(config)
        file = tmp_path / "in/a.parquet"
        times = file.stat()
        file.write_bytes(bytes(times.st_size))
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        pipeline(config)
        assert len(read_work_units(config.directory / LISTING)) == 4, "opened, it would be seen not to be parquet"

    def test_a_refused_config_leaves_no_trace(self, config: RunConfig, tmp_path: Path) -> None:
        pipeline(config)
        build_stages(Run(config, read_work_units(config.directory / LISTING)))["embed"].begin(4)
        before = (tmp_path / "run" / LISTING).read_bytes()
        write(tmp_path / "in/c.parquet", 5)
        with pytest.raises(UsageError, match=r"captions \(files found\) was '2 files, .*', is '3 files, "):
            pipeline(config)
        assert (tmp_path / "run" / LISTING).read_bytes() == before


class TestSources:
    def test_a_mended_file_with_more_units_is_the_same_run(self, config: RunConfig, tmp_path: Path) -> None:
        pipeline(config)
        build_stages(Run(config, read_work_units(config.directory / LISTING)))["embed"].begin(4)
        write(tmp_path / "in/a.parquet", 30)
        assert not pipeline(config).is_done(["embed"])

    @pytest.mark.parametrize("name", ["embed", "assign"])
    def test_a_changed_file_of_a_stage_that_is_done_is_refused(
        self, config: RunConfig, tmp_path: Path, name: str
    ) -> None:
        pipeline(config)
        finish(config, name)
        assert pipeline(config).is_done([name])
        write(tmp_path / "in/b.parquet", 21)
        with pytest.raises(UsageError, match=rf"in/b\.parquet: changed since the {name} stage read it.*delete .*run"):
            pipeline(config)

    def test_units_done_before_are_said(
        self, config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        pipeline(config)
        stage = finish(config, "embed")
        (stage.directory / "manifest.json").delete()
        stage.output(read_work_units(config.directory / LISTING)[0].unit).delete()
        write(tmp_path / "in/b.parquet", 9)
        again = Pipeline.open(config, Progress(Console(width=200)))
        again._begin("embed")
        said = capsys.readouterr().out
        assert "[embed] 1 of 3 units done before" in said
        assert "[embed] 2 outputs are removed: no file has these units any more" in said


def test_training_on_captions_alone_is_refused_before_any_stage(tmp_path: Path) -> None:
    (tmp_path / "captions.jsonl").write_text('{"caption": "a cat"}\n')
    run = pipeline(config_of(tmp_path, "captions.jsonl"))
    with pytest.raises(UsageError, match=r"captions\.jsonl: holds captions only .* experts train on parquet or"):
        run.run(["embed", "cluster", "assign", "train"])
    assert not (tmp_path / "run/embeddings").exists()


def test_a_stage_that_a_run_does_not_have_is_named(config: RunConfig) -> None:
    with pytest.raises(UsageError, match=r"^features: this run has no such stage; set train\.data\.mode=features"):
        pipeline(config).check(["features"])
    assert not pipeline(config).is_done(["assign", "features"])
