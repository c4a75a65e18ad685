"""What watchers get while transactions overlap, servers stop and time passes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import psycopg
import pytest
from google.protobuf.duration_pb2 import Duration

from tests.faults.conftest import Start
from tests.support import binaries, make
from tests.support.api import Api, connect
from tests.support.expect import eventually, fails
from tests.support.postgres import PostgresServer
from tests.support.server import ServerProcess
from wfe.persistence.v1.lifecycle_pb2 import (
    LifecycleEvent,
    WatchedEvent,
    WatchRequest,
    WatchResponse,
)
from wfe.persistence.v1.store_pb2 import (
    CreateNamespaceRequest,
    DeleteNamespaceRequest,
    TruncateAllRequest,
)
from wfe_persistence.store import lifecycle

INSERT = """
INSERT INTO wfc.lifecycle_events (type, workflow_id, definition_id, version, event_time)
VALUES ('Started', %s, 'd', 1, now())
"""
MANY = """
INSERT INTO wfc.lifecycle_events (type, workflow_id, definition_id, version, event_time)
SELECT 'Started', 'many', 'd', 1, now() FROM generate_series(1, 10000)
"""
BUSY = """
SELECT count(*) FROM pg_stat_activity WHERE application_name = 'wfe-persistence'
    AND datname = current_database() AND state <> 'idle'
