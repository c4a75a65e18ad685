"""What changes often writes no index: its new versions are heap-only tuples."""

from __future__ import annotations

import json
from typing import Any, Final

import psycopg
import pytest

from wfe_persistence.store import commit, workflow
from wfe_persistence.store.tables import Store

DOCUMENT: Final = {
    "id": "w", "name": "w", "definition_id": "d", "version": 1, "status": "Runnable",
    "data": [{"order": 1}], "next_execution": 0, "create_time": "2026-01-01T00:00:00Z",
    "execution_pointers": [],
}  # fmt: skip
UPDATES: Final = """
SELECT pg_stat_get_xact_tuples_updated(c), pg_stat_get_xact_tuples_hot_updated(c)
FROM (SELECT 'wfc.{table}'::regclass::oid) AS t(c)
"""


async def updates(connection: psycopg.AsyncConnection[Any], table: str) -> tuple[int, int]:
    """Of the transaction: how many rows were updated, and how many of them heap-only."""
    row = await (await connection.execute(UPDATES.format(table=table).encode())).fetchone()
    assert row is not None
    updated, heap_only = row
    return updated, heap_only


async def run(connection: psycopg.AsyncConnection[Any], sql: str, *params: object) -> Any:
    """Run a statement of the store; its first row."""
    await connection.execute(f"PREPARE s AS {sql}".encode())
    arguments = psycopg.sql.SQL(", ").join(map(psycopg.sql.Literal, params))
    cursor = await connection.execute(psycopg.sql.SQL("EXECUTE s ({})").format(arguments))
    row = await cursor.fetchone()
    await connection.execute(b"DEALLOCATE s")
    return row


@pytest.mark.usefixtures("store")
async def test_a_step_that_goes_on_at_once(database_url: str) -> None:
    async with await psycopg.AsyncConnection.connect(
        database_url, prepare_threshold=None
    ) as connection:
        await run(connection, workflow.CREATE_NEW_WORKFLOW, json.dumps(DOCUMENT))
        for step in range(3):
            document = DOCUMENT | {"data": [{"order": 1, "step": step}]}
            row = await run(
                connection, commit.PERSIST_WORKFLOW, "w", json.dumps(document), None, "[]"
            )
            assert row[0] == step + 2
        assert await updates(connection, "workflows") == (3, 3)


async def test_pages_of_workflows_have_room_for_a_new_version(
    store: Store, database_url: str
) -> None:
    """Of workflows with 400 bytes of data that are created one after the other."""
    async with await psycopg.AsyncConnection.connect(
        database_url, prepare_threshold=None
    ) as connection:
        data = [{"order": "x" * 400}]
        for n in range(40):
            document = DOCUMENT | {"id": f"w{n}", "name": f"w{n}", "data": data}
            await run(connection, workflow.CREATE_NEW_WORKFLOW, json.dumps(document))
        for n in range(0, 40, 10):
            document = DOCUMENT | {"id": f"w{n}", "name": f"w{n}", "data": data}
            await run(
                connection, commit.PERSIST_WORKFLOW, f"w{n}", json.dumps(document), None, "[]"
            )
        assert await updates(connection, "workflows") == (4, 4)
