"""Edits of a live list of applications: what is submitted, in which order, and what is refused."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray.serve.schema import ServeDeploySchema
from tiny_run import build_run, expert_folder, grow_run, save_expert

from mode_ray.config.run import RunConfig
from mode_ray.config.serve import ServeConfig
from mode_ray.errors import DataError, UsageError
from mode_ray.serve.ray.application_list import find_router, live_document, served_experts, served_run
from mode_ray.serve.ray.deployment_file import serve_document
from mode_ray.serve.ray.live import LiveServing
from mode_ray.serve.service.served_run import ServedRun
from mode_ray.storage import Location

RUN = "/only/on/the/nodes/run1"
WAITS = "Deployment 'Expert' has 1 replicas\nthat wait for {'CPU': 1.0}."
SETTINGS = ServeConfig(request_deadline_seconds=0.02, expert_deadline_seconds=0.01)


class Cluster:
    """What Ray's REST interface does with lists, without a cluster: everything starts at once, or never."""

    def __init__(
        self,
        document: dict[str, Any],
        never_starts: tuple[str, ...] = (),
        waits: tuple[str, ...] = (),
        message: str = WAITS,
    ) -> None:
        self.submitted: list[dict[str, Any]] = []
        self.fails_with: str | None = None  # the run that a router cannot read
        self._never_starts = never_starts
        self._waits = waits
        self._message = message
        self._live: dict[str, Any] = {}
        self.deploy_applications(document)
        self.submitted.clear()

    def deploy_applications(self, config: dict[str, Any]) -> None:
        ServeDeploySchema.model_validate(config)
        self.submitted.append(copy.deepcopy(config))
        self._live = copy.deepcopy(config)

    def get_serve_details(self) -> dict[str, Any]:
        live = {
            application["name"]: {
                "name": application["name"],
                "status": self._status(application["name"]),
                "message": "Traceback …\n  mode_ray.errors.DataError: /models/broken: no open_clip_config.json\n",
                "deployments": {"Expert": {"message": self._message}} if application["name"] in self._waits else {},
                "deployed_app_config": copy.deepcopy(application),
            }
            for application in self._live["applications"]
        }
        return {"http_options": self._live["http_options"], "proxy_location": "EveryNode", "applications": live}

    def _status(self, name: str) -> str:
        if name in self._never_starts or (name == "router" and self.fails_with == served_run(self._live, "router")):
            return "DEPLOY_FAILED"
        return "DEPLOYING" if name in self._waits else "RUNNING"

    @property
    def names(self) -> list[set[str]]:
        """The applications of every submitted list."""
        return [{application["name"] for application in document["applications"]} for document in self.submitted]

    @property
    def served(self) -> list[dict[int, str]]:
        """The router's experts in every submitted list."""
        return [
            {expert: held.application for expert, held in served_experts(document, "router").items()}
            for document in self.submitted
        ]


@pytest.fixture
def cluster() -> Cluster:
    return Cluster(serve_document(RUN, [0, 1, 2], SETTINGS))


def ignore(_line: str) -> None:
    """Nobody reads the lines."""


ALL = {"expert-0", "expert-1", "expert-2", "router"}


