"""What a deployment file names: `mode_ray.serve.applications:expert` and `:router`.

Ray Serve calls a builder with the `args` of its application. Replicas and resources are the file's alone
(mode_ray.serve.ray.deployment_file writes it); what else the `deployments` of the file say goes over what is set here.
"""

from typing import Any

from ray.serve import Application

from mode_ray.config.serve import ServeConfig
from mode_ray.serve.ray.deployments import (
    Arguments,
    ExpertArguments,
    ExpertDeployment,
    RouterArguments,
    RouterDeployment,
)

_RETRY_AFTER_SECONDS = 1.0
_HEALTH_CHECK_SECONDS = 5.0


def expert(arguments: ExpertArguments) -> Application:
    """One expert as an application of its own, so that the others do not notice when it comes, goes or fails."""
    return _application(ExpertDeployment, expert_options(arguments.settings), arguments)


def router(arguments: RouterArguments) -> Application:
    """The router; its `user_config` in the file lists the experts."""
    return _application(RouterDeployment, router_options(arguments.settings), arguments)


def expert_options(settings: ServeConfig) -> dict[str, Any]:
    """Deployment options of an expert.

    A replica takes as many calls as its own bounded queue and a batch can hold, and refuses the rest by itself.
    """
    return _options(settings, settings.max_queued_requests + settings.max_batch_size)


def router_options(settings: ServeConfig) -> dict[str, Any]:
    """Deployment options of the router.

    The service refuses by itself, in the shape of all its errors, what is above `max_queued_requests`. A replica takes
    more than that, so that the proxy's plain refusal is left for floods.
    """
    return _options(settings, 4 * settings.max_queued_requests)


def _application(deployment: Any, options: dict[str, Any], arguments: Arguments) -> Application:  # noqa: ANN401
    # To a type checker the decorated class still is the class.
    application: Application = deployment.options(**options).bind(arguments)
    return application


def _options(settings: ServeConfig, ongoing: int) -> dict[str, Any]:
    return {
        "max_ongoing_requests": ongoing,
        "max_queued_requests": settings.max_queued_requests,
        "backpressure_config": {"status_code": 503, "retry_after_s": _RETRY_AFTER_SECONDS},
        "health_check_period_s": _HEALTH_CHECK_SECONDS,
        "health_check_timeout_s": _HEALTH_CHECK_SECONDS,
        "graceful_shutdown_timeout_s": settings.request_deadline_seconds,
    }
