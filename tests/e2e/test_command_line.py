"""The installed `mode-ray` command and a user's mistakes: the exit code, one clear message, nothing half-written."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import yaml

USAGE, DATA = 2, 1
COMMAND = Path(sys.executable).with_name("mode-ray")
DEADLINE_SECONDS = 90.0


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
            (["run=ftp://host/run"], "unknown scheme 'ftp'"),
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

    def test_an_unknown_command_is_answered_with_the_known_ones(self) -> None:
        ended = run_command("trian", "--config", "demo")
        assert ended.returncode == USAGE
        assert "invalid choice: 'trian'" in ended.stderr
        assert "'train'" in ended.stderr
        assert "Traceback" not in ended.stderr

    def test_the_status_of_no_run_is_an_error(self, tmp_path: Path) -> None:
        ended = run_command("status", str(tmp_path))
        assert ended.returncode == USAGE
        assert f"{tmp_path}: no run here" in only_line(ended.stderr)


class TestDataErrors:
    """Exit code 1, with the file and the mend."""

    def test_input_that_is_not_there_is_named_and_nothing_is_written(self, tmp_path: Path) -> None:
        config = write_config(tmp_path, settings(tmp_path))
        ended = run_command("run", "--config", config)
        assert ended.returncode == DATA
        assert str(tmp_path / "captions") in only_line(ended.stderr)
        assert not (tmp_path / "run").exists()

    def test_every_unreadable_shard_is_named_and_the_stage_is_not_done(self, tmp_path: Path, address: str) -> None:
        corrupt = write_captions(tmp_path, "corrupt", ["a red bus"])
        corrupt.write_bytes(b"PAR1 and then nothing of the kind")
        other = write_captions(tmp_path, "other-column", ["a red bus"], column="text")
        write_captions(tmp_path, "good", ["a red bus", "a green tree"])
        ended = run_command("run", "--config", write_config(tmp_path, settings(tmp_path)), RAY_ADDRESS=address)
        assert ended.returncode == DATA
        assert "embed: 2 of 3 shards could not be read" in ended.stderr
        assert f"{corrupt}: not a readable parquet file" in ended.stderr
        assert f"{other}: no column 'caption'; set captions.caption_field to one of ['text']" in ended.stderr
        assert "run again (only they are done again)" in ended.stderr
        assert "Traceback" not in ended.stderr
        left = [name for name in files_below(tmp_path / "run") if name.startswith("embeddings/good-")]
        assert len(left) == 1
        assert set(files_below(tmp_path / "run")) == {
            "config.yaml",
            "versions.json",
            "embeddings/started.json",
            "embeddings/quarantine.json",
            *left,
        }


class TestARunThatFailedHalfWay:
    """40 captions, 8 of them distinct, for 16 centers: embed is done, cluster cannot be."""

    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("few-captions")
        write_captions(folder, "few", [f"a picture of {number % 8} things" for number in range(40)])
        return folder

    @pytest.fixture(scope="class")
    def failed(self, folder: Path, address: str) -> "subprocess.CompletedProcess[str]":
        return run_command("run", "--config", write_config(folder, settings(folder)), RAY_ADDRESS=address)

    def test_too_few_distinct_captions_are_counted(self, failed: "subprocess.CompletedProcess[str]") -> None:
        assert failed.returncode == DATA
        said = only_line(failed.stderr)
        assert "8 distinct" in said
        assert "16" in said

    def test_the_stage_before_stands_and_the_failed_one_is_not_done(
        self, failed: "subprocess.CompletedProcess[str]", folder: Path
    ) -> None:
        manifest = json.loads((folder / "run/embeddings/manifest.json").read_text())
        assert manifest["rows_out"] == 40
        assert set(files_below(folder / "run/clusters")) == {"started.json"}
        assert not (folder / "run/assignments").exists()

    def test_another_config_for_the_same_directory_is_refused_by_the_changed_field(
        self, failed: "subprocess.CompletedProcess[str]", folder: Path
    ) -> None:
        before = files_below(folder / "run")
        ended = run_command("run", "--config", str(folder / "config.yaml"), "encoder.max_tokens=32")
        assert ended.returncode == USAGE
        said = only_line(ended.stderr)
        assert "stage embed was begun with another config: encoder.max_tokens was 64, is 32." in said
        assert str(folder / "run/embeddings") in said
        assert files_below(folder / "run") == before


def only_line(stderr: str) -> str:
    """The one line that a mistake is answered with."""
    lines = stderr.splitlines()
    assert len(lines) == 1, stderr
    assert lines[0].startswith("mode-ray: ")
    return lines[0]


@pytest.fixture(scope="module")
def address(ray_session: None) -> str:
    """The session's Ray, for commands to join instead of starting one each."""
    return str(ray.get_runtime_context().gcs_address)
