"""The two deployments of Ray Serve: an expert's model, and the router with the HTTP interface.

Only replicas import models and torch: Ray Serve also imports this module where it builds the applications.
"""

import asyncio
import dataclasses
import hashlib
from collections.abc import Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator
from ray import serve

from mode_ray.config.serve import ServeConfig
from mode_ray.errors import WorkerError
from mode_ray.serve.ray.deployment_file import EXPERT_DEPLOYMENT, ROUTER_DEPLOYMENT
from mode_ray.serve.ray.handle_expert import HandleExperts, OtherWeights
from mode_ray.serve.service.expert_client import ExpertDescription
from mode_ray.serve.service.fan_out import side_by_side
from mode_ray.serve.service.metrics import ray_metrics
from mode_ray.serve.service.stuck_calls import StuckCalls
from mode_ray.storage import Location
from mode_ray.util.devices import granted_cpus

if TYPE_CHECKING:
    from mode_ray.serve.service.ensemble_service import EnsembleService

_STUCK_SECONDS = 120.0


class Arguments(BaseModel):
    """Base of the arguments in a deployment file."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class RouterArguments(Arguments):
    """`args` of the router application."""

    run: str = Field(min_length=1)
    """The run directory: a path or URI that every node can read."""
    settings: ServeConfig = ServeConfig()


class ExpertArguments(RouterArguments):
    """`args` of an expert application: one expert, or several with a common trunk."""

    expert: int | None = Field(default=None, ge=0)
    """The number of a single expert in the run."""
    experts: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """The numbers of several."""
    folder: str | None = None
    """Another folder for the model of a single expert than the run's."""

    @model_validator(mode="after")
    def _one_or_several(self) -> Self:
        if (self.expert is None) == (not self.experts):
            raise ValueError("give either expert, the number of one expert, or experts, the numbers of several")
        if self.experts and self.folder is not None:
            raise ValueError("folder is for a single expert: leave it out with experts")
        return self

    @property
    def numbers(self) -> tuple[int, ...]:
        """The numbers of the experts in the run."""
        return self.experts if self.expert is None else (self.expert,)


class ServedExpert(Arguments):
    """An expert and the application that serves it."""

    id: int = Field(ge=0)
    application: str = Field(min_length=1)
    number: int | None = Field(default=None, ge=0)
    """The expert's number in the application, if that has several."""


class RouterSettings(Arguments):
    """`user_config` of the router, which may change while it runs."""

    experts: tuple[ServedExpert, ...] = ()
    run: str | None = Field(default=None, min_length=1)
    """The run of these experts, if it is not the run of `args` but one that grew from it."""


@serve.deployment(name=EXPERT_DEPLOYMENT)
class ExpertDeployment:
    """The models of an application, loaded once per replica; a common trunk runs once for all of them.

    Images of several requests form batches.
    """

    def __init__(self, arguments: ExpertArguments) -> None:
        from mode_ray.models.together import load_experts
        from mode_ray.serve.service.local_groups import LocalGroups
        from mode_ray.serve.service.served_run import ServedRun

        run = Location.parse(arguments.run)
        folders = {number: ServedRun.expert_folder(run, number, arguments.folder) for number in arguments.numbers}
        # Before the weights are read: if they change meanwhile, this replica has another source than later ones.
        self._sources = {number: f"{folder}#{_state_of(folder)}" for number, folder in folders.items()}
        settings = arguments.settings
        models = load_experts(folders, settings.device, settings.precision)
        self._local = LocalGroups(models, settings, ray_metrics(), int(granted_cpus())).clients
        self._calls = StuckCalls(_STUCK_SECONDS)

    async def describe(self) -> dict[int, ExpertDescription]:
        """Facts about the models by number; `source` names a model's folder and the state of its files."""
        return {
            number: (await client.describe()).model_copy(update={"source": self._sources[number]})
            for number, client in self._local.items()
        }

    async def encode_images(
        self, images_bhw3: npt.NDArray[np.uint8], sources: Mapping[int, str]
    ) -> dict[int, npt.NDArray[np.float32]]:
        """Unit-norm features of uint8 images by the experts' numbers, float32 [b, d] each.

        Args:
            images_bhw3: Images that the router resized.
            sources: The experts to ask, with the `source` of the description that the caller has.

        Raises:
            OtherWeights: This replica has another source.
            ExpertBusy: The queue is full.
        """
        self._require(sources)
        with self._calls.call():
            return await self._each({number: self._local[number].encode_images(images_bhw3) for number in sources})

    async def encode_texts(
        self, texts: Sequence[str], sources: Mapping[int, str]
    ) -> dict[int, npt.NDArray[np.float32]]:
        """Unit-norm features of texts, float32 [l, d] each; arguments and errors as `encode_images`."""
        self._require(sources)
        with self._calls.call():
            return await self._each({number: self._local[number].encode_texts(texts) for number in sources})

    def check_health(self) -> None:
        """Called by Ray Serve, which replaces the replica after three failures.

        Raises:
            WorkerError: No call was answered for two minutes although calls arrived.
        """
        if self._calls.stuck:
            raise WorkerError(
                f"experts {list(self._local)} are stuck: no call was answered for {_STUCK_SECONDS:.0f} seconds"
            )

    async def _each(
        self, calls: Mapping[int, Coroutine[Any, Any, npt.NDArray[np.float32]]]
    ) -> dict[int, npt.NDArray[np.float32]]:
        return dict(zip(calls, await side_by_side(list(calls.values())), strict=True))

    def _require(self, sources: Mapping[int, str]) -> None:
        for number, source in sources.items():
            if source != self._sources.get(number):
                raise OtherWeights(f"expert {number} now has the weights of {self._sources.get(number)}")


