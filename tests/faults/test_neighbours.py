"""Servers that tell each other what was written, and what becomes of it when they can't."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import psycopg
import pytest
from google.protobuf.duration_pb2 import Duration

from tests.faults.proxy import Proxy
from tests.support import make
from tests.support.admin import AdminServer
from tests.support.api import Api, connect
from tests.support.expect import eventually, failure_of
from tests.support.queues import OwnQueue, ids
from tests.support.server import ServerProcess
from wfe.persistence.v1.workflow_pb2 import WorkflowStatus
from wfe_persistence.embedded import EmbeddedPostgres

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

    async def start(
        self,
        *arguments: str,
        listens: bool = True,
        url: str = "",
        module: str = "wfe_persistence",
    ) -> Api:
        """Start one more, and wait until it listens, or says why it can't."""
        log = self._directory / f"log{len(self.servers)}"
        database = ("--db-url", url or self.url)
        server = (
            AdminServer(log, *database, *arguments)
            if module == "wfe_persistence"
            else ServerProcess(log, *database, *arguments, module=module)
        )
        self._stack.callback(server.kill)
        self.servers.append(await asyncio.to_thread(server.__enter__))
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
            cursor = await connection.execute(sql.encode())
            return await cursor.fetchall() if cursor.description else []

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


@pytest.mark.parametrize("which", ["none of them", "the one that waits", "the one that writes"])
async def test_without_notifications_nothing_is_missed(fleet: Servers, which: str) -> None:
    here = await fleet.start(*["--no-notify"] * (which != "the one that writes"))
    there = await fleet.start(*["--no-notify"] * (which != "the one that waits"))
    for wait in WAITS:
        await wait(here, there)


def sent(server: ServerProcess) -> int:
    """How many notifications this server has sent."""
    assert isinstance(server, AdminServer)
    text = server.get("/metrics").text
    found = re.search(r'^wfe_\w*notifications_total\{direction="sent"\} (\d+)', text, re.MULTILINE)
    assert found is not None
    return int(found[1])


async def test_others_are_told_only_what_nobody_waits_for_here(fleet: Servers) -> None:
    here, there = await fleet.start(), await fleet.start()
    queue = OwnQueue(here)

    def wait(api: Api) -> asyncio.Future[Any]:
        return asyncio.ensure_future(api.dequeue(queues=[queue.name], wait=LONG))

    of_there = wait(there)
    await settled(of_there)
    # The first server tells everything in its first second.
    await asyncio.sleep(1.5)
    before = sent(fleet.servers[0])
    for number in range(12):
        of_here = wait(here)
        await settled(of_here)
        await queue.enqueue(f"{number}")
        assert ids((await of_here).items) == [f"{number}"]
    # (Hellos are sent in between.)
    assert sent(fleet.servers[0]) - before < 6
    assert not of_there.done()
    await queue.enqueue("for there")
    assert ids((await of_there).items) == ["for there"]


async def test_who_is_alone_tells_nobody(fleet: Servers) -> None:
    api = await fleet.start()
    queue = OwnQueue(api)
    await asyncio.sleep(1.5)
    before = sent(fleet.servers[0])
    for number in range(100):
        await queue.enqueue(f"{number}")
        await asyncio.sleep(0.01)
    assert sent(fleet.servers[0]) - before < 10


async def test_what_is_not_told_is_found_out(fleet: Servers) -> None:
    """Notifications may be lost at any time, and nobody knows."""
    here = await fleet.start()
    there = await fleet.start(module="tests.faults.silent_server")
    await of_queue(here, there)
    await of_workflow(here, there)


async def test_a_killed_connection_is_made_again(fleet: Servers) -> None:
    here, there = await fleet.start(), await fleet.start()
    queue = OwnQueue(here)
    task = asyncio.ensure_future(here.dequeue(queues=[queue.name], wait=LONG))
    await settled(task)
    killed = set(await fleet.listeners())
    assert len(killed) >= 2
    for pid in killed:
        await fleet.run(f"SELECT pg_terminate_backend({pid})")
    await OwnQueue(there, queue.name).enqueue("a")
    assert ids((await task).items) == ["a"]
    for at in range(2):
        await fleet.says(at, "can't listen to other servers")
        await fleet.says(at, "listens to other servers", times=2)
    await of_workflow(here, there)
    assert not killed & set(await fleet.listeners())


