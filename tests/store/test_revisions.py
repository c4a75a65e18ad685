"""Revisions of an id never come again, whoever deletes it and whoever creates the next."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import psycopg
import pytest

from tests.store.originals import Original
from tests.support import make
from tests.support.expect import eventually
from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe.persistence.v1.workflow_pb2 import (
    CommitWorkflowRequest,
    PersistWorkflowRequest,
    WorkflowInstance,
    WorkflowStatus,
    WorkflowView,
)
from wfe_persistence.errors import PersistenceError
from wfe_persistence.store import admin, commit, purge, workflow
from wfe_persistence.store.request_key import RequestKey
from wfe_persistence.store.tables import Store

Connection = psycopg.AsyncConnection[Any]

REFUSED = (
    ErrorReason.ERROR_REASON_WORKFLOW_NOT_FOUND,
    ErrorReason.ERROR_REASON_WORKFLOW_ALREADY_EXISTS,
    ErrorReason.ERROR_REASON_TRANSACTION_CONFLICT,
)
WAITS_FOR_A_LOCK = "SELECT count(*) FROM pg_locks WHERE NOT granted"


@pytest.fixture
async def other(store: Store, database_url: str) -> AsyncIterator[Connection]:
    """A connection of somebody else."""
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        yield connection


async def create(store: Store, id_: str, **fields: Any) -> int:
    return await workflow.create_new_workflow(store, make.instance(id=id_, name=id_, **fields))


async def persist(store: Store, id_: str, request_id: str = "", **fields: Any) -> int:
    request = PersistWorkflowRequest(
        instance=make.instance(id=id_, **fields), request_id=request_id
    )
    return (await commit.persist_workflow(store, request, (), RequestKey(request))).revision


async def get(store: Store, id_: str) -> WorkflowInstance:
    return await workflow.get_workflow_instance(store, id_, WorkflowView.WORKFLOW_VIEW_FULL)


async def at_revision(store: Store, id_: str, revision: int, **fields: Any) -> None:
    """A workflow that has been written this many times."""
    first = await create(store, id_, **fields)
    for _ in range(first, revision):
        await persist(store, id_, **fields)


# Whoever deletes it


async def ours(store: Store, _: Connection) -> None:
    await purge.delete_workflow(store, "w", None)


async def purged(store: Store, _: Connection) -> None:
    done, _after = await purge.purge_workflows(
        store, (), make.time(1000), "", None, 1000, dry_run=False
    )
    assert done.workflows == 1


async def in_sql(_: Store, other: Connection) -> None:
    await other.execute("DELETE FROM wfc.execution_pointers")
    await other.execute("DELETE FROM wfc.workflows")


async def truncated(_: Store, other: Connection) -> None:
    await other.execute("TRUNCATE wfc.workflows CASCADE")


async def all_truncated(store: Store, _: Connection) -> None:
    await admin.truncate_all(store)


DELETES = [ours, purged, in_sql, truncated, all_truncated]
every_delete = pytest.mark.parametrize("delete", DELETES, ids=[d.__name__ for d in DELETES])
Delete = Callable[[Store, Connection], Awaitable[None]]
ENDED: dict[str, Any] = {
    "status": WorkflowStatus.WORKFLOW_STATUS_COMPLETE,
    "complete_time": make.time(),
    "execution_pointers": [make.pointer("1")],
}


async def test_first_revisions_are_1_where_nothing_was_deleted(store: Store) -> None:
    assert [await create(store, id_) for id_ in "ab"] == [1, 1]
    await persist(store, "a")
    assert await create(store, "c") == 1


async def test_a_delete_of_nothing_changes_no_first_revision(
    store: Store, other: Connection
) -> None:
    with pytest.raises(PersistenceError):
        await purge.delete_workflow(store, "absent", None)
    await purge.purge_workflows(store, (), make.time(1000), "", None, 1000, dry_run=False)
    for delete in (in_sql, truncated, all_truncated):
        await delete(store, other)
    assert await create(store, "w") == 1


@every_delete
async def test_the_next_workflow_starts_above_the_deleted_one(
    store: Store, other: Connection, delete: Delete, database_url: str
) -> None:
    request_id = make.request_id()
    await at_revision(store, "w", 4, **ENDED)
    assert await persist(store, "w", request_id, **ENDED) == 5
    await delete(store, other)
    # What it remembered of its writes is gone with it.
    with pytest.raises(PersistenceError) as caught:
        await persist(store, "w", request_id, **ENDED)
    assert caught.value.reason == ErrorReason.ERROR_REASON_WORKFLOW_NOT_FOUND
    assert await create(store, "w") == 6
    assert (await get(store, "w")).revision == 6
    assert await persist(store, "w", request_id, **ENDED) == 7
    assert await persist(store, "w", request_id, **ENDED) == 7
    # Whatever its id, for the store does not know all ids there ever were; and whoever creates it.
    assert await create(store, "v") == 6
    with psycopg.connect(database_url, autocommit=True) as connection:
        original = Original(connection, 2, store.schema.name)
        original.create_workflow("u", pointers=1)
        assert (await get(store, "u")).revision == 6
        original.persist_workflow("u", pointers=1, data=2, name="u")
    assert (await get(store, "u")).revision == 7


async def test_the_highest_of_many_counts_and_a_lower_one_changes_nothing(
    store: Store, other: Connection
) -> None:
    for id_, revision in (("a", 3), ("b", 7), ("c", 2), ("d", 5)):
        await at_revision(store, id_, revision)
    await other.execute("DELETE FROM wfc.workflows WHERE id < 'd'")
    await purge.delete_workflow(store, "d", None)
    await other.execute("DELETE FROM wfc.workflows WHERE id = 'absent'")
    assert await create(store, "w") == 8


async def test_a_given_revision_is_raised_only_if_it_is_too_low(
    store: Store, other: Connection
) -> None:
    await at_revision(store, "w", 5)
    await purge.delete_workflow(store, "w", None)
    for id_, revision in (("low", 5), ("high", 9)):
        await other.execute(
            "INSERT INTO wfc.workflows (id, name, definition_id, version, status, create_time,"
            " revision) VALUES (%s, %s, 'd', 1, 'Runnable', now(), %s)",
            [id_, id_, revision],
        )
    assert [(await get(store, id_)).revision for id_ in ("low", "high")] == [6, 9]


# The answer to a create


async def test_a_repeated_create_answers_the_first_revision_of_the_stored_workflow(
    store: Store,
) -> None:
    await at_revision(store, "gone", 4)
    await purge.delete_workflow(store, "gone", None)
    for _ in range(3):
        assert await create(store, "w") == 5
        await persist(store, "w", data_json='"moved on"')
    await purge.delete_workflow(store, "w", None)
    assert await create(store, "w") == 9


# What expected a revision of the one before


async def test_a_patch_of_the_one_before_is_refused(store: Store) -> None:
    """Both were at revision 1 once, and the patch made a mix of the two."""
    await create(store, "w", execution_pointers=[make.pointer("1"), make.pointer("2")])
    await purge.delete_workflow(store, "w", None)
    first = await create(
        store, "w", workflow_definition_id="another", execution_pointers=[make.pointer("x")]
    )
    stored = await get(store, "w")
    request = CommitWorkflowRequest(
        patch=make.patch("w", execution_pointers=[make.pointer("1")]), expected_revision=1
    )
    with pytest.raises(PersistenceError) as caught:
        await commit.commit_workflow(store, request, RequestKey(request))
    assert caught.value.reason == ErrorReason.ERROR_REASON_REVISION_MISMATCH
    assert caught.value.metadata["revision"] == str(first)
    assert await get(store, "w") == stored


# A create that waits for the delete


async def test_a_create_that_began_before_the_delete_was_committed(
    store: Store, other: Connection, database_url: str
) -> None:
    await at_revision(store, "w", 5)
    async with (
        await psycopg.AsyncConnection.connect(database_url) as deleter,
        await psycopg.AsyncConnection.connect(database_url, autocommit=True) as watcher,
    ):

        async def waits() -> bool:
            row = await (await watcher.execute(WAITS_FOR_A_LOCK)).fetchone()
            return row is not None and row[0] == 2

        await deleter.execute("DELETE FROM wfc.workflows WHERE id = 'w'")
        creates = [
            asyncio.ensure_future(create(store, "w")),
            asyncio.ensure_future(
                other.execute(
                    "INSERT INTO wfc.workflows (id, name, definition_id, version, status,"
                    " create_time) VALUES ('w', 'another', 'd', 1, 'Runnable', now())"
                    " ON CONFLICT DO NOTHING"
                )
            ),
        ]
        await eventually(waits)
        # Both have read the floor, and wait for the commit.
        await deleter.commit()
        ours, _ = await asyncio.gather(*creates, return_exceptions=True)
    stored = await get(store, "w")
    assert stored.revision == 6
    if stored.name == "w":
        assert ours == 6
    else:
        # Ours was the second: as of its snapshot, the deleted one was there, with the same content.
        assert ours == 1 or isinstance(ours, PersistenceError)


async def test_a_delete_that_is_rolled_back(store: Store, database_url: str) -> None:
    await at_revision(store, "w", 5)
    async with await psycopg.AsyncConnection.connect(database_url) as deleter:
        await deleter.execute("DELETE FROM wfc.workflows WHERE id = 'w'")
        again = asyncio.create_task(create(store, "w"))
        await asyncio.sleep(0.1)
        await deleter.rollback()
        assert await again == 1, "the revision of its creation"
    assert (await get(store, "w")).revision == 5


async def test_no_revision_is_seen_twice_whatever_comes_between(store: Store) -> None:
    """Creates, writes and deletes of the same ids at once: a revision is one content for ever."""
    rng = random.Random(14)
    contents: dict[tuple[str, int], set[str]] = {}
    done = dict.fromkeys(("create", "persist", "delete"), 0)

    def seen(id_: str, revision: int, content: str) -> None:
        contents.setdefault((id_, revision), set()).add(content)

    async def one(kind: str, id_: str, content: str) -> None:
        if kind == "delete":
            await purge.delete_workflow(store, id_, None)
        elif kind == "create":
            seen(id_, await create(store, id_, description=content), content)
        else:
            seen(id_, await persist(store, id_, description=content), content)
        done[kind] += 1

    async def worker(number: int) -> None:
        for turn in range(120):
            kind = rng.choice(["create", "create", "delete", "persist"])
            id_ = rng.choice("ab")
            try:
                await one(kind, id_, f"{number}/{turn}")
                read = await get(store, id_)
                seen(id_, read.revision, read.description)
            except PersistenceError as exc:
                if exc.reason not in REFUSED:
                    raise

    await asyncio.gather(*map(worker, range(8)))
    assert min(done.values()) > 20, done
    twice = {key: found for key, found in contents.items() if len(found) > 1}
    assert not twice