class TestAdd:
    def test_the_expert_runs_before_the_router_is_told(self, cluster: Cluster) -> None:
        LiveServing(cluster, ignore).add([3])
        assert cluster.names == [ALL | {"expert-3"}] * 2
        assert [sorted(served) for served in cluster.served] == [[0, 1, 2], [0, 1, 2, 3]]

    def test_the_new_one_is_like_the_others_but_for_its_model(self, cluster: Cluster) -> None:
        LiveServing(cluster, ignore).add([3], "/models/three")
        new = cluster.submitted[-1]["applications"][-1]
        other = cluster.submitted[-1]["applications"][0]
        assert new["args"] == other["args"] | {"expert": 3, "folder": "/models/three"}
        assert new["deployments"] == other["deployments"]

    def test_one_that_does_not_start_leaves_everything_as_it_was(self) -> None:
        before = serve_document(RUN, [0, 1, 2], SETTINGS)
        cluster = Cluster(before, never_starts=("expert-3",))
        with pytest.raises(DataError, match=r"expert-3 does not start: .*no open_clip_config.json"):
            LiveServing(cluster, ignore).add([3])
        assert cluster.submitted[-1]["applications"] == before["applications"]

    def test_one_that_is_there_is_refused(self, cluster: Cluster) -> None:
        with pytest.raises(UsageError, match="served already: mode-ray serve replace 2"):
            LiveServing(cluster, ignore).add([2])
        assert not cluster.submitted

    @pytest.mark.parametrize(("expert", "says"), [(9, "there is no expert 9: the run has 3, from 0 to 2"), (-1, "-1")])
    def test_one_that_the_run_does_not_have_is_refused_before_anything_starts(
        self, served_folder: Path, expert: int, says: str
    ) -> None:
        cluster = Cluster(serve_document(str(served_folder), [0, 1], SETTINGS))
        with pytest.raises(UsageError, match=says):
            LiveServing(cluster, ignore).add([expert])
        assert not cluster.submitted

    def test_a_model_that_is_missing_is_named_before_anything_starts(
        self, served_folder: Path, tmp_path: Path
    ) -> None:
        cluster = Cluster(serve_document(str(served_folder), [0, 1], SETTINGS))
        folder = str(tmp_path / "nowhere")
        with pytest.raises(DataError, match=r"nowhere/open_clip_config.json: missing: nothing is changed"):
            LiveServing(cluster, ignore).add([2], folder)
        with pytest.raises(DataError, match=r"nowhere/open_clip_config.json: missing: nothing is changed"):
            LiveServing(cluster, ignore).replace(1, folder)
        assert not cluster.submitted


class TestAddOfAGrownRun:
    """A run that took over the live experts and trained one more, which the router of the old run cannot weigh."""

    @pytest.fixture
    def before(self, tmp_path: Path) -> RunConfig:
        return build_run(tmp_path / "before", 3, {"request_deadline_seconds": 0.02, "expert_deadline_seconds": 0.01})

    @pytest.fixture
    def cluster(self, before: RunConfig) -> Cluster:
        return Cluster(serve_document(before.run, [0, 1, 2], SETTINGS))

    def grown(self, before: RunConfig, folder: Path, **elsewhere: Location) -> ServedRun:
        others = {int(name.removeprefix("expert_")): place for name, place in elsewhere.items()}
        return ServedRun.load(grow_run(before, folder, others, ["a cloud"]).directory)

    def test_live_experts_stay_and_the_router_changes_to_the_run_at_once(
        self, cluster: Cluster, before: RunConfig, tmp_path: Path
    ) -> None:
        grown = self.grown(before, tmp_path / "grown")
        LiveServing(cluster, ignore).add([3], grown=grown)
        assert cluster.names == [ALL | {"expert-3"}] * 2
        assert [served_run(document, "router") for document in cluster.submitted] == [before.run, grown.run.uri]
        assert cluster.served == [
            {0: "expert-0", 1: "expert-1", 2: "expert-2"},
            {0: "expert-0", 1: "expert-1", 2: "expert-2", 3: "expert-3"},
        ]
        assert cluster.submitted[-1]["applications"][-1]["args"]["run"] == grown.run.uri

    def test_a_run_that_grew_twice_knows_its_first_experts_again(
        self, cluster: Cluster, before: RunConfig, tmp_path: Path
    ) -> None:
        once = grow_run(before, tmp_path / "once", {}, ["a cloud"])
        models = {expert: expert_folder(once, expert) for expert in range(3)}
        LiveServing(cluster, ignore).add(
            [3], grown=ServedRun.load(grow_run(before, tmp_path / "twice", models, ["a cloud"]).directory)
        )
        assert cluster.names[-1] == ALL | {"expert-3"}

    def test_an_expert_that_it_trained_anew_has_to_be_named_and_takes_the_place_of_the_live_one(
        self, cluster: Cluster, before: RunConfig, tmp_path: Path
    ) -> None:
        other = Location.parse(str(tmp_path / "other"))
        save_expert(other, seed=9)
        grown = self.grown(before, tmp_path / "grown", expert_1=other)
        with pytest.raises(UsageError, match=r"has no expert 9: its experts are 0 to \d+$"):
            LiveServing(cluster, ignore).add([9], grown=grown)
        with pytest.raises(UsageError, match=r"expert 1 would be missing.*add 1 … --run"):
            LiveServing(cluster, ignore).add([3], grown=grown)
        assert not cluster.submitted
        LiveServing(cluster, ignore).add([3, 1], grown=grown)
        assert cluster.served[1] == {0: "expert-0", 1: "expert-1-2", 2: "expert-2", 3: "expert-3"}
        assert cluster.names[-1] == {"expert-0", "expert-1-2", "expert-2", "expert-3", "router"}

    def test_where_the_routers_cannot_go_over_everything_is_as_before(
        self, cluster: Cluster, before: RunConfig, tmp_path: Path
    ) -> None:
        was = cluster.get_serve_details()["applications"]
        cluster.fails_with = self.grown(before, tmp_path / "grown").run.uri
        with pytest.raises(DataError, match="application router does not start"):
            LiveServing(cluster, ignore).add([3], grown=ServedRun.load(Location.parse(cluster.fails_with)))
        now = cluster.submitted[-1]
        assert served_run(now, "router") == before.run
        assert {entry["name"] for entry in now["applications"]} == was.keys()

    def test_a_later_replacement_keeps_the_experts_number_in_its_own_run(
        self, cluster: Cluster, before: RunConfig, tmp_path: Path
    ) -> None:
        serving = LiveServing(cluster, ignore)
        serving.add([3], grown=self.grown(before, tmp_path / "grown"))
        serving.replace(0)
        new = next(entry for entry in cluster.submitted[-1]["applications"] if entry["name"] == "expert-0-2")
        assert (new["args"]["run"], new["args"]["expert"]) == (before.run, 0)


