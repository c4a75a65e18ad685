"""Prepared statements take memory on each connection: they are bounded by what they really take."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from psycopg import sql

from tests.store.test_plans import CASES
from wfe_persistence.store.migrate import migrate
from wfe_persistence.store.postgres.database import Database
from wfe_persistence.store.postgres.prepared import kept_bytes
from wfe_persistence.store.postgres.source import ConnectionSource
from wfe_persistence.store.postgres.sqlstate import UnexpectedDatabaseError
from wfe_persistence.store.rows import read_int4, read_int8, read_text
from wfe_persistence.store.schema import Schema
from wfe_persistence.store.tables import Store

MEMORY = """
SELECT sum(total_bytes)::bigint FROM pg_backend_memory_contexts WHERE name LIKE 'CachedPlan%'
"""
NAMES = "SELECT statement FROM pg_prepared_statements WHERE statement LIKE 'SELECT % AS n'"


def numbered(i: int) -> str:
    return f"SELECT {i} AS n"


BYTES = kept_bytes(Schema().bind(numbered(0)))


def prepared_within(url: str, max_prepared_bytes: int) -> Database:
    """A database with one connection, whose prepared statements may take this much memory."""
    return Database(
        ConnectionSource(url),
        pool_size=1,
        pool_timeout=5,
        prepare=True,
        max_prepared_bytes=max_prepared_bytes,
        max_waiting=10,
    )


async def prepared(store: Store) -> set[str]:
    rows = await store.read_once(NAMES)
    return {read_text(rows.get_value(i, 0)) for i in range(rows.ntuples)}


async def test_the_reckoning_agrees_with_what_postgresql_keeps(database_url: str) -> None:
    """Of every hot statement, with its generic plan, which is the most it ever keeps of one."""
    await migrate(ConnectionSource(database_url), Schema())
    connection: psycopg.AsyncConnection[Any]
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        connection.prepare_threshold = None
        await connection.execute("SET plan_cache_mode = force_generic_plan")

        async def kept() -> int:
            row = await (await connection.execute(MEMORY)).fetchone()
            assert row
            return int(row[0] or 0)

        reckoned = total = 0
        for name, statement, params, _ in CASES:
            before = await kept()
            await connection.execute(f"PREPARE {name} AS {statement}".encode())
            nulls = sql.SQL(", ").join([sql.NULL] * len(params))
            execute = sql.SQL("EXECUTE {}({})" if params else "EXECUTE {}")
            await connection.execute(
                sql.SQL("EXPLAIN ") + execute.format(sql.Identifier(name), nulls)
            )
            taken = await kept() - before
            expected = kept_bytes(Schema().bind(statement))
            assert 0.5 < taken / expected < 1.7, (name, taken, expected)
            total += taken
            reckoned += expected
        assert 0.75 < total / reckoned < 1.25


async def test_prepared_statements_stay_bounded(database_url: str) -> None:
    async with prepared_within(database_url, 5 * BYTES + 999) as database:
        store = Store(database, Schema(), "default")
        for round_ in range(3):
            for i in range(20):
                row = await store.read(numbered(i))
                assert read_int4(row.get_value(0, 0)) == i, round_
                assert len(await prepared(store)) == min(i + 1 + 5 * round_, 5)
        assert await prepared(store) == {numbered(i) for i in range(15, 20)}


async def test_what_was_not_used_for_longest_makes_room(database_url: str) -> None:
    async with prepared_within(database_url, 5 * BYTES + 999) as database:
        store = Store(database, Schema(), "default")
        for i in range(10):
            await store.read(numbered(0))
            await store.read(numbered(i))
        assert await prepared(store) == {numbered(i) for i in (0, 6, 7, 8, 9)}
        # A long one makes as much room as it needs.
        await store.read(f"SELECT {' ' * 2 * (BYTES // 110)} 99 AS n")
        assert len(await prepared(store)) < 5
        assert numbered(9) in await prepared(store)


async def test_a_statement_beyond_the_bound_is_run_all_the_same(database_url: str) -> None:
    async with prepared_within(database_url, 1) as database:
        store = Store(database, Schema(), "default")
        for _ in range(2):
            for i in range(3):
                row = await store.read(numbered(i))
                assert read_int4(row.get_value(0, 0)) == i
                assert await prepared(store) == {numbered(i)}
            results = await store.write_all(*((numbered(i), ()) for i in (7, 2, 8, 2)))
            assert [read_int4(row.get_value(0, 0)) for row in results] == [7, 2, 8, 2]


async def test_room_made_for_what_fails_is_only_room(database_url: str) -> None:
    """Statements that were closed for one that could not be prepared are prepared again."""
    async with prepared_within(database_url, 2 * BYTES) as database:
        store = Store(database, Schema(), "default")
        await store.read(numbered(0))
        await store.read(numbered(1))
        for _ in range(2):
            for i in range(2):
                row = await store.read(numbered(i))
                assert read_int4(row.get_value(0, 0)) == i
            row = await store.read_once("SELECT count(*) FROM pg_prepared_statements")
            assert read_int8(row.get_value(0, 0)) == 2
            with pytest.raises(UnexpectedDatabaseError):
                await store.read("SELEKT")
