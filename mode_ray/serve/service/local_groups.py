"""All experts of a process, by groups with equal image trunks; the groups share the process's CPU threads."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from mode_ray.config.serve import ServeConfig
from mode_ray.models.compiled_trunks import compile_image_trunks
from mode_ray.models.encode import Expert
from mode_ray.models.together import by_image_trunk
from mode_ray.serve.service.local_expert import LocalExpert, LocalExperts
from mode_ray.serve.service.metrics import ServeMetrics


class LocalGroups:
    """Starts the experts of a process.

    `threads` divided by `threads_per_expert` of the groups run at the same time. If there are fewer groups, each of
    them gets more threads. Four passes at once cost 4 to 5 % of the throughput on two cores (ViT-B-32).

    Args:
        models: The models by the experts' ids; they must not be used elsewhere.
        config: Threads of a pass, runtime, batch size, wait and queue.
        metrics: Records the size of every batch.
        threads: CPU threads of all experts together.

    Raises:
        UsageError: OpenVINO is missing or wrong.

    Attributes:
        clients: An `ExpertClient` for every expert.
    """

    def __init__(self, models: Mapping[int, Expert], config: ServeConfig, metrics: ServeMetrics, threads: int) -> None:
        groups = by_image_trunk(models)
        at_once = min(max(1, threads // config.threads_per_expert), len(groups))
        for model in models.values():
            model.threads = max(config.threads_per_expert, threads // at_once)
        if config.runtime == "openvino":
            compile_image_trunks(models.values())
        self._executor = ThreadPoolExecutor(at_once, thread_name_prefix="experts")
        self._groups = [LocalExperts(group, config, metrics, self._executor) for group in groups]
        self.clients: dict[int, LocalExpert] = {}
        for experts in self._groups:
            self.clients |= experts.clients

    def close(self) -> None:
        """Stop the threads and release the models; waiting calls fail with ExpertUnavailable."""
        for experts in self._groups:
            experts.close()
        self._executor.shutdown(wait=False, cancel_futures=True)
