"""What watchers of workflows get while transactions overlap, others write, and time passes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
from google.protobuf.duration_pb2 import Duration

from tests.faults.conftest import Start
from tests.store.originals import Original
from tests.support import make
from tests.support.api import Api, connect
from tests.support.expect import eventually, fails
from wfe.persistence.v1.store_pb2 import (
    CreateNamespaceRequest,
    DeleteNamespaceRequest,
    TruncateAllRequest,
)
from wfe.persistence.v1.workflow_pb2 import (
    WatchWorkflowsRequest,
    WatchWorkflowsResponse,
    WorkflowChange,
)

HEARTBEAT = Duration(seconds=1)
UPDATE = "UPDATE wfc.workflows SET description = %s WHERE id = %s"
IS_RECORDED = "SELECT pg_sequence_last_value('wfc.workflow_recording') % 2 = 1"


async def take(
    responses: AsyncIterator[WatchWorkflowsResponse], count: int
) -> list[WorkflowChange]:
    """The next changes of a stream."""
    found: list[WorkflowChange] = []
    async with asyncio.timeout(30):
        while len(found) < count:
            found += (await anext(responses)).changes
    return found


async def query(database_url: str, sql: str) -> Any:
    """The one value that a query returns."""
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        row = await (await connection.execute(sql.encode())).fetchone()
        return row and row[0]


async def test_change_of_a_transaction_that_is_committed_late_comes(
    start: Start, database_url: str
) -> None:
    server = start()
    async with connect(server.address) as channel:
        api = Api(channel)
        late, soon = make.instance(), make.instance()
        await api.create(late)
        async with api.watch_workflows(heartbeat=HEARTBEAT) as responses:
            cursor = (await anext(responses)).cursor
            async with await psycopg.AsyncConnection.connect(database_url) as connection:
                await connection.execute(UPDATE, ["late", late.id])
                await api.create(soon)
                for _ in range(2):  # nothing is behind what may still come
                    assert not (await anext(responses)).changes
                await connection.commit()
            found = await take(responses, 2)
            assert {each.instance.id for each in found} == {late.id, soon.id}
        async with api.watch_workflows(after=cursor) as responses:
            found = await take(responses, 2)
            assert {each.instance.description for each in found} == {"late", soon.description}


async def test_first_watcher_waits_for_those_who_had_written_before(
    start: Start, database_url: str
) -> None:
    """Their changes are not recorded, so it must be possible to list them behind its start."""
    server = start()
    async with connect(server.address) as channel:
        api = Api(channel)
        written = make.instance()
        await api.create(written)
        assert not await query(database_url, IS_RECORDED)
        async with (
            await psycopg.AsyncConnection.connect(database_url) as connection,
            api.watch_workflows(workflow_id=written.id) as responses,
        ):
            await connection.execute(UPDATE, ["unrecorded", written.id])
            first = asyncio.ensure_future(anext(responses))
            await eventually(lambda: query(database_url, IS_RECORDED))
            done, _ = await asyncio.wait([first], timeout=1)
            assert not done, "what comes before the start may still be committed behind it"
            await connection.commit()
            async with asyncio.timeout(30):
                await first
            stored = await api.get_workflow_instance(written.id)
            assert stored.description == "unrecorded"
            await connection.execute(UPDATE, ["recorded", written.id])
            await connection.commit()
            [change] = await take(responses, 1)
            assert change.instance.description == "recorded"


async def test_late_commits_under_load_leave_no_watcher_behind(
    start: Start, database_url: str
) -> None:
    """Transactions that overlap at random, through two servers, and beside them."""
    servers = [start(), start()]
    instances = [make.instance(id=f"w{n}", name=f"w{n}") for n in range(12)]
    last = dict.fromkeys((each.id for each in instances), 0)
    written = False

    async def write_late(api: Api, n: int) -> None:
        """Writes of hosts that access the database directly, and of the server in between."""
        instance = instances[n]
        await api.create(instance)
        async with await psycopg.AsyncConnection.connect(database_url) as connection:
            for step in range(20):
                await connection.execute(UPDATE, [f"late {step}", instance.id])
                await asyncio.sleep(0.3 if (step + n) % 10 == 0 else 0.02)
                await connection.commit()
                last[instance.id] = await api.persist_workflow(instance)

    async def follow(api: Api, cursor: str, *, resumes: bool) -> None:
        seen: dict[str, int] = {}
        while True:
            async with api.watch_workflows(after=cursor, heartbeat=HEARTBEAT) as responses:
                async for response in responses:
                    for each in response.changes:
                        seen[each.instance.id] = each.instance.revision
                    cursor = response.cursor
                    if written and seen == last:
                        return
                    if resumes and response.changes:
                        break

    async with connect(servers[0].address) as one, connect(servers[1].address) as other:
        apis = [Api(one), Api(other)]
        cursor = await apis[0].change_cursor()
        async with asyncio.timeout(60):
            followers = asyncio.gather(
                follow(apis[0], cursor, resumes=False),
                follow(apis[1], cursor, resumes=False),
                follow(apis[1], cursor, resumes=True),
            )
            await asyncio.gather(*(write_late(apis[n % 2], n) for n in range(len(instances))))
            written = True
            await followers


@pytest.mark.parametrize("age", [1, 2])
async def test_writes_by_hosts_that_use_the_original_come_too(
    start: Start, database_url: str, age: int
) -> None:
    """In a store that the original has made, and that goes on being used by it."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        original = Original(connection, age)
        original.create_tables()
        original.create_workflow("old", pointers=2)
        async with connect(start().address) as channel:
            api = Api(channel)
            async with api.watch_workflows(workflow_definition_id="order") as responses:
                cursor = (await anext(responses)).cursor
                original.create_workflow("new", pointers=1, data={"a": 1})
                [created] = await take(responses, 1)
                assert (created.instance.id, created.instance.data_json) == ("new", '{"a": 1}')
                original.persist_workflow("old", pointers=2, data={"b": 2})
                [changed] = await take(responses, 1)
                assert (changed.instance.id, changed.instance.data_json) == ("old", '{"b": 2}')
                # Larger than a message, which is no reason for a stream to end.
                original.run("UPDATE {s}.workflows SET description = repeat('x', 5000000)")
                for large in await take(responses, 2):
                    assert large.instance.description.endswith("x…")
                original.run("DELETE FROM {s}.execution_pointers")
                original.run("DELETE FROM {s}.workflows")
                gone = await take(responses, 2)
                assert {each.instance.id for each in gone} == {"old", "new"}
                assert all(each.deleted for each in gone)
                original.run("TRUNCATE {s}.workflows CASCADE")
                with fails("OUT_OF_RANGE", "CURSOR_EXPIRED"):
                    async with asyncio.timeout(30):
                        while True:
                            await anext(responses)
            with fails("OUT_OF_RANGE", "CURSOR_EXPIRED"):
                async with api.watch_workflows(after=cursor) as responses:
                    await anext(responses)


