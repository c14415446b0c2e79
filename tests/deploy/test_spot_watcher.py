"""The notices of both clouds are read from their metadata servers, and Ray's node of this machine is found."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from metadata_server import MetadataServer, metadata_server

from mode_ray.deploy.spot_watcher import Notice, RayNode, ec2_notice, gce_notice, local_ray_nodes, watch


@pytest.fixture
def server() -> Iterator[MetadataServer]:
    with metadata_server() as running:
        yield running


def test_ec2_announces_the_time_of_the_end(server: MetadataServer) -> None:
    eight_oclock = 1_795_939_200.0  # 2026-11-29T08:00:00Z
    assert ec2_notice(server.url) is None
    server.end_unix_seconds = eight_oclock + 120
    assert ec2_notice(server.url, lambda: eight_oclock) == Notice(120.0)


def test_compute_engine_says_true(server: MetadataServer) -> None:
    assert gce_notice(server.url) is None
    server.end_unix_seconds = 1.8e9
    assert gce_notice(server.url) == Notice(30.0)


def test_a_server_that_does_not_answer_is_an_error_and_no_notice() -> None:
    with pytest.raises(OSError, match="refused"):
        ec2_notice("http://127.0.0.1:9")


def test_the_raylets_command_line_names_node_and_cluster(tmp_path: Path) -> None:
    lines = {
        "17": ["/opt/venv/ray/core/src/ray/raylet/raylet", "--node_id=ab12", "--gcs-address=10.0.0.1:6379", "--x"],
        "18": ["python", "-m", "something", "--node_id=ff"],
        "self": ["raylet"],
    }
    for name, words in lines.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "cmdline").write_bytes(b"\0".join(word.encode() for word in words))
    assert local_ray_nodes(tmp_path) == [RayNode(17, "ab12", "10.0.0.1:6379")]


class TestWatching:
    NODE = RayNode(17, "ab12", "10.0.0.1:6379")

    def test_it_ends_with_ray(self, capsys: pytest.CaptureFixture[str]) -> None:
        found = [[], [self.NODE], [self.NODE], []]
        assert watch(lambda: None, lambda: found.pop(0), 5.0, lambda _: None) == 0
        assert "Ray does not run on this machine" in capsys.readouterr().err

    def test_a_metadata_server_that_fails_is_asked_again(self, capsys: pytest.CaptureFixture[str]) -> None:
        found = [[self.NODE]] * 3 + [[]]

        def failing() -> Notice | None:
            raise OSError("timed out")

        assert watch(failing, lambda: found.pop(0), 5.0, lambda _: None) == 0
        assert capsys.readouterr().err.count("will try again: timed out") == 3
