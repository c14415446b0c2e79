"""Rates of a real tiny run compared with its records, and the plan of that run compared with its real time."""

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from planned import HOUR
from rich.console import Console

from mode_ray.cli import main
from mode_ray.config.load import dump_config
from mode_ray.config.run import RunConfig
from mode_ray.errors import UsageError
from mode_ray.observe.progress import Progress
from mode_ray.pipeline import Pipeline
from mode_ray.plan.estimate import PlanOptions, make_plan
from mode_ray.plan.from_run import rates_from_run, train_rates
from mode_ray.plan.inventory import take_inventory
from mode_ray.run_directory import MANIFEST, UNITS, stage_directories
from mode_ray.stages.manifest import Manifest, read_manifest, read_units, unit_outputs
from mode_ray.storage import Location
from mode_ray.train.runs.status import TrialStatus

FILES, ROWS = 6, 2000
REFUSED = FILES  # the last caption of each file is empty
DIMENSION = 256
FACTOR = 1.5
WORDS = ("cat", "dog", "house", "river", "red", "old", "wooden", "tall", "under", "beside", "snow", "night", "boat")


@pytest.fixture(scope="module")
def config(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """The config of a run whose embed, cluster and assign stages are done."""
    folder, dice = tmp_path_factory.mktemp("small"), random.Random(0)
    (folder / "captions").mkdir()
    for number in range(FILES):
        captions = [" ".join(dice.choices(WORDS, k=dice.randint(3, 12))) for _ in range(ROWS - 1)]
        pq.write_table(pa.table({"caption": [*captions, ""]}), folder / f"captions/{number}.parquet")
    config = RunConfig.model_validate(
        {
            "run": str(folder / "run"),
            "captions": {"paths": [str(folder / "captions")]},
            "encoder": {"kind": "static", "model": "package:wordllama"},
            "embed": {"pool": {"max_actors": 1}},
            "cluster": {"sample_rows": 8000, "fine": {"centers": 16}, "coarse": {"experts": [2]}},
            "assign": {"pool": {"max_actors": 1}},
            "train": {"dense_samples": 1024, "experts": 2},
        }
    )
    Pipeline.open(config, Progress(Console(quiet=True))).run(["embed", "cluster", "assign"])
    return config


@pytest.fixture
def unfinished(config: RunConfig) -> Iterator[Location]:
    """The run as if its assign stage had been interrupted before its end."""
    directory = stage_directories(config.directory)["assign"]
    files = {
        file: file.read_bytes() for file in (directory / UNITS, directory / MANIFEST, unit_outputs(directory)[-1])
    }
    for file in files:
        file.delete()
    yield config.directory
    for file, content in files.items():
        file.write_bytes(content)


def manifest_of(config: RunConfig, stage: str) -> Manifest:
    manifest = read_manifest(stage_directories(config.directory)[stage])
    assert manifest is not None
    return manifest


class TestRatesOfARun:
    @pytest.mark.parametrize("stage", ["embed", "assign"])
    def test_a_row_costs_what_the_records_of_the_units_add_up_to(self, config: RunConfig, stage: str) -> None:
        records = read_units(stage_directories(config.directory)[stage])
        rates = getattr(rates_from_run(config.directory), stage)
        assert rates.units == FILES
        assert rates.rows * rates.row_seconds == pytest.approx(sum(record.seconds for record in records))
        assert rates.rows * rates.read_row_seconds == pytest.approx(sum(record.read_seconds for record in records))
        written = sum(record.bytes_out for record in records)
        assert rates.read_row_seconds > 0.0
        assert rates.rows * rates.kept_share * rates.row_bytes == pytest.approx(written)
        assert 0.0 < rates.actors_busy <= 1.0

    def test_captions_that_were_refused_and_the_size_of_an_embedding(self, config: RunConfig) -> None:
        rates = rates_from_run(config.directory)
        assert rates.refused_share == pytest.approx(REFUSED / (FILES * ROWS))
        assert rates.dimension == DIMENSION
        assert rates.embed is not None
        assert 400 < rates.embed.row_bytes < 700  # 256 values of float16, and the place of the caption
        assert rates.cpus >= 1.0

    def test_the_parts_of_the_fit_add_up_to_its_stage(self, config: RunConfig) -> None:
        rates, manifest = rates_from_run(config.directory).cluster, manifest_of(config, "cluster")
        assert rates is not None
        assert rates.rows == manifest.rows_in == 8000
        iterations = manifest.summary["iterations"]
        embedded = FILES * ROWS - REFUSED
        parts = rates.fixed_seconds + rates.coarse_seconds + embedded * rates.read_row_seconds + rates.seeding_seconds
        passes = rates.rows * (rates.row_seconds + iterations * rates.row_iteration_seconds)
        assert parts + passes == pytest.approx(manifest.seconds, rel=0.01)

    def test_a_stage_at_work_has_the_rates_of_the_units_it_has_finished(self, unfinished: Location) -> None:
        rates = rates_from_run(unfinished).assign
        assert rates is not None
        assert (rates.units, rates.rows) == (FILES - 1, (FILES - 1) * (ROWS - 1))
        assert (rates.fixed_seconds, rates.unit_bytes) == (0.0, 0.0)

    def test_a_run_on_object_storage_has_the_same_rates(self, config: RunConfig, bucket: str) -> None:
        local, remote = config.directory, Location.parse(f"{bucket}/run")
        for file in local.files(recursive=True):
            file.copy_to(remote / file.uri.removeprefix(f"{local.uri}/"))
        assert rates_from_run(remote) == replace(rates_from_run(local), run=str(remote))

    def test_a_directory_without_a_run_and_a_run_that_has_done_nothing(
        self, config: RunConfig, tmp_path: Path
    ) -> None:
        with pytest.raises(UsageError, match=r"no run here \(no config.yaml\)"):
            rates_from_run(Location(str(tmp_path)))
        (tmp_path / "config.yaml").write_text(dump_config(config))
        with pytest.raises(UsageError, match="none of its stages has finished a unit yet"):
            rates_from_run(Location(str(tmp_path)))


class TestThePlanOfTheSameRun:
    def test_it_predicts_the_seconds_and_bytes_that_the_run_took(self, config: RunConfig) -> None:
        rates = rates_from_run(config.directory)
        plan = make_plan(config, rates, take_inventory(config, None, None), PlanOptions(efficiency=1.0))
        assert [stage.stage for stage in plan.stages] == ["embed", "cluster", "assign"]
        for stage in plan.stages:
            directory = stage_directories(config.directory)[stage.stage]
            taken = manifest_of(config, stage.stage).seconds
            assert taken / FACTOR < stage.wall_hours * HOUR < taken * FACTOR, stage.stage
            written = sum(file.size_bytes() for file in directory.files())
            assert written / 1.2 < stage.written_bytes < written * 1.2, stage.stage

    def test_the_command_prints_it_and_names_what_the_run_does_not_have(
        self, config: RunConfig, unfinished: Location, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "my.yaml").write_text(dump_config(config))
        arguments = ["plan", "--config", str(tmp_path / "my.yaml"), "--from", str(unfinished), "--rows", "1e9"]
        assert main([*arguments, "--json"]) == 0
        shown = json.loads(capsys.readouterr().out)
        assert [stage["stage"] for stage in shown["stages"]] == ["embed", "cluster", "assign"]
        assert shown["rates"]["assign"]["units"] == FILES - 1
        assert any("training is left out" in assumption for assumption in shown["assumptions"])
        assert main([*arguments, "cluster.fine.centers=32"]) == 2
        assert "ran with cluster.fine.centers=16 (the config has 32)" in capsys.readouterr().err


class TestTraining:
    FINISHED = TrialStatus(
        trial="n2/00",
        state="finished",
        samples=1000,
        launches=1,
        seconds=30.0,
        samples_seen=1000,
        workers=2,
        samples_per_second=50.0,
    )

    def test_the_speed_is_that_of_one_worker_and_the_rest_of_a_run_its_launch(self) -> None:
        rates = train_rates([self.FINISHED])
        assert rates is not None
        assert (rates.samples_per_second, rates.launch_seconds) == (25.0, 10.0)

    def test_runs_are_weighted_by_their_samples(self) -> None:
        running = replace(self.FINISHED, state="running", samples_seen=3000, samples_per_second=150.0, seconds=0.0)
        rates = train_rates([self.FINISHED, running])
        assert rates is not None
        assert rates.samples_per_second == pytest.approx(4000 / (20 * 2 + 20 * 2))
        assert rates.launch_seconds == 10.0

    def test_a_run_without_a_measured_speed_counts_with_all_its_time(self) -> None:
        rates = train_rates([replace(self.FINISHED, samples_per_second=None, workers=None)])
        assert rates is not None
        assert rates.samples_per_second == pytest.approx(1000 / 30)
        assert rates.launch_seconds == pytest.approx(0.0)

    def test_models_of_another_run_and_runs_that_wait_have_no_rate(self) -> None:
        assert train_rates([replace(self.FINISHED, taken_from="/other/n2/00")]) is None
        assert train_rates([TrialStatus(trial="seed", state="waiting", samples=10)]) is None
