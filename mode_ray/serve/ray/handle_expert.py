"""An expert that runs as an application of Ray Serve, as the ensemble service sees it.

Handles are resolved when they are first needed, and an application that is not there is an expert that is down: a
router must start, and stay up, whatever its experts do.

An expert is *silent* when a call waited to its deadline and nothing at all came back from the expert meanwhile: its
only replica died and is being replaced, or hangs. Further requests then count it as down at once, instead of each
waiting to its deadline, until a probe beside them is answered. An application that is not there is probed alike.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, RayServeException, RequestCancelledError
from ray.serve.handle import DeploymentHandle

from mode_ray.serve.service.expert_client import ExpertBusy, ExpertDescription, ExpertUnavailable

_PROBE_INTERVAL_SECONDS = 0.5
_WAITED_SHARE = 0.9  # of the deadline; calls that were given up earlier, because a client left, say nothing

_logger = logging.getLogger(__name__)


class OtherWeights(ExpertUnavailable):
    """A call was meant for other weights than the expert holds."""


class _Absent(ExpertUnavailable):
    """There is no application of the name."""


class HandleExpert:
    """A client of one expert application.

    Args:
        expert: The expert's id.
        application: Name of its application.
        deadline_seconds: How long callers wait for an answer; a probe of a silent expert is given as long.
        on_other_weights: Called once when the application turns out to hold other weights than it did when it was
            described: class embeddings that rest on the description are of no use any more.
        resolve: Finds the handle of an application; blocks, and raises where there is none.
    """

    def __init__(
        self,
        expert: int,
        application: str,
        deadline_seconds: float,
        on_other_weights: Callable[[], None],
        resolve: Callable[[str], DeploymentHandle[Any]] = serve.get_app_handle,
    ) -> None:
        self.id = expert
        self.application = application
        self._deadline_seconds = deadline_seconds
        self._on_other_weights = on_other_weights
        self._resolve = resolve
        self._handle: DeploymentHandle[Any] | None = None
        self._description: ExpertDescription | None = None
        self._last_answer_seconds = -1.0
        self._probe: asyncio.Task[None] | None = None
        self._closed = False

    async def describe(self) -> ExpertDescription:
        """What the expert is; asked of it once.

        Raises:
            ExpertUnavailable: It is down.
        """
        if self._description is None:
            self._description = cast(ExpertDescription, await self._call("describe"))
        return self._description

    async def encode_images(self, images_bhw3: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Unit-norm features of uint8 images, float32 [b, d].

        Raises:
            ExpertUnavailable: It is down, or its weights are other ones by now.
            ExpertBusy: Its queue is full.
        """
        source = (await self.describe()).source
        return cast("npt.NDArray[np.float32]", await self._call("encode_images", images_bhw3, source))

    async def encode_texts(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Unit-norm features of texts, float32 [l, d]. Errors as of `encode_images`."""
        source = (await self.describe()).source
        return cast("npt.NDArray[np.float32]", await self._call("encode_texts", list(texts), source))

    def close(self) -> None:
        """Stop probing, for good; calls under way go on."""
        self._closed = True
        if self._probe is not None:
            self._probe.cancel()

    async def _call(self, method: str, *arguments: object) -> object:
        if self._probe is not None and not self._probe.done():
            raise ExpertUnavailable(f"expert {self.id} ({self.application}) does not answer")
        began = time.monotonic()
        try:
            return await self._ask(method, *arguments)
        except _Absent:
            self._begin_probe()
            raise
        except asyncio.CancelledError:
            waited_seconds = time.monotonic() - began
            if self._last_answer_seconds < began and waited_seconds > _WAITED_SHARE * self._deadline_seconds:
                self._begin_probe()
            raise

    async def _ask(self, method: str, *arguments: object) -> object:
        try:
            handle = await self._resolved()
            response = getattr(handle, method).remote(*arguments)
            try:
                answer = await response
            except (asyncio.CancelledError, RequestCancelledError):
                response.cancel()
                if _being_cancelled():  # Ray Serve has made an error of its own of it
                    raise asyncio.CancelledError from None
                raise
        except OtherWeights as error:
            self._on_other_weights()
            raise ExpertUnavailable(str(error)) from None
        except (BackPressureError, ExpertBusy):
            self._last_answer_seconds = time.monotonic()
            raise ExpertBusy(f"expert {self.id} ({self.application}) has its queue full") from None
        except (RayError, RayServeException) as error:
            _logger.warning("expert %d (%s): %s", self.id, self.application, type(error).__name__)
            raise ExpertUnavailable(f"expert {self.id} ({self.application}): {type(error).__name__}") from error
        self._last_answer_seconds = time.monotonic()
        return answer

    async def _resolved(self) -> DeploymentHandle[Any]:
        if self._handle is None:
            try:
                self._handle = await asyncio.to_thread(self._resolve, self.application)
            except RayServeException:
                raise _Absent(f"expert {self.id}: there is no application {self.application}") from None
        return self._handle

    def _begin_probe(self) -> None:
        if not self._closed and (self._probe is None or self._probe.done()):
            self._probe = asyncio.get_running_loop().create_task(self._probe_until_it_answers())

    async def _probe_until_it_answers(self) -> None:
        while True:
            began = time.monotonic()
            with contextlib.suppress(TimeoutError, ExpertUnavailable, ExpertBusy):
                await asyncio.wait_for(self._ask("describe"), self._deadline_seconds)
                return
            await asyncio.sleep(max(0.0, _PROBE_INTERVAL_SECONDS - (time.monotonic() - began)))


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
