"""The installed `mode-ray` command and a user's mistakes: the exit code, one clear message, nothing half-written."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import yaml

USAGE, DATA = 2, 1
COMMAND = Path(sys.executable).with_name("mode-ray")
DEADLINE_SECONDS = 240.0


def run_command(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run the installed command to its end."""
    return subprocess.run(
        [str(COMMAND), *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )


def settings(folder: Path) -> dict[str, Any]:
    """A small config over `folder/captions`, to run in `folder/run`."""
    return {
        "run": str(folder / "run"),
        "captions": {"paths": [str(folder / "captions")]},
        "encoder": {"kind": "static", "model": "package:wordllama"},
        "embed": {"pool": {"max_actors": 1}},
        "cluster": {"fine": {"centers": 16}, "coarse": {"experts": [2]}},
        "train": {"experts": 2, "dense_samples": 1024, "batch_size": 32},
    }


def write_config(folder: Path, values: Mapping[str, Any]) -> str:
    """Write a config file and return its path."""
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(dict(values)))
    return str(file)


def write_captions(folder: Path, name: str, captions: list[str], column: str = "caption") -> Path:
    """Write `folder/captions/<name>.parquet`."""
    file = folder / "captions" / f"{name}.parquet"
    file.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({column: captions}), file)
    return file


def files_below(folder: Path) -> dict[str, int]:
    """Time of the last change of every file, by its path within the folder."""
    return {str(file.relative_to(folder)): file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}


class TestUsageErrors:
    """Exit code 2 before anything is imported that takes long, read or written."""

    @pytest.mark.parametrize(
        ("overrides", "said"),
        [
            (["cluster.fine.center=16"], "override 'cluster.fine.center=16': cluster.fine.center: unknown key"),
            (["cluster.fine.centers=many"], "cluster.fine.centers: input should be a valid integer (given: 'many')"),
            (["cluster.coarse.experts=[2, 32]"], "n=32 but fine.centers is m=16"),
            (["train.experts=3"], "train.experts=3 has no coarse map"),
            (["train.seed_share=1.5"], "train.seed_share: input should be less than or equal to 1 (given: 1.5)"),
            (["cluster"], "expected KEY=VALUE"),
        ],
    )
    def test_an_override_that_cannot_be_is_named(self, tmp_path: Path, overrides: list[str], said: str) -> None:
        config = write_config(tmp_path, settings(tmp_path))
        ended = run_command("run", "--config", config, *overrides)
        assert ended.returncode == USAGE
        assert said in only_line(ended.stderr)
        assert not (tmp_path / "run").exists()

    def test_an_unknown_key_in_the_file_is_named_with_the_file(self, tmp_path: Path) -> None:
        config = write_config(tmp_path, {**settings(tmp_path), "clusters": {"fine": {"centers": 16}}})
        ended = run_command("embed", "--config", config)
        assert ended.returncode == USAGE
        assert only_line(ended.stderr) == f"mode-ray: {config}: clusters: unknown key"

    def test_every_mistake_is_named_at_once(self, tmp_path: Path) -> None:
        config = write_config(tmp_path, {"captions": {"path": "x"}, "train": {"dense_samples": "many"}})
        ended = run_command("run", "--config", config)
        assert ended.returncode == USAGE
        for field in ("run: is required", "captions.path: unknown key", "train.dense_samples: input should be"):
            assert field in ended.stderr
        assert "Traceback" not in ended.stderr

    def test_a_config_file_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        ended = run_command("run", "--config", str(tmp_path / "absent.yaml"))
        assert ended.returncode == USAGE
        assert f"{tmp_path}/absent.yaml: no such config file" in only_line(ended.stderr)

    def test_an_unknown_command_is_answered_with_the_one_that_is_nearest(self) -> None:
        ended = run_command("trian", "--config", "demo")
        assert ended.returncode == USAGE
        assert "No such command 'trian'. Did you mean 'train'" in only_line(ended.stderr)


