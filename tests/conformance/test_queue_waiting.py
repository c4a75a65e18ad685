"""Dequeue with `wait`: a call that finds nothing waits for what others enqueue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from tests.support import make
from tests.support.api import Api
from tests.support.expect import fails
from tests.support.queues import SHORT, OwnQueue, ids
from wfe.persistence.v1.queue_pb2 import DequeueRequest, DequeueResponse, QueueKind

LONG = Duration(seconds=60)


@pytest.fixture
async def own(api: Api) -> AsyncIterator[OwnQueue]:
    queue = OwnQueue(api)
    yield queue
    await queue.clear()


def waiting(api: Api, *queues: OwnQueue, **fields: Any) -> asyncio.Task[DequeueResponse]:
    """A call that waits, for as long as the test may take."""
    names = [queue.name for queue in queues]
    return asyncio.ensure_future(api.dequeue(**({"queues": names, "wait": LONG} | fields)))


async def settled(task: asyncio.Task[DequeueResponse]) -> None:
    """Until the call is likely to have looked and to wait."""
    for _ in range(20):
        await asyncio.sleep(0.01)
        assert not task.done()


async def test_item_that_is_there_is_not_waited_for(own: OwnQueue) -> None:
    await own.enqueue("a")
    assert ids([await own.take(wait=LONG)]) == ["a"]


async def test_wait_ends_with_nothing(own: OwnQueue) -> None:
    assert await own.dequeue(wait=SHORT) == []


async def test_enqueued_item_ends_a_wait(own: OwnQueue) -> None:
    task = waiting(own.api, own)
    await settled(task)
    await own.enqueue("a")
    assert ids((await task).items) == ["a"]


async def test_wait_is_for_any_of_the_queues(api: Api, own: OwnQueue) -> None:
    other = OwnQueue(api)
    task = waiting(api, other, own)
    await settled(task)
    await own.enqueue("a")
    assert ids((await task).items) == ["a"]


async def test_delayed_item_ends_a_wait_at_its_time(own: OwnQueue) -> None:
    await own.enqueue("a", visible_time=make.from_now(0.5))
    assert ids((await waiting(own.api, own)).items) == ["a"]


async def test_item_enqueued_for_later_ends_a_wait_at_its_time(own: OwnQueue) -> None:
    task = waiting(own.api, own)
    await settled(task)
    await own.enqueue("a", visible_time=make.from_now(0.5))
    assert ids((await task).items) == ["a"]


async def test_expired_lease_ends_a_wait(own: OwnQueue) -> None:
    await own.taken("a", lease_duration=Duration(nanos=500_000_000))
    assert ids((await waiting(own.api, own)).items) == ["a"]


async def returned(own: OwnQueue, receipt: str) -> None:
    await own.api.return_items(receipt)


async def acknowledged(own: OwnQueue, receipt: str) -> None:
    await own.enqueue("a")
    await own.api.acknowledge(receipt)


async def settled_by_dequeue(own: OwnQueue, receipt: str) -> None:
    await own.api.dequeue(queues=[make.queue()], return_items=[{"receipt": receipt}])


@pytest.mark.parametrize("comes_back", [returned, acknowledged, settled_by_dequeue])
async def test_item_that_comes_back_ends_a_wait(
    own: OwnQueue, comes_back: Callable[[OwnQueue, str], Awaitable[None]]
) -> None:
    claim = await own.taken("a", lease_duration=Duration(seconds=3600))
    task = waiting(own.api, own)
    await settled(task)
    await comes_back(own, claim.receipt)
    assert ids((await task).items) == ["a"]


async def test_requeued_item_ends_a_wait(own: OwnQueue) -> None:
    await own.enqueue("a", visible_time=make.from_now(3600))
    task = waiting(own.api, own)
    await settled(task)
    await own.api.requeue_items(queue=own.name, ids=["a"])
    assert ids((await task).items) == ["a"]


@pytest.mark.parametrize("by", ["release", "expiry"])
async def test_item_whose_lock_becomes_free_ends_a_wait(api: Api, own: OwnQueue, by: str) -> None:
    resource = make.new_id("lock")
    ttl = Duration(seconds=3600) if by == "release" else Duration(nanos=500_000_000)
    lock = await api.acquire_lock(resource=resource, ttl=ttl)
    await own.enqueue("a", blocked_by=[resource])
    task = waiting(api, own)
    await settled(task)
    if by == "release":
        await api.release_lock(lock.token)
    assert ids((await task).items) == ["a"]


async def test_each_item_ends_one_wait(own: OwnQueue) -> None:
    tasks = [waiting(own.api, own) for _ in range(20)]
    await settled(tasks[-1])
    await own.api.enqueue(*(make.item(own.name) for _ in range(10)))
    await own.api.enqueue(*(make.item(own.name) for _ in range(10)))
    answers = await asyncio.gather(*tasks)
    found = [id_ for answer in answers for id_ in ids(answer.items)]
    assert len(found) == len(set(found)) == 20
    assert {len(answer.items) for answer in answers} == {1}


async def test_item_goes_to_another_if_who_waits_hangs_up(own: OwnQueue) -> None:
    gone, task = waiting(own.api, own), waiting(own.api, own)
    await settled(task)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    await settled(task)
    await own.enqueue("a")
    assert ids((await task).items) == ["a"]


async def test_what_is_settled_is_done_before_the_wait(own: OwnQueue) -> None:
    claim = await own.taken("a")
    task = waiting(own.api, own, acknowledge=[{"receipt": claim.receipt}])
    await settled(task)
    assert await own.items() == []
    await own.enqueue("b")
    assert ids((await task).items) == ["b"]


async def test_nobody_waits_if_something_is_lost(own: OwnQueue) -> None:
    claim = await own.taken("a")
    await own.api.acknowledge(claim.receipt)
    with fails("FAILED_PRECONDITION", "LEASE_LOST"):
        await waiting(own.api, own, acknowledge=[{"receipt": claim.receipt}])


async def test_wait_ends_before_the_deadline(own: OwnQueue) -> None:
    await own.configure(QueueKind.QUEUE_KIND_WORKFLOW)
    instance = make.instance(next_execution=0)
    await own.api.create_new_workflow(instance)
    claim = await own.taken(instance.id)
    request = DequeueRequest(
        queues=[make.queue()],
        wait=LONG,
        acknowledge=[{"receipt": claim.receipt, "confirmed": True}],  # type: ignore[list-item]
    )
    answer = await own.api.queues.Dequeue(request, timeout=2)
    assert list(answer.items) == []
    assert list(answer.returned_receipts) == [claim.receipt]
    await own.api.delete_workflow(instance.id)


async def test_thousand_waiting_calls_keep_nobody_out(api: Api, own: OwnQueue) -> None:
    """On one connection, which may have 1,000 calls in progress by default."""
    try:
        tasks = [waiting(api, own) for _ in range(1000)]
        for _ in range(10):
            assert (await own.stats()).waiting == 0
        await own.api.enqueue(*(make.item(own.name) for _ in range(1000)))
        answers = await asyncio.gather(*tasks)
    except grpc.aio.AioRpcError as exc:
        pytest.skip(f"the target limits calls: {exc.code()}")
    found = [id_ for answer in answers for id_ in ids(answer.items)]
    assert len(found) == len(set(found)) == 1000