async def test_a_writer_needs_no_privileges_on_what_is_recorded(
    start: Start, database_url: str
) -> None:
    """A server of the release before, or another host: with what was granted then."""
    server = start()
    role = make.new_id("role").replace("-", "_")
    with psycopg.connect(database_url, autocommit=True) as owner:
        owner.execute(f"CREATE ROLE {role}".encode())
        try:
            async with connect(server.address) as channel:
                api = Api(channel)
                await api.create(make.instance(id="w"))
                owner.execute(f"GRANT USAGE ON SCHEMA wfc TO {role}".encode())
                for what in (
                    "SELECT, UPDATE, DELETE ON wfc.workflows, wfc.requests",
                    "SELECT, UPDATE ON SEQUENCE wfc.revision_floor",
                ):
                    owner.execute(f"GRANT {what} TO {role}".encode())
                for is_watched in (False, True):
                    if is_watched:
                        cursor = await api.change_cursor()
                    with psycopg.connect(database_url) as other:
                        other.execute(f"SET ROLE {role}".encode())
                        other.execute("UPDATE wfc.workflows SET description = 'theirs'")
                with psycopg.connect(database_url) as other:
                    other.execute(f"SET ROLE {role}".encode())
                    other.execute("UPDATE wfc.workflows SET status = 'Complete'")
                owner.execute("DELETE FROM wfc.execution_pointers")
                with psycopg.connect(database_url) as other:
                    other.execute(f"SET ROLE {role}".encode())
                    other.execute("DELETE FROM wfc.workflows")
                async with api.watch_workflows(after=cursor) as responses:
                    while not (await take(responses, 1))[-1].deleted:
                        pass
                assert await query(database_url, "SELECT count(*) FROM wfc.workflow_changes") == 3
        finally:
            owner.execute(f"DROP OWNED BY {role}".encode())
            owner.execute(f"DROP ROLE {role}".encode())


