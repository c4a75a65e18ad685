"""Queues while servers come, go, and are killed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from google.protobuf.duration_pb2 import Duration

from tests.support import make
from tests.support.api import Api, connect
from tests.support.queues import OwnQueue, ids
from tests.support.server import ServerProcess
from wfe.persistence.v1.queue_pb2 import DequeueResponse
from wfe_persistence_client import LeaseLost, PersistenceProvider, QueueItem
from wfe_persistence_client import connect as connect_provider

LONG = Duration(seconds=60)
LEASE = timedelta(seconds=5)
Start = Callable[..., ServerProcess]


@pytest.fixture
async def start(tmp_path: Path, database_url: str) -> AsyncIterator[Start]:
    """Starts a server; what is still running at the end is killed."""
    servers: list[ServerProcess] = []

    def start(*arguments: str) -> ServerProcess:
        log = tmp_path / f"log{len(servers)}"
        server = ServerProcess(log, "--db-url", database_url, *arguments)
        servers.append(server)
        return server.__enter__()

    yield start
    for server in servers:
        server.kill()
        assert "bug" not in server.log()
        assert "Traceback" not in server.log()


async def waits(tasks: Iterable[asyncio.Task[DequeueResponse]]) -> None:
    """Until these calls are likely to wait."""
    done, _ = await asyncio.wait(list(tasks), timeout=0.5)
    assert not done


async def test_item_enqueued_through_another_server_ends_a_wait(start: Start) -> None:
    first, second = start(), start()
    async with connect(first.address) as here, connect(second.address) as there:
        queue = OwnQueue(Api(here))
        task = asyncio.create_task(queue.api.dequeue(queues=[queue.name], wait=LONG))
        await waits([task])
        await OwnQueue(Api(there), queue.name).enqueue("a")
        async with asyncio.timeout(10):
            assert ids((await task).items) == ["a"]


async def test_waiting_calls_hold_no_connection(start: Start, database_url: str) -> None:
    server = start("--pool-size", "1")
    async with connect(server.address) as channel:
        queue = OwnQueue(Api(channel))
        tasks = [
            asyncio.create_task(queue.api.dequeue(queues=[queue.name], wait=LONG))
            for _ in range(50)
        ]
        await waits(tasks)
        for _ in range(20):
            await queue.stats()
        async with (
            await psycopg.AsyncConnection.connect(database_url, autocommit=True) as other,
            asyncio.timeout(10),
        ):
            # At a given moment a connection may be at work, for a look at what is new; or be
            # vacuuming. What a waiting call held would never be idle.
            while True:
                cursor = await other.execute(
                    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                    " AND pid <> pg_backend_pid() AND state <> 'idle'"
                )
                if await cursor.fetchone() == (0,):
                    break
                await asyncio.sleep(0.05)
        await queue.api.enqueue(*(make.item(queue.name) for _ in tasks))
        answers = await asyncio.gather(*tasks)
        assert len({id_ for answer in answers for id_ in ids(answer.items)}) == 50


async def test_a_server_that_stops_answers_who_waits(start: Start) -> None:
    server = start()
    async with connect(server.address) as channel:
        queue = OwnQueue(Api(channel))
        claim = await queue.taken("a")
        task = asyncio.create_task(
            queue.api.dequeue(
                queues=[queue.name], wait=LONG, acknowledge=[{"receipt": claim.receipt}]
            )
        )
        await waits([task])
        stopping = asyncio.create_task(asyncio.to_thread(server.stop))
        async with asyncio.timeout(20):
            assert list((await task).items) == []
            assert await stopping == 0


async def test_no_item_is_lost_when_servers_are_killed(start: Start) -> None:
    """Two servers, one of which is killed again and again, and eight workers at both of them: each
    item is handled at least once, more than once only where an answer was lost, and none is left.
    """
    name, count = make.queue(), 400
    handled: Counter[str] = Counter()
    lost = 0

    async def worker(provider: PersistenceProvider) -> None:
        nonlocal lost
        while len(handled) < count:
            try:
                answer = await provider.dequeue(
                    [name], max_items=3, lease_duration=timedelta(seconds=5)
                )
            except Exception:
                await asyncio.sleep(0.05)
                continue
            for claim in answer.items:
                handled[claim.item.id] += 1
                try:
                    await provider.acknowledge([claim.receipt])
                except LeaseLost:
                    lost += 1

    steady, shaky = start(), start()
    async with AsyncExitStack() as stack:
        providers = [
            await stack.enter_async_context(connect_provider(server.address, timeout=60))
            for server in (steady, shaky)
        ]
        enqueuer = providers[0]
        for at in range(0, count, 100):
            await enqueuer.enqueue(
                [QueueItem(queue=name, id=f"{n:03}") for n in range(at, at + 100)]
            )
        workers = [asyncio.create_task(worker(providers[at % 2])) for at in range(8)]
        for kills in range(1, 4):
            while len(handled) < kills * 80:
                await asyncio.sleep(0.01)
            shaky.kill()
            shaky = start("--listen", shaky.address)
            stack.callback(shaky.kill)
        async with asyncio.timeout(120):
            await asyncio.gather(*workers)
        assert set(handled) == {f"{n:03}" for n in range(count)}
        # What came twice was handed out by an answer that was lost.
        assert sum(handled.values()) - count <= 3 * 8 * 3
        left = await enqueuer.list_queue_items(name)
        assert all(item.lease is not None for item in left), left
