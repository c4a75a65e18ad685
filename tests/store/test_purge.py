"""Purges beside transactions of others: what those hold is passed over, and nobody waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, LiteralString

import psycopg
import pytest

from tests.support import make
from tests.support.expect import eventually
from wfe.persistence.v1.event_pb2 import Event
from wfe.persistence.v1.workflow_pb2 import (
    PersistWorkflowRequest,
    PersistWorkflowWithSubscriptionsRequest,
    PurgeWorkflowsResponse,
    WorkflowInstance,
    WorkflowStatus,
)
from wfe_persistence.store import commit, event, purge, subscription, workflow
from wfe_persistence.store.paging import START
from wfe_persistence.store.request_key import RequestKey
from wfe_persistence.store.tables import Store

COMPLETE: Final = WorkflowStatus.WORKFLOW_STATUS_COMPLETE
END: Final = make.time(1000)

# A purge that has not ended by then waits for somebody: it never should.
_LONG: Final = 30

# A statement that is held up behind its snapshot, before it looks at any row.
GATE: Final = 4
HELD_UP: Final = f"""
SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = {GATE} AND NOT granted
"""


@pytest.fixture
async def other(store: Store, database_url: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """A connection of somebody else."""
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        yield connection


async def number(connection: psycopg.AsyncConnection[Any], sql: Any, *params: object) -> int:
    row = await (await connection.execute(sql, params)).fetchone()
    assert row is not None
    found: int = row[0]
    return found


async def created(store: Store, id_: str, **fields: Any) -> WorkflowInstance:
    given = {
        "id": id_,
        "name": id_,
        "status": COMPLETE,
        "complete_time": make.time(),
        "execution_pointers": [make.pointer("1"), make.pointer("2")],
    }
    instance = make.instance(**(given | fields))
    await workflow.create_new_workflow(store, instance)
    return instance


async def purged(store: Store, *, dry_run: bool = False) -> PurgeWorkflowsResponse:
    async with asyncio.timeout(_LONG):
        answer, after = await purge.purge_workflows(
            store, (), END, "", START, 10_000, dry_run=dry_run
        )
    assert after is None
    return answer


async def persist(store: Store, instance: WorkflowInstance) -> int:
    request = PersistWorkflowRequest(instance=instance)
    return (await commit.persist_workflow(store, request, (), RequestKey(request))).revision


# What somebody else holds locked.


@pytest.mark.parametrize("dry_run", [False, True])
async def test_workflow_that_somebody_writes_is_passed_over(
    store: Store, other: psycopg.AsyncConnection[Any], dry_run: bool
) -> None:
    for id_ in "abc":
        await created(store, id_)
    async with other.transaction():
        await other.execute("UPDATE wfc.workflows SET reference = 'x' WHERE id = 'b'")
        assert (await purged(store, dry_run=dry_run)).workflows == 2
    if not dry_run:
        assert await number(other, "SELECT count(*) FROM wfc.workflows") == 1
    assert (await purged(store)).workflows == (3 if dry_run else 1)
    assert await number(other, "SELECT count(*) FROM wfc.execution_pointers") == 0


async def test_tree_of_which_somebody_writes_one_is_passed_over(
    store: Store, other: psycopg.AsyncConnection[Any]
) -> None:
    await created(store, "root")
    await created(store, "child", root_workflow_id="root")
    await created(store, "other child", root_workflow_id="root")
    async with other.transaction():
        await other.execute("SELECT FROM wfc.workflows WHERE id = 'child' FOR UPDATE")
        assert await purged(store) == PurgeWorkflowsResponse()
    assert (await purged(store)).workflows == 3


async def test_event_that_somebody_writes_is_passed_over(
    store: Store, other: psycopg.AsyncConnection[Any]
) -> None:
    for id_ in "abc":
        await event.create_event(store, make.event(id=id_, is_processed=True))
    async with other.transaction():
        await other.execute("UPDATE wfc.events SET is_processed = FALSE WHERE id = 'b'")
        assert (await _purged_events(store))[0] == 2
    assert (await _purged_events(store))[0] == 0
    assert (await _purged_events(store, include_unprocessed=True))[0] == 1


async def _purged_events(store: Store, *, include_unprocessed: bool = False) -> tuple[int, object]:
    async with asyncio.timeout(_LONG):
        return await purge.purge_events(
            store, END, "", START, 10_000, include_unprocessed=include_unprocessed, dry_run=False
        )


NEW_POINTER: Final = """
INSERT INTO wfc.execution_pointers (workflow_id, id, step_id, status, event_published, retry_count,
    children, scope, extension_attributes)