class TestDataErrors:
    """Exit code 1, with the file and the mend."""

    def test_input_that_is_not_there_is_named_and_nothing_is_written(self, failures: dict[str, "Failure"]) -> None:
        folder, ended = failures["absent"]
        assert ended.returncode == DATA
        assert str(folder / "captions") in only_line(ended.stderr)
        assert not (folder / "run").exists()

    def test_every_unreadable_shard_is_named_and_the_stage_is_not_done(self, failures: dict[str, "Failure"]) -> None:
        folder, ended = failures["unreadable"]
        captions = folder / "captions"
        assert ended.returncode == DATA
        assert "mode-ray: embed: 2 of 3 shards could not be read" in ended.stderr
        assert f"{captions}/corrupt.parquet: not a readable parquet file" in ended.stderr
        assert f"{captions}/other.parquet: no column 'caption'; set captions.caption_field to one of" in ended.stderr
        assert "run again (only they are processed again)" in ended.stderr
        assert "Traceback" not in ended.stderr
        written = files_below(folder / "run")
        good = [name for name in written if name.startswith("embeddings/good-")]
        assert len(good) == 1
        notes = {
            "config.yaml",
            "versions.json",
            "shards.parquet",
            "embeddings/started.json",
            "embeddings/quarantine.json",
        }
        records = [name for name in written if name.startswith("embeddings/records/")]
        assert len(records) == 1
        assert set(written) == {*notes, *good, *records}

    def test_too_few_distinct_captions_are_counted(self, failures: dict[str, "Failure"]) -> None:
        _, ended = failures["few"]
        assert ended.returncode == DATA
        said = only_line(ended.stderr)
        assert "8 distinct embeddings" in said
        assert "lower cluster.fine.centers to at most 8" in said

    def test_the_stage_before_stands_and_the_failed_one_is_not_done(self, failures: dict[str, "Failure"]) -> None:
        folder, _ = failures["few"]
        manifest = json.loads((folder / "run/embeddings/manifest.json").read_text())
        assert manifest["rows_out"] == 40
        assert set(files_below(folder / "run/clusters")) == {"started.json"}
        assert not (folder / "run/assignments").exists()

    def test_another_config_for_the_same_directory_is_refused_by_the_changed_field(
        self, failures: dict[str, "Failure"]
    ) -> None:
        folder, _ = failures["few"]
        before = files_below(folder / "run")
        ended = run_command("run", "--config", str(folder / "config.yaml"), "encoder.max_tokens=32")
        assert ended.returncode == USAGE
        said = only_line(ended.stderr)
        assert "stage embed was begun with another config: encoder.max_tokens was 64, is 32." in said
        assert str(folder / "run/embeddings") in said
        assert files_below(folder / "run") == before


class Failure(NamedTuple):
    """A folder with captions, config and run directory, and how `mode-ray run` ended in it."""

    folder: Path
    ended: "subprocess.CompletedProcess[str]"


@pytest.fixture(scope="module")
def failures(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Failure]:
    """Three runs that cannot succeed, at the same time: each spends most of it on imports.

    They join the session's Ray instead of starting one each.
    """
    folders = {name: tmp_path_factory.mktemp(name) for name in ("absent", "unreadable", "few")}
    corrupt = write_captions(folders["unreadable"], "corrupt", ["a red bus"])
    corrupt.write_bytes(b"PAR1 and then nothing of the kind")
    write_captions(folders["unreadable"], "other", ["a red bus"], column="text")
    write_captions(folders["unreadable"], "good", ["a red bus", "a green tree"])
    write_captions(folders["few"], "few", [f"a picture of {number % 8} things" for number in range(40)])
    address = str(ray.get_runtime_context().gcs_address)

    def fail(folder: Path) -> Failure:
        config = write_config(folder, settings(folder))
        return Failure(folder, run_command("run", "--config", config, "--until", "assign", RAY_ADDRESS=address))

    with ThreadPoolExecutor(len(folders)) as commands:
        return dict(zip(folders, commands.map(fail, folders.values()), strict=True))


def only_line(stderr: str) -> str:
    """The one line that a mistake is answered with; Ray's own log lines, which begin with [date, are not ours."""
    lines = [line for line in stderr.splitlines() if not line.startswith("[20")]
    assert len(lines) == 1, stderr
    assert lines[0].startswith("mode-ray: ")
    return lines[0]
