"""The command line around Ray Serve: the file of a run, and mistakes told in one sentence."""

import socket
from pathlib import Path

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema
from tiny_run import build_run

from mode_ray.cli import main
from mode_ray.config.run import RayConfig, RunConfig
from mode_ray.config.serve import ServeConfig
from mode_ray.errors import UsageError
from mode_ray.serve.ray.deployment_file import serve_document
from mode_ray.serve.ray.local_cluster import local_serving


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return build_run(tmp_path_factory.mktemp("run"), 2, {"max_batch_size": 8})


class TestConfig:
    def test_it_writes_the_runs_experts_and_settings(
        self, config: RunConfig, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["serve", "config", config.run, "serve.router_replicas.max=3"]) == 0
        document = yaml.safe_load(capsys.readouterr().out)
        ServeDeploySchema.model_validate(document)
        names = [application["name"] for application in document["applications"]]
        assert names == ["expert-0", "expert-1", "router"]
        for application in document["applications"]:
            assert application["args"]["run"] == config.directory.uri
            assert application["args"]["settings"] == {"max_batch_size": 8}
        assert document["applications"][-1]["deployments"][0]["autoscaling_config"]["max_replicas"] == 3

    def test_a_port_left_open_is_refused(self, config: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["serve", "config", config.run, "serve.port=0"]) == 2
        assert "serve.port=0" in capsys.readouterr().err


class TestMistakes:
    def test_no_cluster_is_named(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("RAY_DASHBOARD_ADDRESS", raising=False)
        assert main(["serve", "add", "3"]) == 2
        assert "--address is missing: give the dashboard's URL" in capsys.readouterr().err

    def test_nothing_listens_at_the_address(self, capsys: pytest.CaptureFixture[str]) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        assert main(["serve", "remove", "3", "--address", f"http://127.0.0.1:{port}"]) == 2
        said = capsys.readouterr().err
        assert f"no Ray dashboard at http://127.0.0.1:{port}" in said
        assert "Traceback" not in said

    def test_a_port_in_use_is_named_before_ray_starts(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            document = serve_document(str(tmp_path), [0], ServeConfig(port=port))
            with (
                pytest.raises(UsageError, match=f"cannot listen on 127.0.0.1:{port}.*--port"),
                local_serving(document, RayConfig(), lambda _: None),
            ):
                pass

    def test_a_cluster_is_not_served_on_by_accident(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
        document = serve_document(str(tmp_path), [0], ServeConfig())
        with (
            pytest.raises(UsageError, match="on this machine only"),
            local_serving(document, RayConfig(), lambda _: None),
        ):
            pass