"""
HEARTBEAT = Duration(seconds=1)


async def take(responses: AsyncIterator[WatchResponse], count: int) -> list[str]:
    """The workflows of the next events of a stream."""
    found: list[str] = []
    async with asyncio.timeout(30):
        while len(found) < count:
            found += [each.event.workflow_id for each in (await anext(responses)).events]
    return found


def about(*ids: str) -> list[LifecycleEvent]:
    return [make.lifecycle_event(workflow_id=id_) for id_ in ids]


async def test_event_of_a_transaction_that_is_committed_late_is_not_left_out(
    start: Start, database_url: str
) -> None:
    server = start()
    async with connect(server.address) as channel:
        api = Api(channel)
        async with api.watch(heartbeat=HEARTBEAT) as responses:
            cursor = (await anext(responses)).cursor
            async with await psycopg.AsyncConnection.connect(database_url) as late:
                await late.execute(INSERT, ["late"])  # has taken its number
                await api.publish(*about("soon"))
                for _ in range(2):  # nothing is behind what may still come
                    assert not (await anext(responses)).events
                await late.commit()
            assert sorted(await take(responses, 2)) == ["late", "soon"]
        # Another one that resumes, or begins anew, gets the same.
        async with api.watch(after=cursor) as responses:
            assert sorted(await take(responses, 2)) == ["late", "soon"]


async def test_events_of_transactions_whose_ids_were_given_before_a_crash_are_not_left_out(
    data_dir: Path, tmp_path: Path
) -> None:
    """The ids of transactions that were rolled back, and of which nothing was flushed, are given
    again after a crash: a position must not be behind them."""
    new = [f"new {number}" for number in range(40)]
    with (
        PostgresServer(binaries.postgres(18), data_dir / "postgres") as postgres,
        ServerProcess(tmp_path / "log", "--db-url", postgres.url) as server,
    ):
        async with connect(server.address) as channel:
            api = Api(channel)
            await api.publish(*about("old"))
            cursor, last = await _lose_ids(api, postgres.url)
            written = await _insert(postgres.url, new)
            assert written[0] <= last < written[-1], "no id was given again"
            async with api.watch(after=cursor) as responses:
                assert await take(responses, len(new)) == new


async def _lose_ids(api: Api, url: str) -> tuple[str, int]:
    """Have PostgreSQL break down when ids have been given of which nothing is flushed; the cursor
    of a watcher that has looked after that, and the last of these ids."""
    connection = await psycopg.AsyncConnection.connect(url)
    found = await connection.execute(
        "SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'"
    )
    [(pid,)] = await found.fetchall()
    wal_writer = psutil.Process(pid)
    async with api.watch(heartbeat=HEARTBEAT) as responses:
        await anext(responses)
        wal_writer.suspend()
        last = 0
        for _ in range(20):
            found = await connection.execute("SELECT pg_current_xact_id()::text::bigint")
            [(last,)] = await found.fetchall()
            await connection.rollback()
        for _ in range(3):  # one of them is of a look after that
            cursor = (await anext(responses)).cursor
    wal_writer.kill()
    await connection.close()
    return cursor, last


async def _insert(url: str, ids: list[str]) -> list[int]:
    """Write events, each in its transaction, once PostgreSQL has recovered; the transactions."""

    async def insert(id_: str) -> int:
        async with await psycopg.AsyncConnection.connect(url) as connection:
            found = await connection.execute(f"{INSERT} RETURNING xid::text::bigint", [id_])
            [(xid,)] = await found.fetchall()
            return int(xid)

    async with asyncio.timeout(60):
        while True:
            try:
                first = await insert(ids[0])
                break
            except psycopg.OperationalError:
                await asyncio.sleep(0.1)
    return [first, *[await insert(id_) for id_ in ids[1:]]]


async def test_late_commits_under_load_are_all_seen_once_and_in_one_order(
    start: Start, database_url: str
) -> None:
    """Transactions that overlap at random, through two servers, and beside them."""
    servers = [start(), start()]
    expected = {f"{writer}-{n}" for writer in range(6) for n in range(30)}

    async def write_late(writer: int) -> None:
        async with await psycopg.AsyncConnection.connect(database_url) as connection:
            for n in range(30):
                await connection.execute(INSERT, [f"{writer}-{n}"])
                await asyncio.sleep(0.02 if n % 7 else 0.3)
                await connection.commit()

    async def write(api: Api, writer: int) -> None:
        for n in range(30):
            await api.publish(*about(f"{writer}-{n}"))
            await asyncio.sleep(0.01)

    async def follow(api: Api, cursor: str, *, resumes: bool) -> list[WatchedEvent]:
        found: list[WatchedEvent] = []
        while len(found) < len(expected):
            async with api.watch(after=cursor) as responses:
                async for response in responses:
                    found += response.events
                    cursor = response.cursor
                    if len(found) >= len(expected) or (resumes and response.events):
                        break
        return found

    async with connect(servers[0].address) as one, connect(servers[1].address) as other:
        apis = [Api(one), Api(other)]
        cursor = await apis[0].cursor()
        async with asyncio.timeout(60):
            writers = asyncio.gather(
                *(write_late(writer) for writer in (0, 1, 2)),
                *(write(apis[writer % 2], writer) for writer in (3, 4, 5)),
            )
            a, b, c = await asyncio.gather(
                follow(apis[0], cursor, resumes=False),
                follow(apis[1], cursor, resumes=False),
                follow(apis[1], cursor, resumes=True),
            )
            await writers
    assert {each.event.workflow_id for each in a} == expected
    assert a == b == c
    for writer in range(6):
        own = [
            int(each.event.workflow_id.split("-")[1])
            for each in a
            if each.event.workflow_id.startswith(f"{writer}-")
        ]
        assert own == sorted(own)


async def test_events_published_through_another_server_come_soon(start: Start) -> None:
    here, there = start(), start()
    async with (
        connect(here.address) as channel,
        connect(there.address) as other,
        Api(channel).watch(heartbeat=Duration(seconds=60)) as responses,
    ):
        await anext(responses)
        await Api(other).publish(*about("w"))
        async with asyncio.timeout(10):
            assert await take(responses, 1) == ["w"]


async def test_stop_ends_watches_at_once_with_their_cursor(start: Start) -> None:
    """With a drain that would wait for calls for an hour."""
    options = ("--drain-seconds", "3600", "--drain-delay", "0")
    first, second = start(*options), start()
    async with connect(first.address) as channel, connect(second.address) as other:
        call: Any = Api(channel).lifecycle.Watch(WatchRequest())
        responses = aiter(call)
        await anext(responses)
        await Api(other).publish(*about("before"))
        assert await take(responses, 1) == ["before"]
        first.process.terminate()
        with fails("UNAVAILABLE", "SHUTTING_DOWN") as failure:
            async with asyncio.timeout(10):
                await anext(responses)
        assert failure.retry_after is not None
        await Api(other).publish(*about("after"))
        async with Api(other).watch(after=failure.metadata["cursor"]) as resumed:
            assert await take(resumed, 1) == ["after"]
    await asyncio.to_thread(first.process.wait, 20)


async def test_reader_that_does_not_read_on_is_ended_with_its_cursor(
    start: Start,
) -> None:
    """And costs no memory in the meantime: 60 MB of events are published."""
    server = start("--stall-seconds", "1")
    process = psutil.Process(server.process.pid)
    async with connect(server.address) as channel, connect(server.address) as other:
        call: Any = Api(channel).lifecycle.Watch(WatchRequest())
        first = await call.read()
        assert not first.events
        api = Api(other)
        before = process.memory_info().rss
        for batch in range(20):
            large = [
                make.lifecycle_event(workflow_id=f"{batch}-{n}", message="x" * 60_000)
                for n in range(50)
            ]
            await api.publish(*large)
        await asyncio.sleep(3)  # it does not read for that long
        assert process.memory_info().rss - before < 60_000_000
        seen: list[WatchedEvent] = []
        cursors = [first.cursor]
        with fails("RESOURCE_EXHAUSTED", "READER_TOO_SLOW") as failure:
            while (response := await call.read()) is not grpc.aio.EOF:
                seen += response.events
                cursors.append(response.cursor)
        assert failure.metadata["cursor"] in cursors
        ids = [each.event.workflow_id for each in seen]
        async with api.watch(after=failure.metadata["cursor"]) as responses:
            rest = await take(responses, 1)
            while rest[-1] != "19-49":
                rest += await take(responses, 1)
    assert {*ids, *rest} == {f"{batch}-{n}" for batch in range(20) for n in range(50)}


async def test_a_thousand_watchers_hold_up_no_call_and_no_connection(
    start: Start, database_url: str
) -> None:
    server = start("--pool-size", "1", "--max-calls", "1000", "--max-calls-per-connection", "1000")
    async with connect(server.address) as channel, connect(server.address) as other:
        api = Api(channel)
        calls: list[Any] = [
            api.lifecycle.Watch(WatchRequest(heartbeat=Duration(seconds=60))) for _ in range(1000)
        ]
        async with asyncio.timeout(60):
            for call in calls:
                await call.read()
            await asyncio.gather(*(Api(other).get_store_info() for _ in range(100)))

            async def idle() -> bool:
                async with await psycopg.AsyncConnection.connect(database_url) as connection:
                    cursor = await connection.execute(BUSY.encode())
                    return await cursor.fetchone() == (0,)

            await eventually(idle)
            await Api(other).publish(*about("w"))
            for call in calls:
                response = await call.read()
                assert [each.event.workflow_id for each in response.events] == ["w"]
            with fails("RESOURCE_EXHAUSTED", "TOO_MANY_CALLS"):
                await Api(other).cursor()
        for call in calls:
            call.cancel()


async def test_old_events_are_deleted_and_their_cursors_expire(
    start: Start, database_url: str
) -> None:
    """By two servers at once, and nothing that is not old enough."""
    servers = [start("--lifecycle-retention", "2") for _ in range(2)]
    async with connect(servers[0].address) as channel:
        api = Api(channel)
        cursor = await api.cursor()
        await api.publish(*about(*(f"old-{n}" for n in range(1000))))

        async def are_gone() -> bool:
            async with await psycopg.AsyncConnection.connect(database_url) as connection:
                found = await connection.execute("SELECT FROM wfc.lifecycle_events")
                return await found.fetchone() is None

        await eventually(are_gone, 30)
        call: Any = api.lifecycle.Watch(WatchRequest(after=cursor))
        with fails("OUT_OF_RANGE", "CURSOR_EXPIRED") as failure:
            await anext(aiter(call))
        await api.publish(*about("young"))
        async with api.watch(after=failure.metadata["oldest_cursor"]) as responses:
            assert await take(responses, 1) == ["young"]


async def test_a_cursor_from_before_truncate_all_or_a_restore_has_expired(
    start: Start, database_url: str
) -> None:
    server = start("--allow-truncate")
    async with connect(server.address) as channel:
        api = Api(channel)
        async with api.watch(heartbeat=HEARTBEAT) as responses:
            cursor = (await anext(responses)).cursor
            await api.store.TruncateAll(TruncateAllRequest())
            with fails("OUT_OF_RANGE", "CURSOR_EXPIRED"):
                while True:
                    await anext(responses)
        with fails("OUT_OF_RANGE", "CURSOR_EXPIRED"):
            async with api.watch(after=cursor) as responses:
                await anext(responses)
        # As a dump leaves it that is restored into another cluster: with ids of transactions that
        # are far in the future there.
        cursor = await api.cursor()
        await api.publish(*about("a", "b", "c"))
        async with await psycopg.AsyncConnection.connect(database_url) as connection:
            await connection.execute(
                "UPDATE wfc.lifecycle_events SET xid = ((xid::text)::bigint + 1000000)::text::xid8"
            )
            await connection.execute("UPDATE wfc.lifecycle_feed SET cluster = 'another'")
        with fails("OUT_OF_RANGE", "CURSOR_EXPIRED") as failure:
            async with api.watch(after=cursor) as responses:
                await anext(responses)
        await api.publish(*about("d"))
        async with api.watch(after=failure.metadata["oldest_cursor"]) as responses:
            assert await take(responses, 4) == ["a", "b", "c", "d"]


# As a backup leaves it that is restored into another cluster, with ids of transactions far in the
# future there; as a move leaves it; and one after which nobody has watched for some time, so that
# these ids have been reached.
ELSEWHERE = [
    ("restored", 1_000_000, "UPDATE wfc.lifecycle_feed SET cluster = 'another'", 0),
    ("moved", 1_000_000, lifecycle.NEW_FEED, 0),
    ("moved, first watched later", 20, lifecycle.NEW_FEED, 100),
]


@pytest.mark.parametrize(
    ("ahead", "new_feed", "later"), [each[1:] for each in ELSEWHERE], ids=[e[0] for e in ELSEWHERE]
)
async def test_events_from_another_cluster_come_before_those_published_here(
    start: Start, database_url: str, ahead: int, new_feed: str, later: int
) -> None:
    server = start()
    async with connect(server.address) as channel:
        api = Api(channel)
        cursor = await api.cursor()
        await api.publish(*about("a"))
        await api.publish(*about("b", "c"))
        async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as here:
            await here.execute(MANY)
            await here.execute(
                "UPDATE wfc.lifecycle_events SET xid = ((xid::text)::bigint + %s)::text::xid8",
                [ahead],
            )
            await here.execute(new_feed.encode())
            await api.publish(*about("d"))
            for _ in range(later):
                await here.execute("SELECT pg_current_xact_id()")
            async with await psycopg.AsyncConnection.connect(database_url) as late:
                await late.execute(INSERT, ["late"])  # so "d" is all that a watcher can be behind
                with fails("OUT_OF_RANGE", "CURSOR_EXPIRED") as failure:
                    async with api.watch(after=cursor) as responses:
                        await anext(responses)
                async with api.watch(heartbeat=HEARTBEAT) as responses:
                    assert not (await anext(responses)).events
                    await late.commit()
                    await api.publish(*about("e"))
                    assert await take(responses, 2) == ["late", "e"]
        async with api.watch(after=failure.metadata["oldest_cursor"]) as responses:
            found = await take(responses, 10_006)
            assert found == ["a", "b", "c", *["many"] * 10_000, "d", "late", "e"]


async def test_watches_end_when_their_namespace_is_deleted(
    start: Start,
) -> None:
    server = start("--allow-delete-namespace")
    async with connect(server.address) as channel:
        api = Api(channel)
        name = make.new_namespace()
        await api.store.CreateNamespace(CreateNamespaceRequest(name=name))
        call: Any = api.lifecycle.Watch(WatchRequest(), metadata=(("wfe-namespace", name),))
        responses = aiter(call)
        await anext(responses)
        await api.store.DeleteNamespace(DeleteNamespaceRequest(name=name, force=True))
        with fails("NOT_FOUND", "NAMESPACE_NOT_FOUND"):
            async with asyncio.timeout(20):
                while True:
                    await anext(responses)
