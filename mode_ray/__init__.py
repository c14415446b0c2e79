"""CLIP data experts via clustering (MoDE, CVPR 2024) on Ray.

The public API; docs/api.md documents it. Everything else is internal. Names are imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mode_ray.assign.captions import AssignCaptions as AssignCaptions
    from mode_ray.cluster.clustering import Clustering as Clustering
    from mode_ray.config.load import load_config as load_config
    from mode_ray.config.run import RunConfig as RunConfig
    from mode_ray.ensemble.ensemble import Ensemble as Ensemble
    from mode_ray.ensemble.ensemble import load as load
    from mode_ray.errors import ModeRayError as ModeRayError
    from mode_ray.pipeline_run import run as run
    from mode_ray.routing.router import routing_weights_of as routing_weights

__version__ = "0.1.0"

_HOMES = {
    "AssignCaptions": ("mode_ray.assign.captions", "AssignCaptions"),
    "Clustering": ("mode_ray.cluster.clustering", "Clustering"),
    "Ensemble": ("mode_ray.ensemble.ensemble", "Ensemble"),
    "ModeRayError": ("mode_ray.errors", "ModeRayError"),
    "RunConfig": ("mode_ray.config.run", "RunConfig"),
    "load": ("mode_ray.ensemble.ensemble", "load"),
    "load_config": ("mode_ray.config.load", "load_config"),
    "run": ("mode_ray.pipeline_run", "run"),
    "routing_weights": ("mode_ray.routing.router", "routing_weights_of"),
}
__all__ = [
    "AssignCaptions",
    "Clustering",
    "Ensemble",
    "ModeRayError",
    "RunConfig",
    "__version__",
    "load",
    "load_config",
    "routing_weights",
    "run",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name not in _HOMES:
        raise AttributeError(f"module 'mode_ray' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    value = getattr(import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
