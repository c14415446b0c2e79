"""Experts of a live cluster: added, removed and replaced one by one, while the others and the router stay up.

Serve deletes applications that a submitted list lacks. So every step reads the live list, edits it, and submits the
whole of it again. A new expert application is up before the router is told of it, and one that goes is no longer asked
before it is deleted. A replaced expert gets an application of its own name: the router changes from one to the other
at once, so that no answer mixes the image features of one model with the text features of another.
"""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from mode_ray.errors import DataError, UsageError
from mode_ray.serve.deployment_file import ROUTER_DEPLOYMENT, ROUTER_PATH
from mode_ray.serve_config import ServeConfig

_POLL_SECONDS = 0.5
_KEPT_FIELDS = ("proxy_location", "http_options", "grpc_options", "target_capacity")

Document = dict[str, Any]
Edit = Callable[[Document], Document]


class ServeEndpoint(Protocol):
    """Ray's REST interface to Serve, as ray.dashboard's ServeSubmissionClient speaks it."""

    def get_serve_details(self) -> Document:
        """Everything that is live."""

    def deploy_applications(self, config: Document) -> None:
        """Submit a list; what it lacks is deleted."""


class LiveServing:
    """The ensemble of one router application on a live cluster.

    Args:
        endpoint: The cluster.
        say: Takes one line on every step.
        router: Name of the router application, where there are several.
        deadline_seconds: How long an application may take until it runs.
    """

    def __init__(
        self,
        endpoint: ServeEndpoint,
        say: Callable[[str], None],
        router: str | None = None,
        deadline_seconds: float = 600.0,
    ) -> None:
        self._endpoint = endpoint
        self._say = say
        self._deadline_seconds = deadline_seconds
        self._router: str = find_router(self._document(), router)["name"]

    def add(self, expert: int, folder: str | None = None) -> None:
        """Serve one more expert, with the settings of those that are there.

        Args:
            expert: Its id.
            folder: Its model; by default the run's.

        Raises:
            UsageError: It is served already, or nothing is served.
            DataError: It does not start; everything is as before.
        """
        document = self._document()
        if expert in served_experts(document, self._router):
            raise UsageError(f"expert {expert} is served already: mode-ray serve replace {expert} exchanges it")
        name = self._start(document, expert, folder)
        self._submit(lambda live: with_served(live, self._router, expert, name), self._router)
        self._say(f"expert {expert} is in the ensemble")

    def remove(self, expert: int) -> None:
        """Serve an expert no longer.

        Raises:
            UsageError: It is not served, or the only one.
        """
        document = self._document()
        name = self._served_name(document, expert)
        if len(served_experts(document, self._router)) == 1:
            raise UsageError(f"expert {expert} is the only one: the ensemble needs one at least")
        self._submit(lambda live: with_served(live, self._router, expert, None), self._router)
        self._end(document, name)
        self._say(f"expert {expert} is out of the ensemble")

    def replace(self, expert: int, folder: str | None = None) -> None:
        """Exchange the model of a served expert: the new one is loaded before the old one goes.

        Args:
            expert: Its id.
            folder: The new model; by default the folder it was loaded from, read again.

        Raises:
            UsageError: It is not served.
            DataError: The new one does not start; everything is as before.
        """
        document = self._document()
        old_name = self._served_name(document, expert)
        old_arguments = application(document, old_name)["args"]
        name = self._start(document, expert, folder or old_arguments.get("folder"))
        self._submit(lambda live: with_served(live, self._router, expert, name), self._router)
        self._end(document, old_name)
        self._say(f"expert {expert} is replaced")

    def _served_name(self, document: Document, expert: int) -> str:
        served = served_experts(document, self._router)
        if expert not in served:
            raise UsageError(f"expert {expert} is not served: the live experts are {sorted(served)}")
        return served[expert]

    def _start(self, document: Document, expert: int, folder: str | None) -> str:
        new = new_expert(document, self._router, expert, folder)
        self._say(f"starting application {new['name']}")
        try:
            self._submit(lambda live: with_application(live, new), new["name"])
        except DataError:
            self._submit(lambda live: without_application(live, new["name"]))
            raise
        return str(new["name"])

    def _end(self, document: Document, name: str) -> None:
        """Delete an expert application once the requests that may still ask it have ended."""
        seconds = drain_seconds(find_router(document, self._router)["args"].get("settings", {}))
        self._say(f"ending application {name} in {seconds:g} s, when no request can need it any more")
        time.sleep(seconds)
        self._submit(lambda live: without_application(live, name))

    def _document(self) -> Document:
        return live_document(self._endpoint.get_serve_details())

    def _submit(self, edit: Edit, waited_for: str | None = None) -> None:
        submit(self._endpoint, edit(self._document()))
        if waited_for is not None:
            wait_until_running(self._endpoint, [waited_for], self._deadline_seconds, self._say)


