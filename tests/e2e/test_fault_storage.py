"""Storage that fails: S3 that answers wrongly, late or not at all; a full disk; damaged shards."""

import json
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest
from fault_proxy import Fault, FaultProxy, at_random, fault_proxy, nothing_fails
from fault_runs import (
    Ended,
    Invocation,
    all_counted,
    manifest_of,
    outputs,
    same_rows,
    stage_command,
    temporaries,
    up_to_assign,
    write_captions,
    write_config,
)

from mode_ray.cli import main
from mode_ray.stages.manifest import read_units, unit_outputs
from mode_ray.storage import Location

pytestmark = pytest.mark.drill

SEED = 503
UNITS, CAPTIONS_PER_UNIT = 12, 40
SHARES: dict[Fault, float] = {"500": 0.05, "503": 0.1, "slow": 0.05, "cut": 0.05, "cut after": 0.03, "half": 0.03}
QUARANTINE = "quarantine.json"


@pytest.fixture(scope="module")
def proxy(s3_server: str) -> Iterator[FaultProxy]:
    with fault_proxy(s3_server) as running:
        yield running


@dataclass(frozen=True)
class OnS3:
    """Captions on S3, and how to run over them through the proxy."""

    root: Location
    config: Path
    rows: int
    environment: dict[str, str]

    def run(self, name: str, arguments: list[str]) -> Ended:
        """Run a command through the proxy."""
        return Invocation(arguments, self.config.parent / f"{name}.log", self.environment).ended()


@pytest.fixture(scope="module")
def on_s3(proxy: FaultProxy, tmp_path_factory: pytest.TempPathFactory) -> OnS3:
    bucket = f"mode-ray-{secrets.token_hex(4)}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    root = Location(f"s3://{bucket}")
    rows = write_captions(root / "captions", UNITS, CAPTIONS_PER_UNIT)
    pool = {"max_actors": 2, "retries_per_unit": 1}
    config = write_config(
        tmp_path_factory.mktemp("s3") / "config.yaml",
        root / "captions",
        embed={"pool": pool},
        assign={"pool": pool},
        ray={"num_cpus": 2, "object_store_bytes": 200_000_000},
    )
    return OnS3(root, config, rows, {"AWS_ENDPOINT_URL": proxy.endpoint})


def test_a_run_ends_right_over_an_s3_that_fails_every_third_request(on_s3: OnS3, proxy: FaultProxy) -> None:
    undisturbed, run = on_s3.root / "undisturbed", on_s3.root / "run"
    proxy.schedule = nothing_fails
    ended = on_s3.run("undisturbed", up_to_assign(on_s3.config, undisturbed))
    assert ended.exit_code == 0, ended.printed
    proxy.schedule = at_random(SEED, SHARES)
    try:
        ended = on_s3.run("run", up_to_assign(on_s3.config, run))
    finally:
        proxy.schedule = nothing_fails
    assert ended.exit_code == 0, ended.printed
    assert min(proxy.met[fault] for fault in SHARES) > 0, f"not every fault was met: {proxy.met}"
    for stage in ("embed", "assign"):
        assert same_rows(run, undisturbed, stage)
        assert manifest_of(run, stage).content_hash == manifest_of(undisturbed, stage).content_hash
    assert all_counted(manifest_of(run, "embed"), on_s3.rows)
    assert all_counted(manifest_of(run, "assign"), manifest_of(run, "embed").rows_out)