async def test_behind_a_pooler_that_passes_on_no_notifications(
    fleet: Servers, tmp_path: Path
) -> None:
    """As PgBouncer in transaction mode: what is heard then is lost, or comes too late."""
    directory = tmp_path / "proxy"
    directory.mkdir()
    [behind] = parse_qs(urlparse(fleet.url).query)["host"]
    async with Proxy(directory, Path(behind)) as proxy:
        proxy.rewrite = lambda messages: [m for m in messages if m[:1] != b"A"]
        there = await fleet.start(listens=False, url=fleet.url.replace(behind, str(directory)))
        await fleet.says(0, "no notifications come through")
        here = await fleet.start()
        await of_queue(here, there)
        await of_queue(there, here)
        await of_workflow(here, there)
        await of_workflow(there, here)


async def test_who_waits_is_served_after_a_restart_of_the_database(
    tmp_path: Path, data_dir: Path
) -> None:
    with EmbeddedPostgres(data_dir) as postgres:
        async with AsyncExitStack() as stack:
            fleet = Servers(tmp_path, postgres.url, stack)
            here, there = await fleet.start(), await fleet.start()
            queue = OwnQueue(here)
            workflows = [make.instance() for _ in range(30)]
            for instance in workflows:
                await here.create(instance)
            locks = [make.new_id("lock") for _ in range(30)]
            held = [await here.acquire_lock(each, ttl=Duration(seconds=3600)) for each in locks]
            waits: list[Awaitable[Any]] = [
                *(here.dequeue(queues=[queue.name], wait=LONG) for _ in range(40)),
                *(here.acquire_lock(each, wait=LONG) for each in locks),
                *(here.wait_for_workflow(each.id, wait=LONG) for each in workflows),
            ]
            tasks = [asyncio.ensure_future(each) for each in waits]
            await asyncio.sleep(1)  # as long as a hundred take to look once
            await settled(*tasks)
            await asyncio.to_thread(postgres.stop)
            await settled(*tasks)
            await asyncio.to_thread(postgres.start)

            async def is_back() -> bool:
                return await failure_of(there.get_store_info()) is None

            await eventually(is_back)
            await there.enqueue(*(make.item(queue.name) for _ in range(40)))
            for lock in held:
                await there.release_lock(lock.token)
            for instance in workflows:
                instance.status = WorkflowStatus.WORKFLOW_STATUS_COMPLETE
                await there.persist_workflow(instance)
            answers = await asyncio.gather(*tasks)
            assert sum(len(each.items) for each in answers[:40]) == 40
            assert all(each.acquired for each in answers[40:70])
            assert {each.status for each in answers[70:]} == {instance.status}
            for at in range(2):
                await fleet.says(at, "listens to other servers", times=2)


async def test_the_connection_is_given_up_where_calls_need_it(fleet: Servers) -> None:
    """The role may have as many connections as the pool: one of them is the listener's at first."""
    await fleet.run("CREATE ROLE few LOGIN CONNECTION LIMIT 4")
    try:
        database = (await fleet.run("SELECT current_database()"))[0][0]
        await fleet.run(f"ALTER DATABASE {database} OWNER TO few")
        url = fleet.url.replace("postgres@", "few@")
        assert url != fleet.url
        api = await fleet.start("--pool-size", "4", url=url)

        async def is_given_up() -> bool:
            # (Calls that are not run together with others of their kind.)
            await asyncio.gather(*(api.create(make.instance()) for _ in range(50)))
            return "its connection is needed for calls" in fleet.servers[0].log()

        await eventually(is_given_up)
        await of_queue(api, api)
    finally:
        for server in fleet.servers:
            await asyncio.to_thread(server.stop)
        await fleet.run("REASSIGN OWNED BY few TO CURRENT_USER")
        await fleet.run("DROP OWNED BY few")
        await fleet.run("DROP ROLE few")


async def test_calls_that_wait_cost_the_database_next_to_nothing(
    tmp_path: Path, database_url: str
) -> None:
    """However many they are: each for something else, so that nobody looks for another one."""
    with AdminServer(tmp_path / "log", "--db-url", database_url) as server:

        def statements() -> int:
            counts = re.findall(
                r"^wfe_persistence_database_round_trip_seconds_count\S* (\d+)",
                server.get("/metrics").text,
                re.MULTILINE,
            )
            return sum(map(int, counts))

        async with connect(server.address) as channel:
            api = Api(channel)
            tasks = [
                asyncio.ensure_future(api.dequeue(queues=[make.queue()], wait=LONG))
                for _ in range(300)
            ]
            await settled(*tasks)
            before = -1
            while before != (before := await asyncio.to_thread(statements)):
                await asyncio.sleep(0.3)  # until all have looked
            await asyncio.sleep(3)
            # A look at the store and one for all that wait, now and then; not 300 times.
            assert await asyncio.to_thread(statements) - before < 100
            for task in tasks:
                task.cancel()
