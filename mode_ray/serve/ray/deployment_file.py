"""The list of applications that serves a run, as Ray Serve's REST API and `serve deploy` expect it."""

from collections.abc import Sequence
from typing import Any

import yaml

from mode_ray.config.run import RunConfig
from mode_ray.config.serve import Replicas, ServeConfig

EXPERT_PATH = "mode_ray.serve.applications:expert"
EXPERT_DEPLOYMENT = "Expert"
ROUTER_PATH = "mode_ray.serve.applications:router"
ROUTER_DEPLOYMENT = "Router"
ROUTER_NAME = "router"
_TOGETHER_NAME = "experts"
_PROXY_MARGIN_SECONDS = 5.0
_FILE_WIDTH = 119
# Settings that are not in the applications' `args`: other parts of the file hold them, or only --in-process uses them.
_NOT_IN_ARGUMENTS = {
    "host",
    "port",
    "threads_in_process",
    "expert_replicas",
    "router_replicas",
    "cpus_per_expert",
    "gpus_per_expert",
    "router_cpus",
    "experts_per_replica",
}


def serve_document(run: str, experts: Sequence[int], settings: ServeConfig) -> dict[str, Any]:
    """The applications of a run: of one expert or several each (`experts_per_replica`), and the router.

    Args:
        run: The run directory, readable by every node of the cluster.
        experts: Ids of the experts to serve.
        settings: Settings that differ from the defaults are written into the applications' `args`.
    """
    arguments: dict[str, Any] = {"run": run}
    changed = settings.model_dump(mode="json", exclude_defaults=True, exclude=_NOT_IN_ARGUMENTS)
    if changed:
        arguments["settings"] = changed
    actor = {"num_cpus": settings.cpus_per_expert}
    if settings.gpus_per_expert:
        actor["num_gpus"] = settings.gpus_per_expert
    groups = _groups(experts, settings.experts_per_replica or 1)
    applications = [
        {
            "name": name,
            "route_prefix": None,
            "import_path": EXPERT_PATH,
            "args": {**arguments, **({"experts": list(numbers)} if len(numbers) > 1 else {"expert": numbers[0]})},
            "deployments": [
                {"name": EXPERT_DEPLOYMENT, **_scale(settings.expert_replicas), "ray_actor_options": dict(actor)}
            ],
        }
        for name, numbers in groups.items()
    ]
    served = [
        {"id": expert, "application": name, **({"number": expert} if len(numbers) > 1 else {})}
        for name, numbers in groups.items()
        for expert in numbers
    ]
    router = {
        "name": ROUTER_NAME,
        "route_prefix": "/",
        "import_path": ROUTER_PATH,
        "args": dict(arguments),
        "deployments": [
            {
                "name": ROUTER_DEPLOYMENT,
                **_scale(settings.router_replicas),
                "ray_actor_options": {"num_cpus": settings.router_cpus},
                "user_config": {"experts": served},
            }
        ],
    }
    return {
        "http_options": {
            "host": settings.host,
            "port": settings.port,
            # The router answers earlier; this limits requests that wait for a router while none runs.
            "request_timeout_s": settings.request_deadline_seconds + _PROXY_MARGIN_SECONDS,
        },
        "logging_config": {"enable_access_log": False},
        "applications": [*applications, router],
    }


def ray_settings(config: RunConfig, experts: int) -> ServeConfig:
    """The section `serve` of a run with `experts` experts, with `experts_per_replica` decided."""
    locked = config.train.model.lock.image != "none"
    most = config.serve.experts_per_replica or (experts if locked else 1)
    return config.serve.model_copy(update={"experts_per_replica": most})


def needed_cpus(document: dict[str, Any]) -> float:
    """Logical CPUs that all applications of a list request if each deployment has its minimum of replicas."""
    total = 0.0
    for application in document["applications"]:
        for deployment in application["deployments"]:
            replicas = deployment.get("num_replicas") or deployment["autoscaling_config"]["min_replicas"]
            total += replicas * float(deployment["ray_actor_options"]["num_cpus"])
    return total


def as_yaml(document: dict[str, Any]) -> str:
    """A list as a file for `serve deploy`."""
    text: str = yaml.dump(document, Dumper=_NoAliases, sort_keys=False, width=_FILE_WIDTH)
    return text


def _groups(experts: Sequence[int], most: int) -> dict[str, tuple[int, ...]]:
    """The experts of every application by its name."""
    groups = [tuple(experts[start : start + most]) for start in range(0, len(experts), most)]
    return {_group_name(group, len(groups)): group for group in groups}


def _group_name(group: Sequence[int], groups: int) -> str:
    if len(group) == 1:
        return f"expert-{group[0]}"
    return _TOGETHER_NAME if groups == 1 else f"{_TOGETHER_NAME}-{group[0]}-{group[-1]}"


def _scale(replicas: Replicas) -> dict[str, Any]:
    if replicas.min == replicas.max:
        return {"num_replicas": replicas.min}
    return {
        "autoscaling_config": {
            "min_replicas": replicas.min,
            "max_replicas": replicas.max,
            "target_ongoing_requests": replicas.target_ongoing_requests,
        }
    }


class _NoAliases(yaml.SafeDumper):
    """Repeats equal values in full instead of using YAML aliases, because users edit the file."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002  (PyYAML's signature)
        return True
