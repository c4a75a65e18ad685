"""A dequeue costs the same whatever lies in the queue: leased, delayed, dead and waiting items."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any, Final

import psycopg
import psycopg.sql
import pytest

from tests.store.test_plans import walk
from wfe_persistence.store import (
    dequeue,
    queue,
    queue_groups,
    queue_list,
    queue_settling,
    queue_waiting,
)
from wfe_persistence.store.migrate import migrate
from wfe_persistence.store.postgres.source import ConnectionSource
from wfe_persistence.store.schema import Schema

BACKLOG: Final = 250_000
"""Items in each of the four states, in queues of the states' names and all together in `all`."""

FILL: Final = """
INSERT INTO wfc.queue_items (n, queue, id, visible_time, dead, lease_id, attempt)
SELECT nextval('wfc.queue_item_numbers'), '{queue}', '{state}' || i,
    now() {sign} i * interval '1 second', {dead}, {lease}, 1
FROM generate_series(1, {count}) i
"""
LOCKS: Final = """
INSERT INTO wfc.locks (resource, expiry)
SELECT 'lock' || i, now() + interval '1 hour' FROM generate_series(1, 20000) i;
INSERT INTO wfc.queue_items (n, queue, id, visible_time, blocked_by)
SELECT nextval('wfc.queue_item_numbers'), queue, 'blocked' || i, now() - interval '1 year',
    ARRAY['lock' || i, 'none']
FROM generate_series(1, 5) i, unnest(ARRAY['all', 'some']) AS queue
"""
STATES: Final = {
    "waiting": {"sign": "-", "dead": "FALSE", "lease": "NULL"},
    "leased": {"sign": "+ interval '1 hour' +", "dead": "FALSE", "lease": "'x'"},
    "delayed": {"sign": "+ interval '1 hour' +", "dead": "FALSE", "lease": "NULL"},
    "dead": {"sign": "-", "dead": "TRUE", "lease": "NULL"},
}

STATEMENTS: Final[dict[str, tuple[str, list[object]]]] = {
    "dequeue most": (dequeue.DEQUEUE, [1000, 30_000, "l", "w", 4_000_000, "{-infinity}"]),
    "dequeue": (dequeue.DEQUEUE, [10, 30_000, "l", "w", 4_000_000, "{-infinity}"]),
    "look": (queue_waiting.LOOK_AT_QUEUES, [100, "{-infinity}"]),
    "together": (queue_groups.DEQUEUE_TOGETHER, []),
}
CALLS: Final = json.dumps(
    [{"call": i, "lease_id": "l", "worker_id": "w", "lease_ms": 30_000} for i in range(32)]
)