class TestRemove:
    def test_the_router_stops_asking_before_the_application_goes(self, cluster: Cluster) -> None:
        LiveServing(cluster, ignore).remove(1)
        assert cluster.names == [ALL, ALL - {"expert-1"}]
        assert [sorted(served) for served in cluster.served] == [[0, 2], [0, 2]]

    def test_the_last_one_stays(self) -> None:
        cluster = Cluster(serve_document(RUN, [2], SETTINGS))
        with pytest.raises(UsageError, match="the only one"):
            LiveServing(cluster, ignore).remove(2)

    def test_one_that_is_not_there_is_refused_with_those_that_are(self, cluster: Cluster) -> None:
        with pytest.raises(UsageError, match=r"expert 7 is not served: the live experts are \[0, 1, 2\]"):
            LiveServing(cluster, ignore).remove(7)


class TestReplace:
    def test_both_run_while_the_router_changes_over(self, cluster: Cluster) -> None:
        LiveServing(cluster, ignore).replace(1, "/models/better")
        assert cluster.names == [ALL | {"expert-1-2"}] * 2 + [ALL - {"expert-1"} | {"expert-1-2"}]
        assert [served[1] for served in cluster.served] == ["expert-1", "expert-1-2", "expert-1-2"]

    def test_again_it_takes_the_free_name(self, cluster: Cluster) -> None:
        serving = LiveServing(cluster, ignore)
        serving.replace(1, "/models/better")
        serving.replace(1)
        assert cluster.served[-1][1] == "expert-1"
        kept = next(entry for entry in cluster.submitted[-1]["applications"] if entry["name"] == "expert-1")
        assert kept["args"]["folder"] == "/models/better", "the folder it was loaded from, read again"