async def test_watches_end_when_their_namespace_is_deleted(start: Start) -> None:
    server = start("--allow-delete-namespace")
    async with connect(server.address) as channel:
        api = Api(channel)
        name = make.new_namespace()
        await api.store.CreateNamespace(CreateNamespaceRequest(name=name))
        metadata = (("wfe-namespace", name),)
        async with api.watch_workflows(metadata=metadata) as responses:
            await anext(responses)
            await api.store.DeleteNamespace(DeleteNamespaceRequest(name=name, force=True))
            with fails("NOT_FOUND", "NAMESPACE_NOT_FOUND"):
                async with asyncio.timeout(20):
                    while True:
                        await anext(responses)


async def test_a_cursor_from_before_truncate_all_or_a_restore_has_expired(
    start: Start, database_url: str
) -> None:
    server = start("--allow-truncate")
    async with connect(server.address) as channel:
        api = Api(channel)
        async with api.watch_workflows(heartbeat=HEARTBEAT) as responses:
            await anext(responses)
            await api.store.TruncateAll(TruncateAllRequest())
            with fails("OUT_OF_RANGE", "CURSOR_EXPIRED"):
                while True:
                    await anext(responses)
        cursor = await api.change_cursor()
        await api.create(make.instance())
        # As a dump leaves it that is restored into another cluster: with ids of transactions that
        # are far in the future there.
        async with await psycopg.AsyncConnection.connect(database_url) as connection:
            await connection.execute(
                "UPDATE wfc.workflow_changes SET xid = ((xid::text)::bigint + 1000000)::text::xid8"
            )
            await connection.execute("UPDATE wfc.workflow_feed SET cluster = 'another'")
        with fails("OUT_OF_RANGE", "CURSOR_EXPIRED") as failure:
            async with api.watch_workflows(after=cursor) as responses:
                await anext(responses)
        instance = make.instance()
        await api.create(instance)
        async with api.watch_workflows(after=failure.metadata["oldest_cursor"]) as responses:
            [change] = await take(responses, 1)
            assert change.instance.id == instance.id


async def test_changes_are_recorded_only_while_somebody_watches_and_for_the_retention(
    start: Start, database_url: str
) -> None:
    servers = [start("--watch-retention", "2") for _ in range(2)]
    count = "SELECT count(*) FROM wfc.workflow_changes"
    async with connect(servers[0].address) as channel, connect(servers[1].address) as other:
        api = Api(channel)
        await api.create(make.instance())
        assert await query(database_url, count) == 0
        async with Api(other).watch_workflows(heartbeat=HEARTBEAT) as responses:
            cursor = (await anext(responses)).cursor
            await api.create(make.instance())
            await take(responses, 1)
            assert await query(database_url, count) == 1

            async def are_gone() -> bool:
                return bool(await query(database_url, count) == 0)

            await eventually(are_gone, 30)
            # It is still watched, so the watcher misses nothing.
            assert await query(database_url, IS_RECORDED)
            instance = make.instance()
            await api.create(instance)
            assert (await take(responses, 1))[0].instance.id == instance.id
            resumed = (await anext(responses)).cursor
        async with api.watch_workflows(after=resumed) as responses:
            await anext(responses)
        with fails("OUT_OF_RANGE", "CURSOR_EXPIRED"):
            async with api.watch_workflows(after=cursor) as responses:
                await anext(responses)

        async def is_over() -> bool:
            return not await query(database_url, IS_RECORDED) and await are_gone()

        await eventually(is_over, 30)
        await api.create(make.instance())
        assert await query(database_url, count) == 0
        call: Any = api.workflows.WatchWorkflows(WatchWorkflowsRequest(after=resumed))
        with fails("OUT_OF_RANGE", "CURSOR_EXPIRED"):
            await anext(aiter(call))
        async with api.watch_workflows() as responses:
            await anext(responses)
            await api.create(instance := make.instance())
            assert (await take(responses, 1))[0].instance.id == instance.id
