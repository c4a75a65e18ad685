"""What "stuck" means is looked up where it is rare: how many rows ListWorkflows and CountWorkflows
read of a large store in which little is stuck."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import psycopg
import pytest

from wfe.persistence.v1.list_order_pb2 import ListOrder
from wfe.persistence.v1.workflow_pb2 import WorkflowView
from wfe_persistence.store.migrate import migrate
from wfe_persistence.store.postgres.source import ConnectionSource
from wfe_persistence.store.schema import Schema
from wfe_persistence.store.workflow_list import COUNT_WORKFLOWS, LIST_WORKFLOWS

WORKFLOWS: Final = 40_000
RUNNABLE: Final = WORKFLOWS // 4
RARE: Final = 20
"""How many workflows are overdue, wait for the rare event, and have had errors of late."""

# Most have ended. Of those that are runnable most are due in a year; most wait for one event; most
# errors are old. What is rare is spread over all statuses and ages.
FILL = f"""
INSERT INTO wfc.workflows (id, name, definition_id, version, status, data, next_execution,
        create_time, last_heartbeat_at)
    SELECT 'w' || i, 'name' || i, 'd', 1,
        CASE WHEN i % 4 = 0 THEN 'Runnable' ELSE 'Complete' END, '{{}}',
        CASE WHEN i % {WORKFLOWS // RARE} = 0 THEN i ELSE 2000000000000 + i END,
        now() - i * interval '1 minute', now()
    FROM generate_series(1, {WORKFLOWS}) i;
INSERT INTO wfc.event_subscriptions (id, workflow_id, step_id, execution_pointer_id, event_name,
        event_key, subscribe_as_of)
    SELECT 's' || i, 'w' || i, 1, '1',
        CASE WHEN i % {WORKFLOWS // RARE} = 0 THEN 'rare' ELSE 'frequent' END, 'k', now()
    FROM generate_series(1, {WORKFLOWS}) i;
INSERT INTO wfc.execution_errors (error_time, workflow_id, execution_pointer_id, message)
    SELECT now() - CASE WHEN i % {WORKFLOWS // RARE} = 0 THEN '1 s' ELSE '30 days' END::interval,
        'w' || i, '1', 'm'
    FROM generate_series(1, {WORKFLOWS}) i;
ANALYZE;
"""

NOW: Final = datetime.now(UTC)
YESTERDAY: Final = (NOW - timedelta(days=1)).isoformat()
TOMORROW: Final = (NOW + timedelta(days=1)).isoformat()
# The last parameters of the filter: written_before, due_before, waiting_event_name and _key,
# error_time_from; and which indexes find it.
STUCK: Final[dict[str, tuple[list[object], set[str]]]] = {
    "due": ([None, 10**12, None, None, None], {"workflows_runnable"}),
    "waiting": ([None, None, "rare", None, None], {"event_subscriptions_by_key", "workflows_pkey"}),
    "waiting by key": (
        [None, None, "rare", "k", None],
        {"event_subscriptions_by_key", "workflows_pkey"},
    ),
    "errors": (
        [None, None, None, None, YESTERDAY],
        {"execution_errors_by_time_and_id", "workflows_pkey"},
    ),
    "all": (
        [TOMORROW, 10**12, "rare", "k", YESTERDAY],
        {"event_subscriptions_by_key", "execution_errors_by_time_and_id", "workflows_pkey"},
    ),
}
STATUSES: Final = (None, "{Runnable}", "{Runnable,Suspended}", "{Complete}")
ORDERS: Final = (ListOrder.LIST_ORDER_NEWEST_FIRST, ListOrder.LIST_ORDER_OLDEST_FIRST)
VIEWS: Final = (WorkflowView.WORKFLOW_VIEW_HEADER, WorkflowView.WORKFLOW_VIEW_ACTIVE)
STATEMENTS: Final[dict[str, tuple[str, list[object]]]] = {
    "count": (COUNT_WORKFLOWS, []),
    "first page": (LIST_WORKFLOWS[ORDERS[0], VIEWS[0]], [None, None, 101]),
    "first page, oldest": (LIST_WORKFLOWS[ORDERS[1], VIEWS[1]], [None, None, 101]),
    "next page": (
        LIST_WORKFLOWS[ORDERS[0], VIEWS[0]],
        [(NOW - timedelta(days=7)).isoformat(), "w7", 101],
    ),
}


@pytest.fixture(scope="module")
async def filled(postgres_url: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as admin:
        await admin.execute("CREATE DATABASE stuck_plans")
        url = postgres_url.replace("/postgres?", "/stuck_plans?")
        await migrate(ConnectionSource(url), Schema())
        async with await psycopg.AsyncConnection.connect(
            url, autocommit=True, prepare_threshold=None
        ) as connection:
            await connection.execute(FILL.encode())
            yield connection
        await admin.execute("DROP DATABASE stuck_plans WITH (FORCE)")


async def explain(
    connection: psycopg.AsyncConnection[Any], sql: str, params: Sequence[object]
) -> list[dict[str, Any]]:
    """The nodes of the plan with the parameters known, run."""
    arguments = psycopg.sql.SQL(", ").join(psycopg.sql.Literal(p) for p in params)
    async with connection.transaction(force_rollback=True):
        await connection.execute("SET LOCAL plan_cache_mode = force_custom_plan")
        await connection.execute(f"PREPARE q AS {sql}".encode())
        cursor = await connection.execute(
            psycopg.sql.SQL("EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE q ({})").format(arguments)
        )
        row = await cursor.fetchone()
        await connection.execute("DEALLOCATE q")
    assert row is not None
    return list(walk(row[0][0]["Plan"]))


def walk(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A plan's node and all below it."""
    yield node
    for child in node.get("Plans", ()):
        yield from walk(child)


def rows_read(nodes: list[dict[str, Any]]) -> float:
    """How many rows the scans of tables have read, those that they filtered out included."""
    return sum(
        float(node["Actual Rows"] + node.get("Rows Removed by Filter", 0))
        * int(node["Actual Loops"])
        for node in nodes
        if "Relation Name" in node
    )


def indexes_of(nodes: list[dict[str, Any]]) -> set[str]:
    return {
        node["Index Name"] for node in nodes if "Index Name" in node and node["Actual Loops"] > 0
    }


@pytest.mark.parametrize("statement", STATEMENTS)
@pytest.mark.parametrize("statuses", STATUSES)
@pytest.mark.parametrize("what", STUCK)
async def test_what_is_rare_is_looked_up(
    filled: psycopg.AsyncConnection[Any], what: str, statuses: str | None, statement: str
) -> None:
    sql, page = STATEMENTS[statement]
    last, indexes = STUCK[what]
    nodes = await explain(filled, sql, [statuses, *[None] * 9, *last, *page])
    if statuses != "{Complete}" or what != "due":  # what is due is runnable: nothing is read then
        assert indexes <= indexes_of(nodes)
    assert rows_read(nodes) <= 4 * RARE


@pytest.mark.parametrize("statement", STATEMENTS)
async def test_written_before_reads_no_more_than_the_given_statuses(
    filled: psycopg.AsyncConnection[Any], statement: str
) -> None:
    """No index has the time: with one, no persist could be a HOT update."""
    sql, page = STATEMENTS[statement]
    given = ["{Runnable}", *[None] * 9, YESTERDAY, *[None] * 4]
    nodes = await explain(filled, sql, [*given, *page])
    assert indexes_of(nodes) & {"workflows_by_status", "workflows_runnable"}
    assert rows_read(nodes) <= RUNNABLE


async def test_written_before_stops_at_a_full_page(filled: psycopg.AsyncConnection[Any]) -> None:
    sql, page = STATEMENTS["first page"]
    nodes = await explain(filled, sql, ["{Runnable}", *[None] * 9, TOMORROW, *[None] * 4, *page])
    assert rows_read(nodes) <= 2 * 101
