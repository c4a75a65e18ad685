"""Statements on a store that has grown for long, and is as skewed as such a one: how long each
takes (the best of five), what it reads, and by which indexes. Then the same of those that look for
work, beside a transaction that stays open while much work is done, so that what is left of that
can't be cleared away.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from tests.support import growth
from wfe_persistence.store import command, workflow
from wfe_persistence.store.migrate import migrate
from wfe_persistence.store.postgres.source import ConnectionSource
from wfe_persistence.store.schema import Schema

Figures = list[dict[str, Any]]

ROUNDS = 5
DONE = 100_000
"""How much work is done beside the transaction."""

# What is worked off there: commands are claimed and completed, workflows run and end.
WORK_OFF = f"""
INSERT INTO wfc.scheduled_commands (command_name, data, execute_time)
    SELECT 'ProcessEvent', 'done' || i, 0 FROM generate_series(1, {DONE}) i;
UPDATE wfc.scheduled_commands SET lease_id = 'l', lease_expiry = now() + '1 min'::interval
    WHERE data LIKE 'done%';
DELETE FROM wfc.scheduled_commands WHERE data LIKE 'done%';
INSERT INTO wfc.workflows (id, name, definition_id, version, status, data, next_execution,
        create_time)
    SELECT 'done' || i, 'done' || i, 'common', 2, 'Runnable', '{{}}', 0, now()
    FROM generate_series(1, {DONE}) i;
UPDATE wfc.workflows SET status = 'Complete', next_execution = NULL, complete_time = now()
    WHERE id LIKE 'done%';
"""


def measure(url: str, workflows: int) -> Figures:
    """Fills a store with so many workflows, three times as many pointers and as many events."""
    asyncio.run(migrate(ConnectionSource(url), Schema()))
    with psycopg.connect(url, autocommit=True, prepare_threshold=None) as connection:
        connection.execute("ALTER SYSTEM SET max_wal_size = '8GB'")
        connection.execute("SELECT pg_reload_conf()")
        begun = time.monotonic()
        for what in growth.fill(connection, workflows):
            print(f"{what} filled after {time.monotonic() - begun:.0f} s", file=sys.stderr)
        cases = growth.cases(connection, workflows)
        figures = [_figure(connection, what, case) for what, case in cases.items()]
        work = {
            "ClaimCommands": growth.Case(
                command.CLAIM_COMMANDS, [None, 10, "l", "w", 1000, 1_000_000, None]
            ),
            "GetRunnableInstances": growth.Case(
                workflow.GET_RUNNABLE_INSTANCES, [None, None, None, growth.PAGE]
            ),
        }
        with psycopg.connect(url, autocommit=True) as other, other.transaction():
            other.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            other.execute("SELECT FROM wfc.workflows LIMIT 1")
            for statement in WORK_OFF.split(";\n"):
                connection.execute(statement.encode())
            figures += [
                _figure(connection, f"{what}, beside an open transaction", case)
                for what, case in work.items()
            ]
        connection.execute("VACUUM")
        figures += [
            _figure(connection, f"{what}, after its end", case) for what, case in work.items()
        ]
        return figures


def _figure(connection: psycopg.Connection[Any], what: str, case: growth.Case) -> dict[str, Any]:
    run = growth.explain(connection, case)
    with _prepared(connection, case) as execute:
        seconds, rows = zip(*(execute() for _ in range(ROUNDS)), strict=True)
    ms = min(seconds) * 1000
    deleted = sum(rows[0][0][:5]) if what.startswith("PurgeWorkflows") else None
    if what.startswith("PurgeEvents"):
        deleted = rows[0][0][0]
    return {
        "what": what,
        "ms": round(ms, 2),
        "deleted/s": None if not deleted else round(deleted / ms * 1000),
        "pages": run.buffers,
        "rows read": run.rows_read,
        "cost": round(run.cost),
        "indexes": sorted(run.indexes),
    }


@contextmanager
def _prepared(connection: psycopg.Connection[Any], case: growth.Case) -> Iterator[Any]:
    """Runs it with its parameters known, planning included, and takes back what it has changed."""
    arguments = psycopg.sql.SQL(", ").join(map(psycopg.sql.Literal, case.params))
    connection.execute(f"PREPARE q AS {case.sql}".encode())
    connection.execute("SET plan_cache_mode = force_custom_plan")
    statement = psycopg.sql.SQL("EXECUTE q ({})").format(arguments)

    def execute() -> tuple[float, list[Any]]:
        with connection.transaction(force_rollback=True):
            begun = time.perf_counter()
            rows = connection.execute(statement).fetchall()
            return time.perf_counter() - begun, rows

    try:
        yield execute
    finally:
        connection.execute("RESET plan_cache_mode")
        connection.execute("DEALLOCATE q")


def table(figures: Figures) -> str:
    """A line for each statement."""
    columns = ("ms", "deleted/s", "pages", "rows read", "cost")
    lines = [f"{'':56}" + "".join(f"{column:>12}" for column in columns)]
    for figure in figures:
        values = ("" if figure[column] is None else f"{figure[column]:,}" for column in columns)
        lines.append(f"{figure['what']:56}" + "".join(f"{value:>12}" for value in values))
    return "\n".join(lines)
