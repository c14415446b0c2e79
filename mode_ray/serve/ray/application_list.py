"""The list of applications that a live cluster serves: read from what it says of itself, and edited as a whole.

Every edit makes a new list; nothing here speaks to the cluster.
"""

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mode_ray.config.serve import ServeConfig
from mode_ray.errors import UsageError
from mode_ray.serve.ray.deployment_file import ROUTER_DEPLOYMENT, ROUTER_PATH

_KEPT_FIELDS = ("proxy_location", "http_options", "grpc_options", "target_capacity")

Document = dict[str, Any]


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


def served_run(document: Document, router: str) -> str:
    """The run that a router weighs the experts by."""
    entry = application(document, router)
    return str(_router_deployment(entry)["user_config"].get("run") or entry["args"]["run"])


def with_served(document: Document, router: str, served: Mapping[int, str], run: str | None = None) -> Document:
    """A list whose router asks exactly these applications, by the experts that they hold.

    Args:
        document: A list of applications.
        router: Name of the router's.
        served: The applications by expert.
        run: The run whose experts these are, where it is another than so far.
    """
    edited = copy.deepcopy(document)
    user_config = _router_deployment(application(edited, router))["user_config"]
    user_config["experts"] = [{"id": id_, "application": served[id_]} for id_ in sorted(served)]
    if run is not None:
        user_config["run"] = run
    return edited


def with_applications(document: Document, new: Sequence[Document]) -> Document:
    """A list with further applications."""
    return document | {"applications": [*document["applications"], *new]}


def without_applications(document: Document, names: Collection[str]) -> Document:
    """A list without some applications."""
    return document | {"applications": [entry for entry in document["applications"] if entry["name"] not in names]}


def new_expert(document: Document, router: str, expert: int, run: str, folder: str | None) -> Document:
    """The entry of a further expert application, of a free name; in all but the model as one that is served.

    Args:
        document: A list of applications.
        router: Name of the router's.
        expert: Its number in the run.
        run: The run.
        folder: Its model, where it is not the run's.

    Raises:
        UsageError: No expert is served that it could be like.
    """
    taken = {entry["name"] for entry in document["applications"]}
    model = next((name for name in served_experts(document, router).values() if name in taken), None)
    if model is None:
        raise UsageError("no expert application is served that a further one could be like: use `serve deploy FILE`")
    return _named_anew(document, application(document, model), {"run": run, "expert": expert}, folder)


def other_model(document: Document, router: str, expert: int, folder: str | None) -> Document:
    """The entry, of a free name, of an application that is to stand in for the one that holds an expert.

    Args:
        document: A list of applications.
        router: Name of the router's.
        expert: The expert; it is served.
        folder: Its other model, where it is not the run's.
    """
    # Its number in its own run stays: that may be another run than the router's by now, with other numbers.
    return _named_anew(document, application(document, served_experts(document, router)[expert]), {}, folder)


def drain_seconds(settings: Mapping[str, Any]) -> float:
    """How long requests may still be on their way that began before the router was changed."""
    return ServeConfig.model_validate(dict(settings)).request_deadline_seconds


def _named_anew(document: Document, like: Document, changes: Document, folder: str | None) -> Document:
    taken = {entry["name"] for entry in document["applications"]}
    entry = copy.deepcopy(like)
    entry["args"] = {key: value for key, value in entry["args"].items() if key != "folder"} | changes
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