class TestExpertsInOneApplication:
    @pytest.fixture
    def cluster(self) -> Cluster:
        return Cluster(serve_document(RUN, [0, 1, 2], SETTINGS.model_copy(update={"experts_per_replica": 3})))

    def test_a_replaced_expert_gets_an_application_of_its_own_and_the_others_stay(self, cluster: Cluster) -> None:
        LiveServing(cluster, ignore).replace(1, "/models/better")
        assert cluster.names == [{"experts", "expert-1", "router"}] * 2
        assert cluster.served[-1] == {0: "experts", 1: "expert-1", 2: "experts"}
        new = cluster.submitted[-1]["applications"][-1]["args"]
        assert (new["expert"], new["folder"], "experts" in new) == (1, "/models/better", False)

    def test_a_removed_one_comes_back_without_a_start(self, cluster: Cluster) -> None:
        serving = LiveServing(cluster, ignore)
        serving.remove(2)
        assert cluster.served[-1] == {0: "experts", 1: "experts"}
        serving.add([2])
        assert cluster.served[-1] == {0: "experts", 1: "experts", 2: "experts"}
        assert cluster.names[-1] == {"experts", "router"}

    def test_a_new_one_gets_an_application_of_its_own(self, cluster: Cluster) -> None:
        LiveServing(cluster, ignore).add([3])
        assert cluster.served[-1] == {0: "experts", 1: "experts", 2: "experts", 3: "expert-3"}

    def test_the_application_ends_with_its_last_expert(self, cluster: Cluster) -> None:
        serving = LiveServing(cluster, ignore)
        for expert in range(3):
            serving.replace(expert, "/models/better")
        assert cluster.names[-1] == {"expert-0", "expert-1", "expert-2", "router"}

    def test_a_run_that_grew_keeps_them(self, tmp_path: Path) -> None:
        before = build_run(tmp_path / "before", 3, {"request_deadline_seconds": 0.02, "expert_deadline_seconds": 0.01})
        settings = SETTINGS.model_copy(update={"experts_per_replica": 3})
        cluster = Cluster(serve_document(before.run, [0, 1, 2], settings))
        grown = ServedRun.load(grow_run(before, tmp_path / "grown", {}, ["a cloud"]).directory)
        LiveServing(cluster, ignore).add([3], grown=grown)
        assert cluster.served[-1] == {0: "experts", 1: "experts", 2: "experts", 3: "expert-3"}
        assert served_run(cluster.submitted[-1], "router") == grown.run.uri


class TestSeveralApplicationsOfSeveralExperts:
    @pytest.fixture
    def cluster(self) -> Cluster:
        return Cluster(serve_document(RUN, range(4), SETTINGS.model_copy(update={"experts_per_replica": 2})))

    def test_a_replaced_expert_leaves_its_application_and_the_others_stay(self, cluster: Cluster) -> None:
        LiveServing(cluster, ignore).replace(1, "/models/better")
        assert cluster.served[-1] == {0: "experts-0-1", 1: "expert-1", 2: "experts-2-3", 3: "experts-2-3"}

    def test_an_application_ends_with_its_last_expert(self, cluster: Cluster) -> None:
        serving = LiveServing(cluster, ignore)
        serving.remove(2)
        assert cluster.names[-1] == {"experts-0-1", "experts-2-3", "router"}
        serving.remove(3)
        assert cluster.names[-1] == {"experts-0-1", "router"}

    def test_a_removed_one_comes_back_without_a_start(self, cluster: Cluster) -> None:
        serving = LiveServing(cluster, ignore)
        serving.remove(3)
        serving.add([3])
        assert cluster.served[-1] == {0: "experts-0-1", 1: "experts-0-1", 2: "experts-2-3", 3: "experts-2-3"}
        assert cluster.names[-1] == {"experts-0-1", "experts-2-3", "router"}

    def test_a_new_one_gets_an_application_of_its_own(self, cluster: Cluster) -> None:
        LiveServing(cluster, ignore).add([4])
        assert cluster.served[-1][4] == "expert-4"
        assert cluster.submitted[-1]["applications"][-1]["args"]["expert"] == 4


