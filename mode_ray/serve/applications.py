"""The builders that a deployment file names: `mode_ray.serve.applications:expert` and `:router`.

Ray Serve calls a builder with the `args` of its application. The file sets replicas and resources
(mode_ray.serve.ray.deployment_file writes it); other options of its `deployments` override the options set here.
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
    """One expert as its own application: adding, removing or losing it does not affect the others."""
    return _application(ExpertDeployment, expert_options(arguments.settings), arguments)


def router(arguments: RouterArguments) -> Application:
    """The router. Its `user_config` in the file lists the experts."""
    return _application(RouterDeployment, router_options(arguments.settings), arguments)


def expert_options(settings: ServeConfig) -> dict[str, Any]:
    """Deployment options of an expert.

    A replica accepts as many calls as its queue and a batch hold; its queue refuses further calls.
    """
    return _options(settings, settings.max_queued_requests + settings.max_batch_size)


def router_options(settings: ServeConfig) -> dict[str, Any]:
    """Deployment options of the router.

    The service refuses requests above `max_queued_requests` with an error in the usual form. A replica accepts more
    than that, so that the proxy refuses, in plain text, only under extreme load.
    """
    return _options(settings, 4 * settings.max_queued_requests)


def _application(deployment: Any, options: dict[str, Any], arguments: Arguments) -> Application:  # noqa: ANN401
    # The type checker sees the undecorated class.
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
