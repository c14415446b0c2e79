"""The clients of experts that run as an application of Ray Serve: one expert, or several with a common trunk.

A handle is resolved at its first use, and a missing application counts as an expert that is down: a router must start
and stay up whatever its experts do.

While its only replica is being replaced, or hangs, an application answers no call. Only the calls in flight wait for
it: it is probed in the background as soon as a replica died, the application is missing, or a call waits although the
application answered no other one meanwhile. Further calls wait briefly for the answer of the probe. Then they count
its experts as down immediately, until the probe is answered. An application that lives answers a probe at once,
however busy.

Small requests share calls, see `CoalescedCalls`.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import grpc  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt
from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import BackPressureError, RayServeException, RequestCancelledError
from ray.serve.handle import DeploymentHandle

from mode_ray.config.serve import ServeConfig
from mode_ray.serve.service.coalesced_calls import CoalescedCalls, Embeddings
from mode_ray.serve.service.expert_client import ExpertBusy, ExpertDescription, ExpertUnavailable

_PROBE_INTERVAL_SECONDS = 0.5
_SUSPECT_SECONDS = 0.5
# How long calls wait for a probe: briefly if a replica died, because another one answers at once; longer after
# silence, because experts may not answer a router for two to three seconds after another router died
# (docs/serving.md).
_DEATH_GRACE_SECONDS, _SILENCE_GRACE_SECONDS = 0.5, 3.0
_WAITED_SHARE = 0.9  # of the deadline; calls that were cancelled earlier, because a client left, do not count

_logger = logging.getLogger(__name__)


class OtherWeights(ExpertUnavailable):
    """A call names other weights than the expert has."""


class _Absent(ExpertUnavailable):
    """There is no application with the name."""


class _Died(ExpertUnavailable):
    """The replica that had the call is dead."""


class HandleExperts:
    """The experts of one application.

    Args:
        application: Its name.
        settings: Deadline of a call and of a probe, size of a call, and replicas of the application, each of which has
            one call of this router at a time.
        on_other_weights: Called when the application has other weights than those it described: class embeddings of
            the described weights are no longer valid.
        resolve: Finds the handle of an application; blocks, and raises if there is none.
    """

    def __init__(
        self,
        application: str,
        settings: ServeConfig,
        on_other_weights: Callable[[], None],
        resolve: Callable[[str], DeploymentHandle[Any]] = serve.get_app_handle,
    ) -> None:
        self.application = application
        self._deadline_seconds = settings.expert_deadline_seconds
        self._on_other_weights = on_other_weights
        self._resolve = resolve
        self._handle: DeploymentHandle[Any] | None = None
        self._descriptions: Mapping[int, ExpertDescription] | None = None
        self._last_answer_seconds = -1.0
        self._probe: asyncio.Task[None] | None = None
        self._down_from_seconds = 0.0  # from then on, calls fail if the running probe is not answered
        self._closed = False
        limits = settings.max_batch_size, settings.expert_replicas.max, settings.expert_deadline_seconds
        self._images = CoalescedCalls(self._encode_images, *limits)
        self._texts = CoalescedCalls(self._encode_texts, *limits)

    def client(self, expert: int, number: int | None = None) -> "HandleExpert":
        """The client of one expert.

        Args:
            expert: Its id.
            number: Its number in the application; None if the application has a single expert.
        """
        return HandleExpert(expert, number, self)

    async def describe(self) -> Mapping[int, ExpertDescription]:
        """The experts of the application by their numbers in it; the application is asked once."""
        if self._descriptions is None:
            self._descriptions = cast("Mapping[int, ExpertDescription]", await self._call("describe"))
        return self._descriptions

    async def encode_images(self, number: int, images_bhw3: npt.NDArray[np.uint8]) -> Embeddings:
        """One expert's embeddings; ExpertUnavailable also if the application has other weights by now."""
        await self._wait_for_probe()
        return await self._images.encode(images_bhw3, number)

    async def encode_texts(self, number: int, texts: Sequence[str]) -> Embeddings:
        """One expert's embeddings of texts; errors as `encode_images`."""
        await self._wait_for_probe()
        return await self._texts.encode(texts, number)

    def close(self) -> None:
        """Stop probing; running calls continue."""
        self._closed = True
        if self._probe is not None:
            self._probe.cancel()

    async def _encode_images(
        self, images_bhw3: npt.NDArray[np.uint8], numbers: Sequence[int]
    ) -> Mapping[int, Embeddings]:
        return await self._encode("encode_images", images_bhw3, numbers)

    async def _encode_texts(self, texts: Sequence[str], numbers: Sequence[int]) -> Mapping[int, Embeddings]:
        return await self._encode("encode_texts", list(texts), numbers)

    async def _encode(self, method: str, inputs: object, numbers: Sequence[int]) -> Mapping[int, Embeddings]:
        described = await self.describe()
        sources = {number: described[number].source for number in numbers}
        return cast("Mapping[int, Embeddings]", await self._call(method, inputs, sources))

    async def _call(self, method: str, *arguments: object) -> object:
        await self._wait_for_probe()
        began = time.monotonic()
        suspicion = asyncio.get_running_loop().call_later(_SUSPECT_SECONDS, self._suspect, began)
        try:
            return await self._ask(method, *arguments)
        except _Absent:
            self._begin_probe(0.0)
            raise
        except _Died:
            self._begin_probe(_DEATH_GRACE_SECONDS)
            raise
        except asyncio.CancelledError:
            waited_seconds = time.monotonic() - began
            if self._last_answer_seconds < began and waited_seconds > _WAITED_SHARE * self._deadline_seconds:
                self._begin_probe(0.0)
            raise
        finally:
            suspicion.cancel()

    async def _wait_for_probe(self) -> None:
        """Return when no probe runs.

        Raises:
            ExpertUnavailable: The running probe has not been answered in time.
        """
        if self._probe is None or self._probe.done():
            return
        await asyncio.wait((self._probe,), timeout=max(0.0, self._down_from_seconds - time.monotonic()))
        if not self._probe.done():
            raise ExpertUnavailable(self._silence())

    def _suspect(self, began_seconds: float) -> None:
        """Probe the application if it answered nothing since a call began that is still waiting."""
        if self._last_answer_seconds < began_seconds:
            self._begin_probe(_SILENCE_GRACE_SECONDS)

    async def _ask(self, method: str, *arguments: object) -> object:
        try:
            handle = await self._resolved()
            response = getattr(handle, method).remote(*arguments)
            try:
                answer = await response
            except (asyncio.CancelledError, RequestCancelledError):
                response.cancel()
                if _being_cancelled():  # Ray Serve raised its own error instead
                    raise asyncio.CancelledError from None
                raise
        except OtherWeights as error:
            self._on_other_weights()
            raise ExpertUnavailable(str(error)) from None
        except (BackPressureError, ExpertBusy):
            self._last_answer_seconds = time.monotonic()
            raise ExpertBusy(f"the queue of {self.application} is full") from None
        except (RayError, RayServeException, grpc.RpcError) as error:
            _logger.warning("%s: %s", self.application, type(error).__name__)
            kind = _Died if isinstance(error, RayActorError) else ExpertUnavailable
            raise kind(f"{self.application}: {type(error).__name__}") from error
        self._last_answer_seconds = time.monotonic()
        return answer

    async def _resolved(self) -> DeploymentHandle[Any]:
        if self._handle is None:
            try:
                self._handle = await asyncio.to_thread(self._resolve, self.application)
            except RayServeException:
                raise _Absent(f"there is no application {self.application}") from None
        return self._handle

    def _begin_probe(self, grace_seconds: float) -> None:
        """Probe the application; calls wait for that at most as long as the grace."""
        down_from_seconds = time.monotonic() + grace_seconds
        if self._closed:
            return
        if self._probe is None or self._probe.done():
            self._down_from_seconds = down_from_seconds
            self._probe = asyncio.get_running_loop().create_task(self._probe_until_it_answers())
        else:
            self._down_from_seconds = min(self._down_from_seconds, down_from_seconds)
        asyncio.get_running_loop().call_later(grace_seconds, self._fail_waiting)

    def _fail_waiting(self) -> None:
        """End the requests that wait for a call, if the probe has not been answered."""
        if self._probe is not None and not self._probe.done():
            self._images.fail_waiting(self._silence())
            self._texts.fail_waiting(self._silence())

    def _silence(self) -> str:
        return f"{self.application} does not answer"

    async def _probe_until_it_answers(self) -> None:
        while True:
            began = time.monotonic()
            with contextlib.suppress(TimeoutError, ExpertUnavailable, ExpertBusy):
                await asyncio.wait_for(self._ask("describe"), self._deadline_seconds)
                return
            await asyncio.sleep(max(0.0, _PROBE_INTERVAL_SECONDS - (time.monotonic() - began)))


class HandleExpert:
    """The `ExpertClient` of one expert of an application.

    Args:
        expert: The expert's id.
        number: Its number in the application; None if the application has a single expert.
        experts: The application.
    """

    def __init__(self, expert: int, number: int | None, experts: HandleExperts) -> None:
        self.id = expert
        self._number = number
        self._experts = experts

    async def describe(self) -> ExpertDescription:
        """See `ExpertClient`; the application is asked once."""
        return (await self._described())[1]

    async def encode_images(self, images_bhw3: npt.NDArray[np.uint8]) -> Embeddings:
        """See `ExpertClient`; ExpertUnavailable also if the application has other weights by now."""
        number, _ = await self._described()
        return await self._experts.encode_images(number, images_bhw3)

    async def encode_texts(self, texts: Sequence[str]) -> Embeddings:
        """See `ExpertClient`; errors as `encode_images`."""
        number, _ = await self._described()
        return await self._experts.encode_texts(number, texts)

    async def _described(self) -> tuple[int, ExpertDescription]:
        described = await self._experts.describe()
        number = next(iter(described)) if self._number is None else self._number
        if number not in described:
            raise ExpertUnavailable(f"{self._experts.application} has no expert {number}")
        return number, described[number]


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