class TestWhatIsKept:
    @pytest.mark.parametrize("change", [lambda serving: serving.add([3]), lambda serving: serving.replace(0)])
    def test_other_applications_and_the_proxy_are_submitted_unchanged(
        self, change: Callable[[LiveServing], None]
    ) -> None:
        document = serve_document(RUN, [0, 1], SETTINGS)
        stranger = {"name": "chat", "route_prefix": "/chat", "import_path": "elsewhere:app", "args": {"a": 1}}
        cluster = Cluster(document | {"applications": [*document["applications"], stranger]})
        change(LiveServing(cluster, ignore))
        for submitted in cluster.submitted:
            assert stranger in submitted["applications"]
            assert submitted["http_options"] == document["http_options"]

    def test_one_started_by_serve_run_would_be_lost_and_is_named(self, cluster: Cluster) -> None:
        details = cluster.get_serve_details()
        details["applications"]["expert-0"]["deployed_app_config"] = None
        with pytest.raises(UsageError, match="expert-0 was started by serve"):
            live_document(details)


class TestWhatCannotBeEdited:
    def test_nothing_is_served(self) -> None:
        with pytest.raises(UsageError, match="nothing is served on this cluster"):
            live_document({"applications": {}})

    def test_no_router(self) -> None:
        with pytest.raises(UsageError, match="no router of mode_ray"):
            find_router({"applications": []})

    def test_several_routers(self) -> None:
        routers = [
            {"name": name, "import_path": "mode_ray.serve.applications:router"} for name in ("router", "router-b")
        ]
        with pytest.raises(UsageError, match=r"choose one of \['router', 'router-b'\] by --router"):
            find_router({"applications": routers})
        assert find_router({"applications": routers}, "router-b")["name"] == "router-b"


class TestWaiting:
    @pytest.mark.parametrize(
        ("available", "said"), [('{"CPU": 5.0}', False), ('{"CPU": 0.5}', True), ('{"GPU": 1.0}', True)]
    )
    def test_a_slow_start_is_no_reason_unless_resources_are_missing(self, available: str, said: bool) -> None:
        scheduled = (
            "Deployment 'Expert' has 1 replicas that have taken more than 30s to be scheduled. This may be due to …. "
            f'Resources required for each replica: {{"CPU": 1.0}}, total resources available: {available}. Use …'
        )
        started = "Deployment 'Expert' has 1 replicas that have taken more than 30s to initialize. This may be …"
        for message, expected in ((scheduled, said), (started, False)):
            cluster = Cluster(serve_document(RUN, [0, 1], SETTINGS), waits=("expert-2",), message=message)
            lines: list[str] = []
            with pytest.raises(DataError, match="did not run"):
                LiveServing(cluster, lines.append, deadline_seconds=0.0).add([2])
            assert any("waits" in line for line in lines) == expected

    def test_of_a_stack_trace_only_the_error_is_said(self) -> None:
        trace = "failed to start 1 times. Error:\nray::Replica()\n  File x\nmode_ray.errors.DataError: a: missing\n"
        cluster = Cluster(serve_document(RUN, [0, 1], SETTINGS), waits=("expert-2",), message=trace)
        said: list[str] = []
        with pytest.raises(DataError, match="did not run"):
            LiveServing(cluster, said.append, deadline_seconds=0.0).add([2])
        assert "application expert-2 waits: mode_ray.errors.DataError: a: missing" in said

    def test_what_it_waits_for_is_said_once_and_named_when_time_is_up(self) -> None:
        cluster = Cluster(serve_document(RUN, [0, 1], SETTINGS), waits=("expert-2",))
        said: list[str] = []
        with pytest.raises(DataError, match=r"\['expert-2'\] did not run within 1 s; expert-2 waits: .*'CPU': 1.0"):
            LiveServing(cluster, said.append, deadline_seconds=1.2).add([2])
        assert [line for line in said if "waits" in line] == [
            "application expert-2 waits: Deployment 'Expert' has 1 replicas that wait for {'CPU': 1.0}."
        ]
        assert cluster.names[-1] == {"expert-0", "expert-1", "router"}, "and everything is as before"