class TestRequestsThatKeepFailing:
    def test_a_shard_is_quarantined_with_its_reason_and_done_alone_after_the_mend(
        self, on_s3: OnS3, proxy: FaultProxy
    ) -> None:
        run, failing = on_s3.root / "read", on_s3.root / "captions/0007.parquet"

        def schedule(method: str, path: str, earlier: int) -> Fault | None:
            return "500" if path.endswith("/captions/0007.parquet") else None

        proxy.schedule = schedule
        try:
            ended = on_s3.run("read", stage_command("embed", on_s3.config, run))
        finally:
            proxy.schedule = nothing_fails
        assert ended.exit_code == 1
        assert f"1 of {UNITS} shards could not be read" in ended.printed
        quarantined = json.loads((run / "embeddings" / QUARANTINE).read_text())
        assert list(quarantined) == [failing.uri]
        assert "I/O error after 1 retries" in quarantined[failing.uri]
        stood = {file.uri: file.read_bytes() for file in unit_outputs(run / "embeddings")}
        assert len(stood) == UNITS - 1

        ended = on_s3.run("read-again", stage_command("embed", on_s3.config, run))
        assert ended.exit_code == 0, ended.printed
        assert {uri: Location(uri).read_bytes() for uri in stood} == stood
        units = read_units(run / "embeddings")
        assert len({unit.attempt for unit in units if unit.source != failing.uri}) == 1
        assert all_counted(units, on_s3.rows)

    def test_an_output_that_cannot_be_written_ends_the_stage_and_not_the_shard(
        self, on_s3: OnS3, proxy: FaultProxy
    ) -> None:
        run = on_s3.root / "write"

        def schedule(method: str, path: str, earlier: int) -> Fault | None:
            return "503" if method in ("PUT", "POST") and "/embeddings/0007-" in path else None

        proxy.schedule = schedule
        try:
            ended = on_s3.run("write", stage_command("embed", on_s3.config, run))
        finally:
            proxy.schedule = nothing_fails
        assert ended.exit_code == 1
        assert f"mode-ray: {run}/embeddings/0007-" in ended.printed
        assert "cannot be written" in ended.printed
        assert "Traceback" not in ended.printed
        assert not (run / "embeddings" / QUARANTINE).exists()

        ended = on_s3.run("write-again", stage_command("embed", on_s3.config, run))
        assert ended.exit_code == 0, ended.printed
        assert all_counted(manifest_of(run, "embed"), on_s3.rows)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        run_as_root("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder))
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no right to mount a small filesystem: {error}")
    yield folder
    run_as_root("umount", "--lazy", str(folder))


def run_as_root(program: str, *arguments: str) -> None:
    """Run a program of the system; it fails where its rights do not suffice."""
    subprocess.run([shutil.which(program) or program, *arguments], check=True, capture_output=True)


@pytest.mark.usefixtures("ray_session")
class TestAFullDisk:
    def test_the_stage_ends_in_one_sentence_and_goes_on_when_there_is_space(
        self, small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        captions, run = Location(str(tmp_path / "captions")), small_disk / "run"
        rows = write_captions(captions, 40, 100)
        config = write_config(tmp_path / "config.yaml", captions, embed={"pool": {"retries_per_unit": 1}})
        arguments = stage_command("embed", config, Location(str(run)))[1:]
        assert main(arguments) == 1
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mode-ray:")]
        assert len(said) == 1
        assert f"no space left on {run}/embeddings" in said[0]
        assert "free space and run again" in said[0]
        assert temporaries(run) == []
        assert not (run / "embeddings" / QUARANTINE).exists()
        stood = outputs(run, "embed")
        assert 0 < len(stood) < 40

        run_as_root("mount", "-o", "remount,size=32m", str(small_disk))
        assert main(arguments) == 0
        now = outputs(run, "embed")
        assert {unit: now[unit] for unit in stood} == stood
        assert all_counted(manifest_of(Location(str(run)), "embed"), rows)


@pytest.mark.usefixtures("ray_session")
class TestDamagedShards:
    def test_they_are_quarantined_with_their_reasons_and_done_alone_after_the_mend(self, tmp_path: Path) -> None:
        captions, run = Location(str(tmp_path / "captions")), tmp_path / "run"
        rows = write_captions(captions, 12, 100)
        config = write_config(tmp_path / "config.yaml", captions)
        arguments = stage_command("embed", config, Location(str(run)))[1:]
        flipped, truncated = (Path(captions.path, name) for name in ("0003.parquet", "0008.parquet"))
        whole = {file: file.read_bytes() for file in (flipped, truncated)}
        middle = len(whole[flipped]) // 3
        broken = bytes(byte ^ 0xFF for byte in whole[flipped][middle : middle + 200])
        flipped.write_bytes(whole[flipped][:middle] + broken + whole[flipped][middle + 200 :])
        truncated.write_bytes(whole[truncated][: len(whole[truncated]) // 2])

        assert main(arguments) == 1
        quarantined = json.loads((run / "embeddings" / QUARANTINE).read_text())
        assert sorted(quarantined) == sorted(map(str, whole))
        assert all(reason.startswith(source) and len(reason) > len(source) for source, reason in quarantined.items())
        stood = outputs(run, "embed")
        assert len(stood) == 10

        for file, content in whole.items():
            file.write_bytes(content)
        assert main(arguments) == 0
        now = outputs(run, "embed")
        assert {unit: now[unit] for unit in stood} == stood
        assert len(now) == 12
        manifest = manifest_of(Location(str(run)), "embed")
        assert manifest.quarantined == {}
        assert all_counted(manifest, rows)
        assert not (run / "embeddings" / QUARANTINE).exists()