@serve.deployment(name=ROUTER_DEPLOYMENT)
@serve.ingress()
class RouterDeployment:
    """The HTTP interface and the ensemble service. `user_config` lists the experts."""

    def __init__(self, arguments: RouterArguments) -> None:
        self._settings = arguments.settings
        self._metrics = ray_metrics()
        self._first_run = self._run = arguments.run
        self._service = self._load(self._run)
        self._applications: dict[str, HandleExperts] = {}
        self._served: tuple[ServedExpert, ...] = ()

    def __serve_build_asgi_app__(self) -> Any:  # noqa: ANN401  (a FastAPI; Ray Serve's name for it)
        from mode_ray.serve.http.api import create_app

        return create_app(lambda: self._service, self._settings)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Use exactly these experts from now on; experts that stay keep their handles.

        Another run gets a new service; running requests finish with the service that they began with.
        """
        settings = RouterSettings.model_validate(user_config)
        run = settings.run or self._first_run
        if run != self._run:
            service = await asyncio.to_thread(self._load, run)
            asyncio.get_running_loop().call_later(self._settings.request_deadline_seconds, self._service.close)
            self._run, self._service = run, service
        self._served = settings.experts
        names = {entry.application for entry in self._served}
        self._take({name: self._applications.get(name) or self._application(name) for name in sorted(names)})

    def _load(self, run: str) -> "EnsembleService":
        from mode_ray.serve.service.ensemble_service import EnsembleService
        from mode_ray.serve.service.served_run import ServedRun, task_directory

        # Ids of registered tasks stay valid when the run changes.
        tasks = task_directory(Location.parse(self._first_run), self._settings)
        settings = self._settings.model_copy(update={"task_directory": tasks.uri})
        found = ServedRun.load(Location.parse(run))
        served = dataclasses.replace(found, config=found.config.model_copy(update={"serve": settings}))
        return EnsembleService(served, {}, settings, self._metrics)

    def _application(self, name: str) -> HandleExperts:
        def renew() -> None:
            if self._applications.get(name) is experts:
                self._take(self._applications | {name: self._application(name)})

        experts = HandleExperts(name, self._settings, renew)
        return experts

    def _take(self, applications: dict[str, HandleExperts]) -> None:
        before, self._applications = self._applications, applications
        clients = {entry.id: applications[entry.application].client(entry.id, entry.number) for entry in self._served}
        self._service.set_clients(clients)
        for name, experts in before.items():
            if applications.get(name) is not experts:
                experts.close()


def _state_of(folder: Location) -> str:
    """A hash of the names, sizes and times of the files in a folder."""
    files = folder.entries(recursive=True)
    states = sorted((file.location.name, file.size_bytes, file.modified_unix_seconds) for file in files)
    return hashlib.sha256(repr(states).encode()).hexdigest()[:16]
