"""The two deployments of Ray Serve: an expert's model, and the router with the HTTP interface.

Only replicas import models and torch: Ray Serve also imports this module where it builds the applications.
"""

import asyncio
import dataclasses
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field
from ray import serve

from mode_ray.config.serve import ServeConfig
from mode_ray.errors import WorkerError
from mode_ray.serve.ray.deployment_file import EXPERT_DEPLOYMENT, ROUTER_DEPLOYMENT
from mode_ray.serve.ray.handle_expert import HandleExpert, OtherWeights
from mode_ray.serve.service.expert_client import ExpertDescription
from mode_ray.serve.service.metrics import ray_metrics
from mode_ray.serve.service.stuck_calls import StuckCalls
from mode_ray.storage import Location

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
    """`args` of an expert application."""

    expert: int = Field(ge=0)
    folder: str | None = None
    """Another folder for the model than the run's."""


class ServedExpert(Arguments):
    """An expert and the application that serves it."""

    id: int = Field(ge=0)
    application: str = Field(min_length=1)


class RouterSettings(Arguments):
    """`user_config` of the router, which may change while it runs."""

    experts: tuple[ServedExpert, ...] = ()
    run: str | None = Field(default=None, min_length=1)
    """The run of these experts, if it is not the run of `args` but one that grew from it."""


@serve.deployment(name=EXPERT_DEPLOYMENT)
class ExpertDeployment:
    """One expert's model, loaded once per replica. Images of several requests form batches."""

    def __init__(self, arguments: ExpertArguments) -> None:
        from mode_ray.models.encode import Expert
        from mode_ray.serve.service.local_expert import LocalExperts
        from mode_ray.serve.service.served_run import ServedRun

        self._id = arguments.expert
        folder = ServedRun.expert_folder(Location.parse(arguments.run), self._id, arguments.folder)
        # Before the weights are read: if they change meanwhile, this replica has another source than later ones.
        self._source = f"{folder}#{_state_of(folder)}"
        settings = arguments.settings
        model = Expert(
            folder, device=settings.device, precision=settings.precision, threads=settings.threads_per_expert
        )
        self._local = LocalExperts({self._id: model}, settings, ray_metrics()).clients[self._id]
        self._calls = StuckCalls(_STUCK_SECONDS)

    async def describe(self) -> ExpertDescription:
        """Facts about the model; `source` names its folder and the state of its files."""
        description = await self._local.describe()
        return description.model_copy(update={"source": self._source})

    async def encode_images(self, images_bhw3: npt.NDArray[np.uint8], source: str) -> npt.NDArray[np.float32]:
        """Unit-norm features of uint8 images, float32 [b, d].

        Args:
            images_bhw3: Images that the router resized.
            source: The `source` of the description that the caller has.

        Raises:
            OtherWeights: This replica has another source.
            ExpertBusy: The queue is full.
        """
        self._require(source)
        with self._calls.call():
            return await self._local.encode_images(images_bhw3)

    async def encode_texts(self, texts: Sequence[str], source: str) -> npt.NDArray[np.float32]:
        """Unit-norm features of texts, float32 [l, d]; arguments and errors as `encode_images`."""
        self._require(source)
        with self._calls.call():
            return await self._local.encode_texts(texts)

    def check_health(self) -> None:
        """Called by Ray Serve, which replaces the replica after three failures.

        Raises:
            WorkerError: No call was answered for two minutes although calls arrived.
        """
        if self._calls.stuck:
            raise WorkerError(f"expert {self._id} is stuck: no call was answered for {_STUCK_SECONDS:.0f} seconds")

    def _require(self, source: str) -> None:
        if source != self._source:
            raise OtherWeights(f"expert {self._id} now has the weights of {self._source}")


@serve.deployment(name=ROUTER_DEPLOYMENT)
@serve.ingress()
class RouterDeployment:
    """The HTTP interface and the ensemble service. `user_config` lists the experts."""

    def __init__(self, arguments: RouterArguments) -> None:
        self._settings = arguments.settings
        self._metrics = ray_metrics()
        self._first_run = self._run = arguments.run
        self._service = self._load(self._run)
        self._clients: dict[int, HandleExpert] = {}

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
        clients = {}
        for entry in settings.experts:
            client = self._clients.get(entry.id)
            if client is None or client.application != entry.application:
                client = self._client(entry.id, entry.application)
            clients[entry.id] = client
        self._take(clients)

    def _load(self, run: str) -> "EnsembleService":
        from mode_ray.serve.service.ensemble_service import EnsembleService
        from mode_ray.serve.service.served_run import ServedRun, task_directory

        # Ids of registered tasks stay valid when the run changes.
        tasks = task_directory(Location.parse(self._first_run), self._settings)
        settings = self._settings.model_copy(update={"task_directory": tasks.uri})
        found = ServedRun.load(Location.parse(run))
        served = dataclasses.replace(found, config=found.config.model_copy(update={"serve": settings}))
        return EnsembleService(served, {}, settings, self._metrics)

    def _client(self, id_: int, name: str) -> HandleExpert:
        def renew() -> None:
            if self._clients.get(id_) is client:
                self._take(self._clients | {id_: self._client(id_, name)})

        client = HandleExpert(id_, name, self._settings, renew)
        return client

    def _take(self, clients: dict[int, HandleExpert]) -> None:
        before, self._clients = self._clients, clients
        self._service.set_clients(clients)
        for id_, client in before.items():
            if clients.get(id_) is not client:
                client.close()


def _state_of(folder: Location) -> str:
    """A hash of the names, sizes and times of the files in a folder."""
    files = folder.entries(recursive=True)
    states = sorted((file.location.name, file.size_bytes, file.modified_unix_seconds) for file in files)
    return hashlib.sha256(repr(states).encode()).hexdigest()[:16]
