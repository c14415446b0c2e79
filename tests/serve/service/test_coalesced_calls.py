"""Small requests share calls; each has its own answer, deadline and error."""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from mode_ray.serve.service.coalesced_calls import CoalescedCalls
from mode_ray.serve.service.expert_client import ExpertBusy, ExpertUnavailable

MOST = 8
Images = npt.NDArray[np.uint8]


def images(value: int, count: int = 1, size: int = 2) -> Images:
    return np.full((count, size, size, 3), value, np.uint8)


class Expert:
    """Answers every image with its value, when the test says so."""

    def __init__(self) -> None:
        self.calls: list[Images] = []
        self.experts: list[list[int]] = []
        self.answers: list[asyncio.Future[None]] = []
        self.cancelled = 0

    async def encode(self, images_bhw3: Images, experts: Sequence[int]) -> dict[int, npt.NDArray[np.float32]]:
        self.calls.append(images_bhw3)
        self.experts.append(list(experts))
        self.answers.append(asyncio.get_running_loop().create_future())
        try:
            await self.answers[-1]
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        values_bd = images_bhw3[:, 0, 0, :1].astype(np.float32)
        return {expert: values_bd + 100.0 * expert for expert in experts}

    @property
    def sizes(self) -> list[int]:
        return list(map(len, self.calls))


async def begun(*requests: Coroutine[Any, Any, Any]) -> list["asyncio.Task[Any]"]:
    tasks = [asyncio.create_task(request) for request in requests]
    await settled()
    return tasks


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def coalesced(expert: Expert, deadline_seconds: float = 10.0, calls: int = 1) -> CoalescedCalls[Images]:
    return CoalescedCalls(expert.encode, MOST, calls, deadline_seconds)


def test_a_single_request_is_one_call_at_once() -> None:
    async def ask() -> None:
        expert = Expert()
        (request,) = await begun(coalesced(expert).encode(images(7), 0))
        assert expert.sizes == [1]
        expert.answers[0].set_result(None)
        assert (await request).tolist() == [[7]]

    asyncio.run(ask())


def test_what_arrives_during_a_call_goes_as_one_and_is_split_again() -> None:
    async def ask() -> None:
        expert = Expert()
        joined = coalesced(expert)
        sizes = enumerate((1, 2, 1, 3, 4))
        requests = await begun(*(joined.encode(images(value, count), 0) for value, count in sizes))
        assert expert.sizes == [1]
        for call in range(3):
            expert.answers[call].set_result(None)
            await settled()
        assert expert.sizes == [1, 6, 4]  # at most MOST images
        answers = [(await request).ravel().tolist() for request in requests]
        assert answers == [[0], [1, 1], [2], [3, 3, 3], [4, 4, 4, 4]]

    asyncio.run(ask())


def test_a_request_as_large_as_a_call_goes_alone_and_delays_no_other() -> None:
    async def ask() -> None:
        expert = Expert()
        joined = coalesced(expert)
        large, small = await begun(joined.encode(images(1, 64), 0), joined.encode(images(2), 0))
        assert expert.sizes == [64, 1]
        expert.answers[1].set_result(None)
        assert (await small).tolist() == [[2]]
        assert not large.done()
        large.cancel()

    asyncio.run(ask())


def test_images_of_another_size_are_another_call() -> None:
    async def ask() -> None:
        expert = Expert()
        joined = coalesced(expert)
        await begun(joined.encode(images(0), 0), joined.encode(images(1), 0), joined.encode(images(2, size=3), 0))
        expert.answers[0].set_result(None)
        await settled()
        expert.answers[1].set_result(None)
        await settled()
        assert [call.shape for call in expert.calls] == [(1, 2, 2, 3), (1, 2, 2, 3), (1, 3, 3, 3)]

    asyncio.run(ask())


def test_one_wrong_one_late_and_one_cancelled_request_leave_the_others_alone() -> None:
    async def ask() -> None:
        expert = Expert()
        joined = coalesced(expert)

        async def late() -> None:
            async with asyncio.timeout(0.01):
                await joined.encode(images(1), 0)

        first, late_one, left, wrong, right = await begun(
            joined.encode(images(0), 0),
            late(),
            joined.encode(images(2), 0),
            joined.encode(np.zeros((1, 5), np.uint8), 0),
            joined.encode(images(4), 0),
        )
        expert.answers[0].set_result(None)
        await settled()
        left.cancel()
        with pytest.raises(TimeoutError):
            await late_one
        while not right.done():
            await settled()
            for answer in expert.answers:
                if not answer.done():
                    answer.set_result(None)
        assert (await first).tolist() == [[0]]
        with pytest.raises(IndexError):
            await wrong
        assert (await right).tolist() == [[4]]

    asyncio.run(ask())