def connect(address: str) -> ServeEndpoint:
    """The cluster behind the dashboard's address, `http://HOST:8265`.

    Raises:
        UsageError: There is none, or it does not let us in.
    """
    from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

    try:
        endpoint: ServeEndpoint = ServeSubmissionClient(address)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(
            f"no Ray dashboard at {address} ({reason}): give --address or set RAY_DASHBOARD_ADDRESS"
        ) from None
    return endpoint


def submit(endpoint: ServeEndpoint, document: Document) -> None:
    """Submit a list.

    Raises:
        DataError: Ray Serve does not take it.
    """
    try:
        endpoint.deploy_applications(document)
    except RuntimeError as error:
        raise DataError(f"Ray Serve refuses the applications: {' '.join(str(error).split())}") from None


def live_document(details: Document) -> Document:
    """The list to submit that would leave a cluster as it is.

    Args:
        details: What the cluster says of itself.

    Raises:
        UsageError: Nothing is served, or an application was not deployed from a list: submitting one would not
            keep it as it is.
    """
    live = [entry for entry in details["applications"].values() if entry["status"] != "DELETING"]
    if not live:
        raise UsageError("nothing is served on this cluster: start with `mode-ray serve RUN`, or `serve deploy FILE`")
    for entry in live:
        if entry.get("deployed_app_config") is None:
            raise UsageError(
                f"application {entry['name']} was started by serve.run, not from a file: deploy it from one"
            )
    document: Document = {field: details[field] for field in _KEPT_FIELDS if details.get(field) is not None}
    document["applications"] = [copy.deepcopy(entry["deployed_app_config"]) for entry in live]
    return document


def application(document: Document, name: str) -> Document:
    """The entry of one application.

    Raises:
        UsageError: There is none of the name.
    """
    for entry in document["applications"]:
        if entry["name"] == name:
            found: Document = entry
            return found
    raise UsageError(f"no application {name} among {[entry['name'] for entry in document['applications']]}")


def find_router(document: Document, name: str | None = None) -> Document:
    """The entry of the router application.

    Args:
        document: A list of applications.
        name: Which, where there are several.

    Raises:
        UsageError: There is none, or there are several and none is named.
    """
    routers = [entry for entry in document["applications"] if entry["import_path"] == ROUTER_PATH]
    if name is not None:
        routers = [entry for entry in routers if entry["name"] == name]
    if not routers:
        raise UsageError("no router of mode_ray is served on this cluster" + (f" as {name}" if name else ""))
    if len(routers) > 1:
        raise UsageError(
            f"several routers are served: choose one of {[entry['name'] for entry in routers]} by --router"
        )
    found: Document = routers[0]
    return found


def served_experts(document: Document, router: str) -> dict[int, str]:
    """The expert ids that a router asks, and the applications that hold them."""
    entries = _router_deployment(application(document, router))["user_config"]["experts"]
    return {int(entry["id"]): str(entry["application"]) for entry in entries}


