"""Deployment files: those that are written, and the one in the repository."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from ray.serve.schema import ServeDeploySchema

from mode_ray.config.run import RunConfig
from mode_ray.config.serve import Replicas, ServeConfig
from mode_ray.serve.applications import expert_options, router_options
from mode_ray.serve.ray.application_list import Held, served_experts
from mode_ray.serve.ray.deployment_file import as_yaml, needed_cpus, ray_settings, serve_document
from mode_ray.serve.ray.deployments import ExpertArguments, RouterArguments, RouterSettings

RUN = "s3://my-bucket/mode/run1"
COMMITTED = Path(__file__).resolve().parents[3] / "cluster_configs" / "serve.yaml"


def deployments(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {application["name"]: application["deployments"][0] for application in document["applications"]}


def require_valid(document: dict[str, Any]) -> None:
    """Ray takes the list, and our applications take what is in it."""
    schema = ServeDeploySchema.model_validate(document)
    experts = {}
    for application in schema.applications:
        if application.import_path.endswith(":expert"):
            for number in ExpertArguments.model_validate(application.args).numbers:
                experts[number] = application.name
    router = next(application for application in schema.applications if application.import_path.endswith(":router"))
    RouterArguments.model_validate(router.args)
    served = RouterSettings.model_validate(router.deployments[0].user_config).experts
    assert {entry.id: entry.application for entry in served} == experts


class TestWritten:
    def test_it_is_valid_and_round_trips_through_yaml(self) -> None:
        document = serve_document(RUN, [0, 2, 3], ServeConfig(max_batch_size=8))
        require_valid(document)
        assert yaml.safe_load(as_yaml(document)) == document

    def test_it_binds_to_loopback_and_logs_no_requests(self) -> None:
        document = serve_document(RUN, [0], ServeConfig())
        assert document["http_options"]["host"] == "127.0.0.1"
        assert document["logging_config"] == {"enable_access_log": False}

    def test_applications_get_what_differs_from_the_defaults(self) -> None:
        settings = ServeConfig(max_batch_size=8, port=9000)
        document = serve_document(RUN, [0], settings)
        for application in document["applications"]:
            assert application["args"]["settings"] == {"max_batch_size": 8}
        arguments = RouterArguments.model_validate(document["applications"][-1]["args"])
        assert arguments.settings.max_batch_size == 8
        assert document["http_options"]["port"] == 9000

    def test_replicas_are_fixed_or_follow_the_load(self) -> None:
        settings = ServeConfig(expert_replicas=Replicas(min=1, max=4), router_replicas=Replicas(min=2, max=2))
        by_name = deployments(serve_document(RUN, [0], settings))
        assert by_name["expert-0"]["autoscaling_config"]["max_replicas"] == 4
        assert by_name["router"]["num_replicas"] == 2

    def test_the_cpus_of_the_fewest_replicas_are_added_up(self) -> None:
        settings = ServeConfig(
            cpus_per_expert=0.5,
            router_cpus=1.0,
            expert_replicas=Replicas(min=2, max=4),
            router_replicas=Replicas(min=2, max=2),
        )
        assert needed_cpus(serve_document(RUN, [0, 1], settings)) == 2 * 2 * 0.5 + 2 * 1.0


class TestSeveralExpertsOfOneReplica:
    @pytest.mark.parametrize("most", [3, 4])
    def test_all_experts_are_one_application(self, most: int) -> None:
        document = serve_document(RUN, [0, 2, 3], ServeConfig(experts_per_replica=most))
        require_valid(document)
        assert deployments(document).keys() == {"experts", "router"}
        assert document["applications"][0]["args"] == {"run": RUN, "experts": [0, 2, 3]}

    def test_so_many_form_an_application_and_what_is_left_the_last_one(self) -> None:
        document = serve_document(RUN, [0, 2, 3, 5, 6], ServeConfig(experts_per_replica=2))
        require_valid(document)
        arguments = {entry["name"]: entry["args"] for entry in document["applications"][:-1]}
        assert arguments == {
            "experts-0-2": {"run": RUN, "experts": [0, 2]},
            "experts-3-5": {"run": RUN, "experts": [3, 5]},
            "expert-6": {"run": RUN, "expert": 6},
        }
        assert served_experts(document, "router") == {
            0: Held("experts-0-2", 0),
            2: Held("experts-0-2", 2),
            3: Held("experts-3-5", 3),
            5: Held("experts-3-5", 5),
            6: Held("expert-6"),
        }

    @pytest.mark.parametrize(
        ("lock", "asked", "of_one_replica"),
        [("none", None, 1), ("all", None, 4), ("all", 1, 1), ("none", 4, 4), ("all", 2, 2)],
    )
    def test_all_are_the_default_where_image_trunks_are_locked(
        self, lock: str, asked: int | None, of_one_replica: int
    ) -> None:
        config = RunConfig.model_validate(
            {
                "run": RUN,
                "captions": {"paths": ["a.tar"]},
                "train": {"model": {"lock": {"image": lock}}},
                "serve": {"experts_per_replica": asked},
            }
        )
        assert ray_settings(config, 4).experts_per_replica == of_one_replica

    @pytest.mark.parametrize(
        "arguments", [{}, {"expert": 0, "experts": [1]}, {"experts": [0, 1], "folder": "/models/a"}]
    )
    def test_an_application_has_one_expert_or_several(self, arguments: dict[str, object]) -> None:
        with pytest.raises(ValidationError, match=r"either expert.* or experts|folder is for a single expert"):
            ExpertArguments.model_validate({"run": RUN, **arguments})


class TestCommitted:
    @pytest.fixture
    def document(self) -> dict[str, Any]:
        loaded: dict[str, Any] = yaml.safe_load(COMMITTED.read_text())
        return loaded

    def test_it_is_valid(self, document: dict[str, Any]) -> None:
        require_valid(document)

    def test_one_place_is_to_be_edited(self, document: dict[str, Any]) -> None:
        edited = yaml.safe_load(COMMITTED.read_text().replace(document["run"], "/shared/my-run"))
        assert {application["args"]["run"] for application in edited["applications"]} == {"/shared/my-run"}
        assert COMMITTED.read_text().count(document["run"]) == 1

    def test_it_is_what_would_be_written_but_for_the_scaling(self, document: dict[str, Any]) -> None:
        written = serve_document(
            document.pop("run"), [0, 1, 2, 3], ServeConfig(expert_replicas=Replicas(min=1, max=4))
        )
        assert document == written


class TestOptions:
    def test_queues_are_bounded_and_refusals_say_when_to_come_again(self) -> None:
        settings = ServeConfig(max_queued_requests=10, max_batch_size=4)
        for options in (expert_options(settings), router_options(settings)):
            assert options["max_queued_requests"] == 10
            assert options["backpressure_config"] == {"status_code": 503, "retry_after_s": 1.0}

    def test_the_router_refuses_by_itself_before_the_proxy_does(self) -> None:
        settings = ServeConfig(max_queued_requests=10)
        assert router_options(settings)["max_ongoing_requests"] > settings.max_queued_requests
