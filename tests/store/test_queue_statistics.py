"""The statistics of a queue are mostly those of an empty table, whatever comes afterwards: what is
named is looked up all the same."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

import psycopg
import pytest

from tests.store.test_queue_backlog import blocks, explained
from wfe_persistence.store import dequeue, queue, queue_groups, queue_settling
from wfe_persistence.store.migrate import migrate
from wfe_persistence.store.postgres.source import ConnectionSource
from wfe_persistence.store.schema import Schema
from wfe_persistence.store.tables import Store

ITEMS: Final = 20_000
ADD: Final = f"""
INSERT INTO wfc.queue_items (queue, id, visible_time, lease_id)
SELECT 'q', 'item' || i, now(), 'x' FROM generate_series(1, {ITEMS}) i
"""

RECEIPTS: Final = '[{"at": 0, "call": 0, "n": %s, "lease_id": "x", "act": "acknowledge"}]'
ITEM: Final = '[{"queue": "q", "id": "item7"}, {"queue": "q", "id": "new"}]'
CALL: Final = '[{"call": 0, "lease_id": "l", "worker_id": "", "lease_ms": 1000}]'
STATEMENTS: Final[dict[str, tuple[str, list[object]]]] = {
    "enqueue": (queue.ENQUEUE, [ITEM]),
    "insert together": (queue_groups.INSERT_TOGETHER, [ITEM, True]),
    "enqueue together": (queue_groups.ENQUEUE_TOGETHER, [ITEM]),
    "settle": (queue_settling.SETTLE_ITEMS, [RECEIPTS]),
    "remove": (queue_settling.REMOVE_ITEMS, [RECEIPTS]),
    "remove together": (queue_groups.REMOVE_TOGETHER, [RECEIPTS]),
    "settle together": (queue_groups.SETTLE_TOGETHER, [RECEIPTS]),
    "renew": (queue.RENEW_ITEMS, [RECEIPTS, 1000]),
    "dequeue": (dequeue.DEQUEUE, ["{q}", 1, 1000, "l", "", 1000, "{-infinity}"]),
    "dequeue together": (
        queue_groups.DEQUEUE_TOGETHER,
        [CALL, '[{"name": "q", "floor": "-infinity"}]'],
    ),
    "requeue": (queue.REQUEUE_ITEMS, ["q", '["item7"]', 10, False, None]),
    "delete": (queue.DELETE_ITEMS, ["q", '["item7"]', 10]),
}


@pytest.fixture(scope="module")
async def drained(postgres_url: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """A queue that was empty when it was analyzed, and has many items since."""
    async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as admin:
        await admin.execute("CREATE DATABASE drained")
        url = postgres_url.replace("/postgres?", "/drained?")
        await migrate(ConnectionSource(url), Schema())
        async with await psycopg.AsyncConnection.connect(
            url, autocommit=True, prepare_threshold=None
        ) as connection:
            await connection.execute("ALTER TABLE wfc.queue_items SET (autovacuum_enabled = off)")
            await connection.execute(ADD.encode())
            await connection.execute("DELETE FROM wfc.queue_items")
            await connection.execute("VACUUM ANALYZE wfc.queue_items")
            await connection.execute(ADD.encode())
            yield connection
        await admin.execute("DROP DATABASE drained WITH (FORCE)")


@pytest.mark.parametrize("plan", ["custom", "generic"])
@pytest.mark.parametrize("statement", STATEMENTS)
async def test_what_is_named_is_looked_up_although_the_queue_was_empty(
    drained: psycopg.AsyncConnection[Any], statement: str, plan: str
) -> None:
    cursor = await drained.execute("SELECT n FROM wfc.queue_items WHERE id = 'item7'")
    row = await cursor.fetchone()
    assert row is not None
    sql, params = STATEMENTS[statement]
    given = [p.replace("%s", str(row[0])) if isinstance(p, str) else p for p in params]
    found = await explained(drained, sql, given, plan)
    assert blocks(found) < 200, found


async def test_vacuum_keeps_the_pages_of_a_queue(store: Store, database_url: str) -> None:
    """A table without any is read as a whole, as long as the plan is kept."""
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        await connection.execute(ADD.encode())
        await connection.execute("DELETE FROM wfc.queue_items")
        await connection.execute("VACUUM wfc.queue_items")
        row = await (
            await connection.execute("SELECT pg_relation_size('wfc.queue_items')")
        ).fetchone()
        assert row is not None
        assert row[0] > 1_000_000