def with_served(document: Document, router: str, expert: int, name: str | None) -> Document:
    """A list whose router asks an application for an expert, or (None) nobody."""
    edited = copy.deepcopy(document)
    served = served_experts(edited, router)
    served.pop(expert, None)
    if name is not None:
        served[expert] = name
    user_config = _router_deployment(application(edited, router))["user_config"]
    user_config["experts"] = [{"id": id_, "application": served[id_]} for id_ in sorted(served)]
    return edited


def with_application(document: Document, new: Mapping[str, Any]) -> Document:
    """A list with one more application."""
    return document | {"applications": [*document["applications"], dict(new)]}


def without_application(document: Document, name: str) -> Document:
    """A list without an application."""
    return document | {"applications": [entry for entry in document["applications"] if entry["name"] != name]}


def new_expert(document: Document, router: str, expert: int, folder: str | None) -> Document:
    """The entry of a further expert application: as a served one (its own, if it is served), of a free name."""
    served = served_experts(document, router)
    taken = {entry["name"] for entry in document["applications"]}
    model = served.get(expert) or next((name for name in served.values() if name in taken), None)
    if model is None:
        raise UsageError("no expert application is served that a further one could be like: use `serve deploy FILE`")
    entry = copy.deepcopy(application(document, model))
    entry["args"] = {key: value for key, value in entry["args"].items() if key != "folder"} | {"expert": expert}
    if folder is not None:
        entry["args"]["folder"] = folder
    names = [f"expert-{expert}", *(f"expert-{expert}-{count}" for count in range(2, len(taken) + 3))]
    entry["name"] = next(name for name in names if name not in taken)
    return entry


def wait_until_running(
    endpoint: ServeEndpoint, names: Sequence[str], deadline_seconds: float, say: Callable[[str], None]
) -> None:
    """Return when all named applications run.

    Args:
        endpoint: The cluster.
        names: Of the applications.
        deadline_seconds: How long that may take.
        say: Takes a line on what is waited for, when Ray Serve gives a reason and whenever that changes.

    Raises:
        DataError: One has failed, or time is up.
    """
    deadline = time.monotonic() + deadline_seconds
    said: dict[str, str] = {}
    while True:
        live = endpoint.get_serve_details()["applications"]
        waiting = [name for name in names if live.get(name, {}).get("status") != "RUNNING"]
        if not waiting:
            return
        for name in waiting:
            entry = live.get(name, {})
            if entry.get("status") == "DEPLOY_FAILED":
                raise DataError(f"application {name} does not start: {_reason(entry)}")
            reason = _waits_for(entry)
            if reason and reason != said.get(name):
                said[name] = reason
                say(f"application {name} waits: {reason}")
        if time.monotonic() > deadline:
            reasons = "".join(f"; {name} waits: {said[name]}" for name in waiting if name in said)
            raise DataError(f"applications {waiting} did not run within {deadline_seconds:.0f} s{reasons}")
        time.sleep(_POLL_SECONDS)


def drain_seconds(settings: Mapping[str, Any]) -> float:
    """How long requests may still be on their way that began before the router was changed."""
    return ServeConfig.model_validate(dict(settings)).request_deadline_seconds


def _router_deployment(entry: Document) -> Document:
    for deployment in entry.get("deployments", []):
        if deployment["name"] == ROUTER_DEPLOYMENT and deployment.get("user_config"):
            found: Document = deployment
            return found
    raise UsageError(
        f"application {entry['name']} has no `user_config` that lists its experts: see cluster_configs/serve.yaml"
    )


def _waits_for(entry: Mapping[str, Any]) -> str:
    """What the deployments of an application that does not run yet say of themselves, in one line."""
    messages = [str(deployment.get("message", "")) for deployment in entry.get("deployments", {}).values()]
    return " ".join(" ".join(messages).split())


def _reason(entry: Mapping[str, Any]) -> str:
    """The most telling line of an application's status: the error itself ends the stack trace."""
    messages = [str(entry.get("message", ""))]
    messages += [str(deployment.get("message", "")) for deployment in entry.get("deployments", {}).values()]
    lines = [line.strip() for message in messages for line in message.splitlines() if "Error" in line]
    return lines[-1] if lines else " ".join(messages[0].split()) or "no reason given"
