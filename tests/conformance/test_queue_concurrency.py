"""Many workers on one queue: every item is handled once at a time, and none is lost."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from tests.support import make
from tests.support.api import Api
from tests.support.queues import SHORT, OwnQueue, receipts
from wfe.persistence.v1.queue_item_pb2 import Acknowledgement

WORKERS = 32
ITEMS = 2000


@pytest.fixture
async def own(api: Api) -> AsyncIterator[OwnQueue]:
    queue = OwnQueue(api)
    yield queue
    await queue.clear()


async def filled(own: OwnQueue, count: int) -> set[str]:
    """The ids of so many items."""
    ids = [f"{at:04}" for at in range(count)]
    for start in range(0, count, 1000):
        await own.api.enqueue(*(make.item(own.name, id=id_) for id_ in ids[start : start + 1000]))
    return set(ids)


async def test_each_item_is_handled_once(own: OwnQueue) -> None:
    ids = await filled(own, ITEMS)
    handled: Counter[str] = Counter()
    epochs: list[int] = []

    async def worker(size: int) -> None:
        done: list[Any] = []
        while True:
            answer = await own.api.dequeue(
                queues=[own.name],
                max_items=size,
                lease_duration=Duration(seconds=600),
                acknowledge=done,
            )
            if not answer.items:
                # Others may be at it still; nobody gives anything back.
                return
            handled.update(claim.item.id for claim in answer.items)
            epochs.extend(claim.epoch for claim in answer.items)
            done = [Acknowledgement(receipt=each) for each in receipts(answer.items)]

    await asyncio.gather(*(worker(1 + at % 5) for at in range(WORKERS)))
    assert set(handled) == ids
    assert set(handled.values()) == {1}
    assert len(set(epochs)) == ITEMS
    assert await own.items() == []


async def test_items_of_lost_workers_are_handled_by_others(own: OwnQueue) -> None:
    ids = await filled(own, 300)
    handled: Counter[str] = Counter()
    lost = [await own.dequeue(10, lease_duration=SHORT) for _ in range(10)]
    assert sum(map(len, lost)) == 100

    async def worker() -> None:
        while len(handled) < len(ids):
            for claim in await own.dequeue(3, wait=Duration(nanos=200_000_000)):
                await own.api.acknowledge(claim.receipt)
                handled[claim.item.id] += 1

    async with asyncio.timeout(60):
        await asyncio.gather(*(worker() for _ in range(WORKERS)))
    assert set(handled) == ids
    assert set(handled.values()) == {1}
    assert await own.items() == []


async def test_enqueued_by_many_at_once_there_is_one_item(own: OwnQueue) -> None:
    for round_ in range(10):
        ids = [f"{round_}-{at}" for at in range(20)]
        await asyncio.gather(
            *(
                own.api.enqueue(*(make.item(own.name, id=id_) for id_ in order))
                for order in (ids, ids[::-1], ids[10:] + ids[:10], ids)
            )
        )
    assert (await own.stats()).waiting == 200


async def test_enqueued_while_it_is_acknowledged_an_item_is_never_lost(own: OwnQueue) -> None:
    """It is handled at least once after each enqueue."""
    enqueued = handled = 0
    stop = False

    async def producer() -> None:
        nonlocal enqueued, stop
        for _ in range(200):
            await own.enqueue("a", payload_json=str(enqueued + 1))
            enqueued += 1
        stop = True

    async def consumer() -> None:
        nonlocal handled
        while True:
            done = stop
            claims = await own.dequeue(1, lease_duration=Duration(seconds=600))
            for claim in claims:
                handled = max(handled, int(claim.item.payload_json))
                await own.api.acknowledge(claim.receipt)
            if done and not claims and not await own.items():
                return

    async with asyncio.timeout(60):
        await asyncio.gather(producer(), *(consumer() for _ in range(4)))
    assert handled == enqueued == 200