def test_a_call_is_cancelled_when_nobody_waits_for_it() -> None:
    async def ask() -> None:
        expert = Expert()
        joined = coalesced(expert)
        first, second, third = await begun(*(joined.encode(images(value), 0) for value in range(3)))
        expert.answers[0].set_result(None)
        await first
        await settled()
        second.cancel()
        await settled()
        assert (expert.sizes, expert.cancelled) == ([1, 2], 0)
        third.cancel()
        await settled()
        assert expert.cancelled == 1

    asyncio.run(ask())


@pytest.mark.parametrize("error", [ExpertBusy("full"), ExpertUnavailable("gone")])
def test_an_error_reaches_everybody_in_the_call(error: Exception) -> None:
    async def ask() -> None:
        expert = Expert()
        joined = coalesced(expert)
        requests = await begun(*(joined.encode(images(value), 0) for value in range(3)))
        expert.answers[0].set_result(None)
        await settled()
        expert.answers[1].set_exception(error)
        for request in requests[1:]:
            with pytest.raises(type(error), match=str(error)):
                await request
        (later,) = await begun(joined.encode(images(9), 0))
        expert.answers[2].set_result(None)
        assert (await later).tolist() == [[9]]

    asyncio.run(ask())


def test_a_call_has_a_deadline() -> None:
    async def ask() -> None:
        with pytest.raises(ExpertUnavailable, match=r"no answer within 0\.01 seconds"):
            await coalesced(Expert(), 0.01).encode(images(0), 0)

    asyncio.run(ask())


def test_a_lost_call_delays_the_next_one_for_half_a_second_only() -> None:
    async def ask() -> None:
        expert = Expert()
        joined = coalesced(expert)
        lost, waits = await begun(joined.encode(images(0), 0), joined.encode(images(1), 0))
        assert expert.sizes == [1]
        await asyncio.sleep(0.6)
        expert.answers[1].set_result(None)
        assert (await waits).tolist() == [[1]]
        lost.cancel()

    asyncio.run(ask())


def test_requests_that_wait_can_be_ended() -> None:
    async def ask() -> None:
        expert = Expert()
        joined = coalesced(expert)
        in_flight, waits = await begun(joined.encode(images(0), 0), joined.encode(images(1), 0))
        joined.fail_waiting("it does not answer")
        with pytest.raises(ExpertUnavailable, match="it does not answer"):
            await waits
        expert.answers[0].set_result(None)
        assert (await in_flight).tolist() == [[0]]

    asyncio.run(ask())


def test_as_many_calls_as_replicas() -> None:
    async def ask() -> None:
        expert = Expert()
        joined = coalesced(expert, calls=2)
        requests = await begun(*(joined.encode(images(value), 0) for value in range(4)))
        assert expert.sizes == [1, 1]
        for answer in expert.answers:
            answer.set_result(None)
        await settled()
        assert expert.sizes == [1, 1, 2]
        for request in requests:
            request.cancel()

    asyncio.run(ask())


def test_experts_are_asked_for_the_same_images_in_one_call() -> None:
    async def run() -> None:
        experts = Expert()
        calls = coalesced(experts)
        small, large = images(1), images(2, MOST)
        tasks = await begun(
            *(calls.encode(small, expert) for expert in (0, 2)),
            *(calls.encode(large, expert) for expert in (0, 1)),
            calls.encode(images(3), 1),
        )
        assert sorted(zip(experts.sizes, experts.experts, strict=True)) == [(1, [0, 2]), (MOST, [0, 1])]
        for answer in experts.answers:
            answer.set_result(None)
        await settled()
        assert (experts.sizes[2], experts.experts[2]) == (1, [1])
        experts.answers[2].set_result(None)
        found = await asyncio.gather(*tasks)
        assert [float(rows_bd[0, 0]) for rows_bd in found] == [1.0, 201.0, 2.0, 102.0, 103.0]
        assert [len(rows_bd) for rows_bd in found] == [1, 1, MOST, MOST, 1]

    asyncio.run(run())
