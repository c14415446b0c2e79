"""Many small requests to experts in few calls.

A call costs the same whether it holds one image or thirty, and on both sides. At most a few calls are in flight. The
requests that arrive meanwhile form the next call, so calls grow with the load, and a single client never waits for
another one. A call that takes long, or is lost, does not hold up the next one for more than half a second.

Experts with a common trunk are asked in one call. Its inputs are sent once for all of them, and the answer has the
embeddings of every expert that any of its requests asks for.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar, cast

import numpy as np
import numpy.typing as npt

from mode_ray.serve.service.expert_client import ExpertBusy, ExpertUnavailable

_PATIENCE_SECONDS, _PATIENCE_SHARE = 0.5, 0.25  # of the deadline, if that is less

Embeddings = npt.NDArray[np.float32]
_Input = TypeVar("_Input", npt.NDArray[np.uint8], Sequence[str])


@dataclass(eq=False)
class _Waiter(Generic[_Input]):
    """A request to one expert: its inputs, and its embeddings to come. The future is cancelled with its caller."""

    inputs: _Input
    expert: int
    answer: "asyncio.Future[Embeddings]"


class CoalescedCalls(Generic[_Input]):
    """Joins the inputs of several requests. All methods must be called from one event loop.

    Args:
        send: One call: inputs and experts to each expert's unit rows of images or texts.
        most_inputs: Images or texts of one call. A request with as many goes alone and at once; the expert divides it.
        most_calls: Calls in flight; those that take longer than half a second do not count.
        deadline_seconds: Of one call.
    """

    def __init__(
        self,
        send: Callable[[_Input, Sequence[int]], Awaitable[Mapping[int, Embeddings]]],
        most_inputs: int,
        most_calls: int,
        deadline_seconds: float,
    ) -> None:
        self._send: Callable[[_Input, Sequence[int]], Awaitable[Mapping[int, Embeddings]]] = send
        self._most_inputs = most_inputs
        self._most_calls = most_calls
        self._deadline_seconds = deadline_seconds
        self._patience_seconds = min(_PATIENCE_SECONDS, _PATIENCE_SHARE * deadline_seconds)
        self._waiting: deque[_Waiter[_Input]] = deque()
        self._large: deque[_Waiter[_Input]] = deque()
        self._calls: set[asyncio.Task[None]] = set()

    async def encode(self, inputs: _Input, expert: int) -> Embeddings:
        """One expert's embeddings of one request.

        Requests of several experts for the same array, or for the same texts, share a place in a call.
        Cancelling it takes only this request out of its call. The call itself is cancelled when nobody waits for it.

        Raises:
            ExpertUnavailable: The call failed, or was not answered in time.
            ExpertBusy: The expert's queue is full.
        """
        waiter = _Waiter(inputs, expert, asyncio.get_running_loop().create_future())
        (self._large if len(inputs) >= self._most_inputs else self._waiting).append(waiter)
        # Not at once: the other experts are asked in the same turn of the event loop.
        asyncio.get_running_loop().call_soon(self._begin_one)
        return await waiter.answer

    def fail_waiting(self, reason: str) -> None:
        """End the requests that are not part of a call yet, with ExpertUnavailable."""
        while self._waiting:
            _fail(self._waiting.popleft(), ExpertUnavailable(reason))

    def _begin_one(self) -> None:
        """Start what has just arrived, if a call is free for it. The next arrivals may find another one."""
        if self._large:
            if batch := _take_same(self._large):
                self._start(batch)
        elif self._waiting and len(self._calls) < self._most_calls and (batch := _take_same(self._waiting)):
            self._start_counted(batch)

    def _begin_waiting(self) -> None:
        while len(self._calls) < self._most_calls and (batch := self._next_batch()):
            self._start_counted(batch)

    def _start_counted(self, batch: Sequence[_Waiter[_Input]]) -> None:
        call = self._start(batch)
        self._calls.add(call)
        call.add_done_callback(self._release)
        asyncio.get_running_loop().call_later(self._patience_seconds, self._release, call)

    def _start(self, batch: Sequence[_Waiter[_Input]]) -> "asyncio.Task[None]":
        call = asyncio.get_running_loop().create_task(self._call(batch))
        cancel_if_alone = partial(_cancel_if_alone, batch, call)
        for waiter in batch:
            waiter.answer.add_done_callback(cancel_if_alone)
        return call

    def _release(self, call: "asyncio.Task[None]") -> None:
        if call in self._calls:
            self._calls.remove(call)
            self._begin_waiting()

    def _next_batch(self) -> list[_Waiter[_Input]]:
        """The oldest requests that fit into one call; images of one size."""
        batch: list[_Waiter[_Input]] = []
        places: set[object] = set()
        size = 0
        while self._waiting:
            waiter = self._waiting[0]
            needed = 0 if _identity(waiter.inputs) in places else len(waiter.inputs)
            if batch and (size + needed > self._most_inputs or _kind(waiter.inputs) != _kind(batch[0].inputs)):
                break
            self._waiting.popleft()
            if not waiter.answer.done():
                batch.append(waiter)
                places.add(_identity(waiter.inputs))
                size += needed
        return batch

    async def _call(self, batch: Sequence[_Waiter[_Input]]) -> None:
        distinct = {_identity(waiter.inputs): waiter.inputs for waiter in batch}
        experts = sorted({waiter.expert for waiter in batch})
        try:
            async with asyncio.timeout(self._deadline_seconds):
                rows_by_expert = await self._send(_joined(list(distinct.values())), experts)
        except TimeoutError:
            _fail_all(batch, ExpertUnavailable(f"no answer within {self._deadline_seconds:g} seconds"))
        except Exception as error:  # noqa: BLE001  (it belongs to the requests, which raise it)
            _fail_all(batch, error)
        else:
            ends = np.cumsum([len(inputs) for inputs in distinct.values()])
            parts = {expert: np.split(rows_bd, ends[:-1]) for expert, rows_bd in rows_by_expert.items()}
            places = {identity: place for place, identity in enumerate(distinct)}
            for waiter in batch:
                if not waiter.answer.done():
                    waiter.answer.set_result(parts[waiter.expert][places[_identity(waiter.inputs)]])


def _cancel_if_alone(
    batch: Sequence[_Waiter[_Input]], call: "asyncio.Task[None]", _: "asyncio.Future[Embeddings]"
) -> None:
    if all(waiter.answer.done() for waiter in batch):
        call.cancel()


def _take_same(queue: deque[_Waiter[_Input]]) -> list[_Waiter[_Input]]:
    """Remove the oldest request from a queue, with those of other experts for the same inputs."""
    first = _identity(queue[0].inputs)
    same = [waiter for waiter in queue if _identity(waiter.inputs) == first]
    for waiter in same:
        queue.remove(waiter)
    return [waiter for waiter in same if not waiter.answer.done()]


def _identity(inputs: npt.NDArray[np.uint8] | Sequence[str]) -> object:
    """Equal for inputs that are sent once: the same array, or equal texts."""
    return id(inputs) if isinstance(inputs, np.ndarray) else tuple(inputs)


def _kind(inputs: npt.NDArray[np.uint8] | Sequence[str]) -> object:
    return inputs.shape[1:] if isinstance(inputs, np.ndarray) else None


def _joined(parts: Sequence[_Input]) -> _Input:
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    return cast(_Input, [text for texts in parts for text in texts])


def _fail_all(batch: Sequence[_Waiter[_Input]], error: Exception) -> None:
    for waiter in batch:
        # An exception holds the traceback of where it was raised last, so each request needs one of its own.
        copy = type(error)(str(error)) if isinstance(error, ExpertBusy | ExpertUnavailable) else error
        _fail(waiter, copy)


def _fail(waiter: _Waiter[_Input], error: Exception) -> None:
    if not waiter.answer.done():
        waiter.answer.set_exception(error)
