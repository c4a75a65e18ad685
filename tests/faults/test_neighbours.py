"""Servers that tell each other what was written, and what becomes of it when they can't."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
from google.protobuf.duration_pb2 import Duration

from tests.support import make
from tests.support.api import Api, connect
from tests.support.expect import eventually
from tests.support.queues import OwnQueue, ids
from tests.support.server import ServerProcess
from wfe.persistence.v1.workflow_pb2 import WorkflowStatus

LONG = Duration(seconds=60)
LISTENING = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND {}"
BY_NOTICES = "(query LIKE 'LISTEN%' OR query LIKE 'SELECT pg_notify%')"


class Servers:
    """Servers of one database, each with a client."""

    def __init__(self, directory: Path, url: str, stack: AsyncExitStack) -> None:
        self._directory = directory
        self.url = url
        self._stack = stack
        self.servers: list[ServerProcess] = []

    async def start(self, *arguments: str, listens: bool = True, url: str = "") -> Api:
        """Start one more, and wait until it listens, or says why it can't."""
        log = self._directory / f"log{len(self.servers)}"
        server = ServerProcess(log, "--db-url", url or self.url, *arguments)
        self._stack.callback(server.kill)
        self.servers.append(server.__enter__())
        said = "listens to other servers" if listens else "can't listen to other servers"
        if "--no-notify" not in arguments:
            await self.says(-1, said)
        return Api(await self._stack.enter_async_context(connect(server.address)))

    async def says(self, at: int, text: str, times: int = 1) -> None:
        """Wait until a server has logged this so often."""

        async def said() -> bool:
            return self.servers[at].log().count(text) >= times

        await eventually(said)

    async def run(self, sql: str) -> list[Any]:
        """Run a statement in the database."""
        async with await psycopg.AsyncConnection.connect(self.url, autocommit=True) as connection:
            return await (await connection.execute(sql.encode())).fetchall()

    async def listeners(self) -> list[int]:
        """The backends that servers listen on."""
        return [pid for (pid,) in await self.run(LISTENING.format(BY_NOTICES))]


@pytest.fixture
async def fleet(tmp_path: Path, database_url: str) -> AsyncIterator[Servers]:
    async with AsyncExitStack() as stack:
        servers = Servers(tmp_path, database_url, stack)
        yield servers
        for server in servers.servers:
            assert "bug" not in server.log()
            assert "Traceback" not in server.log()


async def settled(*tasks: asyncio.Future[Any]) -> None:
    """Until these calls are likely to wait."""
    done, _ = await asyncio.wait(tasks, timeout=0.2)
    assert not done


async def of_queue(here: Api, there: Api) -> None:
    queue = OwnQueue(here)
    task = asyncio.ensure_future(here.dequeue(queues=[queue.name], wait=LONG))
    await settled(task)
    await OwnQueue(there, queue.name).enqueue("a")
    assert ids((await task).items) == ["a"]


async def of_lock(here: Api, there: Api) -> None:
    resource = make.new_id("lock")
    held = await there.acquire_lock(resource, ttl=Duration(seconds=3600))
    task = asyncio.ensure_future(here.acquire_lock(resource, wait=LONG))
    await settled(task)
    await there.release_lock(held.token)
    assert (await task).acquired


async def of_lock_of_an_item(here: Api, there: Api) -> None:
    resource, queue = make.new_id("lock"), OwnQueue(here)
    held = await there.acquire_lock(resource, ttl=Duration(seconds=3600))
    await queue.enqueue("a", blocked_by=[resource])
    task = asyncio.ensure_future(here.dequeue(queues=[queue.name], wait=LONG))
    await settled(task)
    await there.release_lock(held.token)
    assert ids((await task).items) == ["a"]


async def of_command(here: Api, there: Api) -> None:
    task = asyncio.ensure_future(here.claim_commands(wait=LONG))
    await settled(task)
    command = make.command(execute_time=0)
    await there.schedule_command(command)
    assert [claim.command for claim in await task] == [command]
    await here.complete_commands(*(claim.lease_token for claim in task.result()))


async def of_workflow(here: Api, there: Api) -> None:
    instance = make.instance()
    await there.create(instance)
    task = asyncio.ensure_future(here.wait_for_workflow(instance.id, wait=LONG))
    await settled(task)
    instance.status = WorkflowStatus.WORKFLOW_STATUS_COMPLETE
    await there.persist_workflow(instance)
    assert (await task).status == instance.status


async def of_lifecycle(here: Api, there: Api) -> None:
    event = make.lifecycle_event()
    async with here.watch(workflow_id=event.workflow_id) as responses:
        await anext(responses)
        await there.publish(event)
        while not (events := (await anext(responses)).events):
            pass
        assert [each.event.workflow_id for each in events] == [event.workflow_id]


async def of_change(here: Api, there: Api) -> None:
    instance = make.instance()
    async with here.watch_workflows(workflow_id=instance.id) as responses:
        await anext(responses)
        await there.create(instance)
        while not (changes := (await anext(responses)).changes):
            pass
        assert [each.instance.id for each in changes] == [instance.id]


WAITS: list[Callable[[Api, Api], Any]] = [
    of_queue, of_lock, of_lock_of_an_item, of_command, of_workflow,
    of_lifecycle, of_change,
]  # fmt: skip


async def test_a_write_through_another_server_ends_a_wait(fleet: Servers) -> None:
    here, there = await fleet.start(), await fleet.start()
    for wait in WAITS:
        await wait(here, there)
        await wait(there, here)
    assert len(await fleet.listeners()) == 2


@pytest.mark.parametrize("which", ["none of them", "the one that waits", "the one that writes"])
async def test_without_notifications_nothing_is_missed(fleet: Servers, which: str) -> None:
    here = await fleet.start(*["--no-notify"] * (which != "the one that writes"))
    there = await fleet.start(*["--no-notify"] * (which != "the one that waits"))
    for wait in WAITS:
        await wait(here, there)
