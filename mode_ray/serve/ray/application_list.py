"""The list of applications that a live cluster serves: read from Ray Serve's details, and edited as a whole.

Every edit returns a new list. Nothing here communicates with the cluster.
"""

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from mode_ray.config.serve import ServeConfig
from mode_ray.errors import UsageError
from mode_ray.serve.ray.deployment_file import ROUTER_DEPLOYMENT, ROUTER_PATH

_KEPT_FIELDS = ("proxy_location", "http_options", "grpc_options", "target_capacity")

_OF_EXPERTS = ("experts", "folder")  # arguments that say which experts, and not how they are served

Document = dict[str, Any]


class Held(NamedTuple):
    """The application that serves an expert, and the expert's number in it, if it serves several."""

    application: str
    number: int | None = None

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> "Held":
        """From an expert's entry in the router's `user_config`."""
        return cls(str(entry["application"]), entry.get("number"))

    def entry(self, expert: int) -> Document:
        """The entry of an expert."""
        number = {} if self.number is None else {"number": self.number}
        return {"id": expert, "application": self.application, **number}


def live_document(details: Document) -> Document:
    """The list that a cluster serves; submitting it changes nothing.

    Args:
        details: Ray Serve's details of the cluster.

    Raises:
        UsageError: Nothing is served, or an application was not deployed from a list: submitting a list would delete
            it.
    """
    live = [entry for entry in details["applications"].values() if entry["status"] != "DELETING"]
    if not live:
        raise UsageError("nothing is served on this cluster: start with `mode-ray serve RUN`, or `serve deploy FILE`")
    for entry in live:
        if entry.get("deployed_app_config") is None:
            raise UsageError(
                f"application {entry['name']} was started by serve.run and would be deleted: deploy it from a file"
            )
    document: Document = {field: details[field] for field in _KEPT_FIELDS if details.get(field) is not None}
    document["applications"] = [copy.deepcopy(entry["deployed_app_config"]) for entry in live]
    return document


def application(document: Document, name: str) -> Document:
    """The entry of an application.

    Raises:
        UsageError: There is no application with this name.
    """
    entries: dict[str, Document] = {entry["name"]: entry for entry in document["applications"]}
    if name not in entries:
        raise UsageError(f"no application {name} among {list(entries)}")
    return entries[name]


def find_router(document: Document, name: str | None = None) -> Document:
    """The entry of the router application.

    Args:
        document: A list of applications.
        name: The router's name, if there are several.

    Raises:
        UsageError: There is no router, or there are several and no name is given.
    """
    routers: list[Document] = [
        entry
        for entry in document["applications"]
        if entry["import_path"] == ROUTER_PATH and name in (None, entry["name"])
    ]
    if not routers:
        raise UsageError("no router of mode_ray is served on this cluster" + (f" as {name}" if name else ""))
    if len(routers) > 1:
        raise UsageError(
            f"several routers are served: choose one of {[entry['name'] for entry in routers]} by --router"
        )
    return routers[0]


def served_experts(document: Document, router: str) -> dict[int, Held]:
    """The ids of the experts that a router asks, with their applications."""
    entries = _router_deployment(application(document, router))["user_config"]["experts"]
    return {int(entry["id"]): Held.of(entry) for entry in entries}


def served_run(document: Document, router: str) -> str:
    """The run whose clustering a router uses."""
    entry = application(document, router)
    return str(_router_deployment(entry)["user_config"].get("run") or entry["args"]["run"])


def with_served(document: Document, router: str, served: Mapping[int, Held], run: str | None = None) -> Document:
    """A list whose router asks exactly these experts.

    Args:
        document: A list of applications.
        router: Name of the router application.
        served: The applications by expert id.
        run: The run of these experts, if the router changes to another run.
    """
    edited = copy.deepcopy(document)
    user_config = _router_deployment(application(edited, router))["user_config"]
    user_config["experts"] = [served[id_].entry(id_) for id_ in sorted(served)]
    if run is not None:
        user_config["run"] = run
    return edited


def with_applications(document: Document, new: Sequence[Document]) -> Document:
    """A list with more applications."""
    return document | {"applications": [*document["applications"], *new]}


def without_applications(document: Document, names: Collection[str]) -> Document:
    """A list without some applications."""
    return document | {"applications": [entry for entry in document["applications"] if entry["name"] not in names]}


def loaded_expert(document: Document, router: str, expert: int, run: str) -> Held | None:
    """A live application of several experts that has loaded an expert of a run, whether or not a router asks for it.

    Args:
        document: A list of applications.
        router: Name of the router application.
        expert: Its number in the run.
        run: The run.
    """
    for name in {held.application for held in served_experts(document, router).values()}:
        arguments = application(document, name)["args"]
        if arguments["run"] == run and expert in arguments.get("experts", ()):
            return Held(name, expert)
    return None


def new_expert(document: Document, router: str, expert: int, run: str, folder: str | None) -> Document:
    """The entry of a new expert application, with the settings of an expert that is served.

    Args:
        document: A list of applications.
        router: Name of the router application.
        expert: Its number in the run.
        run: The run.
        folder: Another folder for the model than the run's.

    Raises:
        UsageError: No expert is served whose settings could be used.
    """
    names = {entry["name"] for entry in document["applications"]}
    applications = (held.application for held in served_experts(document, router).values())
    template = next((name for name in applications if name in names), None)
    if template is None:
        raise UsageError("no expert is served whose settings a new one could use: use `serve deploy FILE`")
    return _copied(document, application(document, template), {"run": run, "expert": expert}, folder)


def other_model(document: Document, router: str, expert: int, folder: str | None) -> Document:
    """The entry of a new application that replaces the application of a served expert.

    Args:
        document: A list of applications.
        router: Name of the router application.
        expert: The expert's id.
        folder: Another folder for the model than the run's.
    """
    # Run and number stay: they may be of another run than the router's, which numbers the expert differently.
    held = served_experts(document, router)[expert]
    number = {} if held.number is None else {"expert": held.number}
    return _copied(document, application(document, held.application), number, folder)


def drain_seconds(settings: Mapping[str, Any]) -> float:
    """How long requests may run that began before the router changed."""
    return ServeConfig.model_validate(dict(settings)).request_deadline_seconds


def _copied(document: Document, like: Document, changes: Document, folder: str | None) -> Document:
    """A copy of an entry with a free name, for a single expert."""
    taken = {entry["name"] for entry in document["applications"]}
    entry = copy.deepcopy(like)
    entry["args"] = {key: value for key, value in entry["args"].items() if key not in _OF_EXPERTS} | changes
    expert = entry["args"]["expert"]
    if folder is not None:
        entry["args"]["folder"] = folder
    names = [f"expert-{expert}", *(f"expert-{expert}-{count}" for count in range(2, len(taken) + 3))]
    entry["name"] = next(name for name in names if name not in taken)
    return entry


def _router_deployment(entry: Document) -> Document:
    for deployment in entry.get("deployments", []):
        if deployment["name"] == ROUTER_DEPLOYMENT and deployment.get("user_config"):
            found: Document = deployment
            return found
    raise UsageError(
        f"application {entry['name']} has no `user_config` that lists its experts: see cluster_configs/serve.yaml"
    )