VALUES ('a', 'new', 1, 'Running', FALSE, 0, '[]', '[]', '{}')
"""
NEW_SUBSCRIPTION: Final = """
INSERT INTO wfc.event_subscriptions (id, workflow_id, step_id, execution_pointer_id, event_name,
    event_key, subscribe_as_of)
VALUES ('new', 'a', 1, '1', 'n', 'k', now())
"""


@pytest.mark.parametrize("insert", [NEW_POINTER, NEW_SUBSCRIPTION], ids=["pointer", "subscription"])
async def test_delete_waits_for_who_writes_and_takes_all_that_was_written(
    store: Store, other: psycopg.AsyncConnection[Any], insert: LiteralString
) -> None:
    """Also what came in meanwhile."""
    await created(store, "a")
    async with other.transaction():
        await other.execute("UPDATE wfc.workflows SET reference = 'x' WHERE id = 'a'")
        await other.execute(insert)
        deleting = asyncio.create_task(purge.delete_workflow(store, "a", None))
        await eventually(lambda: _somebody_waits(store))
    await deleting
    assert await number(other, "SELECT count(*) FROM wfc.workflows") == 0
    assert await number(other, "SELECT count(*) FROM wfc.execution_pointers") == 0
    assert await number(other, "SELECT count(*) FROM wfc.event_subscriptions") == 0


async def _somebody_waits(store: Store) -> bool:
    async with await psycopg.AsyncConnection.connect(
        store.database.source.url, autocommit=True
    ) as connection:
        waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        return await number(connection, waits) > 0


# Between the snapshot of a purge and its locks somebody else may have written.


async def _meanwhile(
    store: Store,
    other: psycopg.AsyncConnection[Any],
    monkeypatch: pytest.MonkeyPatch,
    sql: str,
    table: str,
    write: Callable[[], Awaitable[object]],
    run: Callable[[], Awaitable[Any]],
) -> Any:
    """Run a purge; its statement is held up behind its snapshot until a write has been made."""
    statement: str = getattr(purge, sql)
    source = f"FROM wfc.{table} w\n" if table == "workflows" else f"FROM wfc.{table}\n"
    gate = f"(SELECT pg_advisory_xact_lock({GATE})::text AS open OFFSET 0) AS gate"
    assert source in statement
    held_up = statement.replace(source, source.rstrip() + f"\n    CROSS JOIN {gate}\n", 1)
    held_up = (
        held_up.replace("FOR UPDATE SKIP LOCKED", f"FOR UPDATE OF {table} SKIP LOCKED", 1)
        if (table == "events")
        else held_up
    )
    monkeypatch.setattr(purge, sql, held_up)
    await other.execute(f"SELECT pg_advisory_lock({GATE})")
    running = asyncio.ensure_future(run())

    async def is_held_up() -> bool:
        assert not running.done()
        return await number(other, HELD_UP) > 0

    await eventually(is_held_up)
    await write()
    await other.execute(f"SELECT pg_advisory_unlock({GATE})")
    return await running


async def test_workflow_revived_behind_the_snapshot_stays(
    store: Store, other: psycopg.AsyncConnection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    instance = await created(store, "a")
    instance.status = WorkflowStatus.WORKFLOW_STATUS_SUSPENDED
    answer = await _meanwhile(
        store, other, monkeypatch, "PURGE_WORKFLOWS", "workflows",
        lambda: persist(store, instance), lambda: purged(store),
    )  # fmt: skip
    assert answer == PurgeWorkflowsResponse()
    assert await number(other, "SELECT count(*) FROM wfc.execution_pointers") == 2


async def test_ended_workflow_written_behind_the_snapshot_is_whole_or_gone(
    store: Store, other: psycopg.AsyncConnection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It still is one to be purged, but has a pointer that the purge does not see."""
    instance = await created(store, "a")
    instance.execution_pointers.append(make.pointer("new"))
    await _meanwhile(
        store, other, monkeypatch, "PURGE_WORKFLOWS", "workflows",
        lambda: persist(store, instance), lambda: purged(store),
    )  # fmt: skip
    stored = await number(other, "SELECT count(*) FROM wfc.workflows")
    pointers = await number(other, "SELECT count(*) FROM wfc.execution_pointers")
    assert (stored, pointers) in ((0, 0), (1, 3))
    await purged(store)
    assert await number(other, "SELECT count(*) FROM wfc.execution_pointers") == 0