@pytest.fixture(scope="module")
async def filled(postgres_url: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as admin:
        await admin.execute("CREATE DATABASE backlog")
        url = postgres_url.replace("/postgres?", "/backlog?")
        await migrate(ConnectionSource(url), Schema())
        async with await psycopg.AsyncConnection.connect(
            url, autocommit=True, prepare_threshold=None
        ) as connection:
            for state, columns in STATES.items():
                for name in ("all", "some"):
                    count = BACKLOG if name == "all" else 100
                    await connection.execute(
                        FILL.format(queue=name, state=state, count=count, **columns).encode()
                    )
            await connection.execute(LOCKS.encode())
            await connection.execute(b"ANALYZE")
            yield connection
        await admin.execute("DROP DATABASE backlog WITH (FORCE)")


async def explained(
    connection: psycopg.AsyncConnection[Any], sql: str, params: list[object], plan: str
) -> Any:
    """The plan of a statement, as it was run; what it does is undone."""
    arguments = psycopg.sql.SQL(", ").join(map(psycopg.sql.Literal, params))
    async with connection.transaction(force_rollback=True):
        await connection.execute(f"SET LOCAL plan_cache_mode = force_{plan}_plan".encode())
        await connection.execute(f"PREPARE q AS {sql}".encode())
        query = psycopg.sql.SQL(
            "EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) EXECUTE q ({})"
        )
        cursor = await connection.execute(query.format(arguments))
        await connection.execute(b"DEALLOCATE q")
    row = await cursor.fetchone()
    assert row is not None
    return row[0][0]["Plan"]


def blocks(plan: Any) -> int:
    """How many pages were read or found in memory."""
    found: int = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
    return found


@pytest.mark.parametrize("plan", ["custom", "generic"])
@pytest.mark.parametrize("statement", STATEMENTS)
async def test_a_million_items_cost_no_more_than_some(
    filled: psycopg.AsyncConnection[Any], statement: str, plan: str
) -> None:
    sql, params = STATEMENTS[statement]

    def given(name: str) -> list[object]:
        if sql is queue_groups.DEQUEUE_TOGETHER:
            return [CALLS, json.dumps([{"name": name, "floor": "-infinity"}])]
        return [f"{{{name}}}", *params]

    few = await explained(filled, sql, given("some"), plan)
    many = await explained(filled, sql, given("all"), plan)
    for found in (few, many):
        tables = {
            node.get("Relation Name") for node in walk(found) if node["Node Type"] == "Seq Scan"
        }
        assert not tables & {"queue_items", "locks"}, found
    per_item = [blocks(found) / found["Actual Rows"] for found in (few, many)]
    assert per_item[1] < 2 * per_item[0] + 10, many
    # From this cost on, PostgreSQL compiles a statement, which takes longer than it does.
    assert plan == "generic" or many["Total Cost"] < 100_000, many


@pytest.mark.parametrize("plan", ["custom", "generic"])
async def test_what_is_named_is_looked_up(filled: psycopg.AsyncConnection[Any], plan: str) -> None:
    settle = '[{"at": 0, "n": 7, "lease_id": "x", "act": "confirm"}]'
    item = '[{"queue": "all", "id": "leased7"}]'
    calls = '[{"call": 0, "n": 7, "lease_id": "x"}, {"call": 1, "n": 8, "lease_id": "x"}]'
    for sql, params in (
        (queue_settling.SETTLE_ITEMS, [settle]),
        (queue_settling.REMOVE_ITEMS, [settle]),
        (queue.RENEW_ITEMS, [settle, 1000]),
        (queue.ENQUEUE, [item]),
        (queue_groups.INSERT_TOGETHER, [item, True]),
        (queue_groups.ENQUEUE_TOGETHER, [item]),
        (queue_groups.REMOVE_TOGETHER, [calls]),
        (queue.REQUEUE_ITEMS, ["all", '["dead7"]', 10, False, None]),
        (queue.DELETE_ITEMS, ["all", '["dead7"]', 10]),
    ):
        found = await explained(filled, sql, list(params), plan)
        assert blocks(found) < 300, found


# Whether dead, whether yet to become visible, and whether there is a lease_id; see queue_list.
LISTED: Final[dict[str, list[object]]] = {
    "all": [None, None, None],
    "waiting": [False, False, None],
    "leased": [False, True, True],
    "dead": [True, None, None],
}


MIDDLE: Final = """
SELECT visible_time::text, n, dead FROM wfc.queue_items
WHERE queue = 'all' AND id = %s || '150000'
"""


@pytest.mark.parametrize("state", LISTED)
@pytest.mark.parametrize("page", ["first", "next"])
async def test_a_page_of_a_million_items_costs_that_of_the_page(
    filled: psycopg.AsyncConnection[Any], state: str, page: str
) -> None:
    """Also in the middle of the list. (Leased and delayed items stand together: of one kind, those
    of the other are passed over.)"""
    cursor: list[object] = [None, None, None]
    if page == "next":
        found = await filled.execute(MIDDLE, [state if state != "all" else "waiting"])
        row = await found.fetchone()
        assert row is not None
        cursor = list(row)
    params = ["all", None, *LISTED[state], *cursor, 101]
    plan = await explained(filled, queue_list.LIST_QUEUE_ITEMS, params, "custom")
    assert blocks(plan) < 1000, plan


async def test_one_item_among_a_million_is_looked_up(
    filled: psycopg.AsyncConnection[Any],
) -> None:
    params: list[object] = ["all", "leased7", None, None, None, None, None, None, 2]
    found = await explained(filled, queue_list.LIST_QUEUE_ITEMS, params, "custom")
    assert blocks(found) < 100, found