async def test_child_written_behind_the_snapshot_is_whole_or_gone(
    store: Store, other: psycopg.AsyncConnection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    await created(store, "root")
    instance = await created(store, "child", root_workflow_id="root")
    instance.execution_pointers.append(make.pointer("new"))
    await _meanwhile(
        store, other, monkeypatch, "PURGE_WORKFLOWS", "workflows",
        lambda: persist(store, instance), lambda: purged(store),
    )  # fmt: skip
    stored = await number(other, "SELECT count(*) FROM wfc.workflows")
    pointers = await number(other, "SELECT count(*) FROM wfc.execution_pointers")
    assert (stored, pointers) in ((0, 0), (2, 5))


@pytest.mark.parametrize("ids", [("a",), ("a", "b")], ids=["alone", "with its root"])
async def test_subscription_written_behind_the_snapshot_goes_with_its_workflow(
    store: Store,
    other: psycopg.AsyncConnection[Any],
    monkeypatch: pytest.MonkeyPatch,
    ids: tuple[str, ...],
) -> None:
    for id_ in ids:
        root = None if id_ == ids[-1] else ids[-1]
        await created(store, id_, root_workflow_id=root)
    subscribed = make.subscription(workflow_id="a")
    request = PersistWorkflowWithSubscriptionsRequest(
        instance=make.instance(
            id="a",
            status=COMPLETE,
            complete_time=make.time(),
            root_workflow_id=ids[-1] if len(ids) > 1 else None,
            execution_pointers=[make.pointer("1"), make.pointer("2")],
        ),
        subscriptions=[subscribed],
    )
    await _meanwhile(
        store, other, monkeypatch, "PURGE_WORKFLOWS", "workflows",
        lambda: commit.persist_workflow(store, request, [subscribed], RequestKey(request)),
        lambda: purged(store),
    )  # fmt: skip
    stored = await number(other, "SELECT count(*) FROM wfc.workflows")
    subscriptions = await number(other, "SELECT count(*) FROM wfc.event_subscriptions")
    assert (stored, subscriptions) in ((0, 0), (len(ids), 1))


async def test_child_revived_behind_the_snapshot_keeps_its_tree(
    store: Store, other: psycopg.AsyncConnection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    await created(store, "root")
    instance = await created(store, "child", root_workflow_id="root")
    instance.status = WorkflowStatus.WORKFLOW_STATUS_SUSPENDED
    answer = await _meanwhile(
        store, other, monkeypatch, "PURGE_WORKFLOWS", "workflows",
        lambda: persist(store, instance), lambda: purged(store),
    )  # fmt: skip
    assert answer == PurgeWorkflowsResponse()
    assert await number(other, "SELECT count(*) FROM wfc.workflows") == 2


async def test_event_to_be_processed_again_behind_the_snapshot_stays(
    store: Store, other: psycopg.AsyncConnection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: Event = make.event(id="a", is_processed=True)
    await event.create_event(store, given)
    answer = await _meanwhile(
        store, other, monkeypatch, "PURGE_EVENTS", "events",
        lambda: event.mark_event_unprocessed(store, "a"), lambda: _purged_events(store),
    )  # fmt: skip
    assert answer == (0, None)
    assert (await event.get_event(store, "a")).id == "a"


async def test_completion_event_to_be_processed_again_stays(
    store: Store, other: psycopg.AsyncConnection[Any]
) -> None:
    """Its workflow goes without it."""
    await created(store, "a")
    await event.create_event(
        store,
        make.event(id="e", event_name="wfe.workflow.completed", event_key="a", is_processed=True),
    )
    await event.mark_event_unprocessed(store, "e")
    assert await purged(store) == PurgeWorkflowsResponse(workflows=1, execution_pointers=2)
    assert await number(other, "SELECT count(*) FROM wfc.events") == 1


async def test_remembered_requests_go_with_their_workflow(
    store: Store, other: psycopg.AsyncConnection[Any]
) -> None:
    for id_, delete in (("a", purged(store)), ("b", purge.delete_workflow(store, "b", None))):
        instance = await created(store, id_)
        request = PersistWorkflowRequest(instance=instance, request_id=make.request_id())
        await commit.persist_workflow(store, request, (), RequestKey(request))
        await subscription.create_event_subscription(store, make.subscription(workflow_id=id_))
        assert await number(other, "SELECT count(*) FROM wfc.requests") == 1
        await delete
        for table in ("requests", "event_subscriptions", "workflows", "execution_pointers"):
            assert await number(other, f"SELECT count(*) FROM wfc.{table}") == 0
