"""The driver under trouble: cancelled calls, lost connections, full pools, retries."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import psutil
import psycopg
import pytest

from tests.support.expect import eventually
from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.database import database_from
from wfe_persistence.errors import PersistenceError
from wfe_persistence.settings import Settings
from wfe_persistence.store.postgres.connection import Connection
from wfe_persistence.store.postgres.database import MAX_ATTEMPTS, Database
from wfe_persistence.store.postgres.pipeline import Exchange
from wfe_persistence.store.postgres.prepared import Statement
from wfe_persistence.store.postgres.sqlstate import UnexpectedDatabaseError, UniqueViolation
from wfe_persistence.store.rows import integer, read_int4, read_int8, read_text, text
from wfe_persistence.store.schema import Schema
from wfe_persistence.store.tables import Store

ONE = "SELECT 1"
BACKEND = "SELECT pg_backend_pid()::bigint"
BACKENDS = """
SELECT pid FROM pg_stat_activity WHERE application_name = 'wfe-persistence'
    AND datname = current_database()
"""


@asynccontextmanager
async def raises(reason: str) -> AsyncIterator[None]:
    with pytest.raises(PersistenceError) as caught:
        yield
    assert ErrorReason.Name(caught.value.reason) == f"ERROR_REASON_{reason}"


async def admin(database_url: str) -> psycopg.AsyncConnection[Any]:
    return await psycopg.AsyncConnection.connect(database_url, autocommit=True)


async def number(store: Store, sql: str) -> int:
    row = await store.read(sql)
    return read_int8(row.get_value(0, 0))


@pytest.fixture
async def counter(store: Store) -> Store:
    """A store with a one-row table to write to."""
    await store.write("CREATE TABLE wfc.counter (n bigint)")
    await store.write("INSERT INTO wfc.counter VALUES (0)")
    return store


ADD = "UPDATE wfc.counter SET n = n + 1"
COUNT = "SELECT n FROM wfc.counter"


async def test_cancelled_call_is_cancelled_in_the_database(
    counter: Store, database_url: str
) -> None:
    async with await admin(database_url) as other, other.transaction():
        await other.execute("SELECT FROM wfc.counter FOR UPDATE")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await counter.write(ADD)
        for _ in range(100):
            waiting = await other.execute(
                "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            )
            if waiting.rowcount == 0:
                break
            await asyncio.sleep(0.02)
        assert waiting.rowcount == 0
    assert await number(counter, COUNT) == 0


async def test_cancelled_calls_leave_no_connection_behind(counter: Store) -> None:
    """More cancelled calls than the pool has connections, and the pool still has all of them."""
    for _ in range(12):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await counter.read("SELECT pg_sleep(10)")
    async with asyncio.timeout(5):
        await asyncio.gather(*(counter.read("SELECT pg_sleep(0.01)") for _ in range(8)))


async def test_a_call_ends_while_the_pool_makes_its_connection_wait(database_url: str) -> None:
    async with database_from(Settings(db_url=database_url, pool_size=1)) as database:
        store = Store(database, Schema(), "default")
        read = asyncio.create_task(store.read("SELECT 42 FROM pg_sleep(0.1)"))
        await asyncio.sleep(0.05)
        async with database._pool._pool._lock:
            await read
        await store.read(ONE)


async def test_old_connections_are_replaced_although_they_are_always_in_use(
    database_url: str,
) -> None:
    """Those at hand for the next call must come back to the pool, which replaces them."""
    async with database_from(Settings(db_url=database_url, pool_size=1)) as database:
        store = Store(database, Schema(), "default")
        before = await number(store, BACKEND)
        assert await number(store, BACKEND) == before
        for connection in database.reachability._open:
            connection._expire_at = 0.0
        async with asyncio.timeout(20):
            while await number(store, BACKEND) == before:
                await asyncio.sleep(0.01)


async def test_idle_connections_come_back_to_the_pool(database_url: str) -> None:
    """It closes those that nobody has needed for long."""
    async with database_from(Settings(db_url=database_url, pool_size=4)) as database:
        store = Store(database, Schema(), "default")
        await asyncio.gather(*(store.read("SELECT pg_sleep(0.1)") for _ in range(4)))
        pool = database._pool._pool
        assert pool.get_stats()["pool_available"] < 4
        async with asyncio.timeout(20):
            while pool.get_stats()["pool_available"] < 4:
                await asyncio.sleep(0.05)


async def test_calls_cancelled_at_any_moment_hurt_no_other(counter: Store) -> None:
    """A cancel request that comes late must not hit the next call on the connection."""

    async def impatient(i: int) -> None:
        try:
            async with asyncio.timeout(0.0005 * (i % 10)):
                await counter.write(ADD)
        except TimeoutError:
            pass

    async def patient() -> None:
        row = await counter.read("SELECT 42 FROM pg_sleep(0.001)")
        assert read_int4(row.get_value(0, 0)) == 42

    async with asyncio.timeout(60):
        await asyncio.gather(*(impatient(i) if i % 2 else patient() for i in range(300)))


async def test_idle_connections_that_died_are_not_used(counter: Store, database_url: str) -> None:
    await asyncio.gather(*(counter.read("SELECT pg_sleep(0.05)") for _ in range(4)))
    async with await admin(database_url) as other:
        await other.execute(f"SELECT pg_terminate_backend(pid) FROM ({BACKENDS}) b".encode())
    for _ in range(8):
        await counter.write(ADD)
    assert await number(counter, COUNT) == 8


@pytest.mark.parametrize("size", [10, 1_000_000])
async def test_a_write_on_connections_that_have_just_died_is_made_on_another_one(
    counter: Store, database_url: str, size: int
) -> None:
    """Before the event loop notices; a large one is partly sent before its end is queued."""
    add = f"{ADD} + 0 * length($1::text)"
    for n in range(1, 4):
        await asyncio.gather(*(counter.read("SELECT pg_sleep(0.05)") for _ in range(4)))
        with psycopg.connect(database_url, autocommit=True) as other:
            other.execute(f"SELECT pg_terminate_backend(pid, 5000) FROM ({BACKENDS}) b".encode())
        await counter.write(add, text("x" * size))
        assert await number(counter, COUNT) == n


async def test_read_is_repeated_when_its_connection_breaks(
    counter: Store, database_url: str
) -> None:
    read = asyncio.create_task(counter.read("SELECT 42 FROM pg_sleep(0.5)"))
    await asyncio.sleep(0.2)
    async with await admin(database_url) as other:
        await other.execute(f"SELECT pg_terminate_backend(pid) FROM ({BACKENDS}) b".encode())
    row = await read
    assert read_int4(row.get_value(0, 0)) == 42


async def test_write_that_was_broken_off_is_repeated_once_and_applied_once(
    counter: Store, database_url: str
) -> None:
    """The server said FATAL before the statement was done, so it was rolled back."""
    slow_add = """
        WITH slow AS MATERIALIZED (SELECT pg_sleep(0.5)) UPDATE wfc.counter SET n = n + 1 FROM slow
    """
    write = asyncio.create_task(counter.write(slow_add))
    await asyncio.sleep(0.2)
    async with await admin(database_url) as other:
        await other.execute(f"SELECT pg_terminate_backend(pid) FROM ({BACKENDS}) b".encode())
    await write
    assert await number(counter, COUNT) == 1


async def test_batch_is_one_transaction(counter: Store) -> None:
    with pytest.raises(PersistenceError):
        await counter.write_all((ADD, ()), ("SELECT 1 / 0", ()), (ADD, ()))
    assert await number(counter, COUNT) == 0
    await counter.write_all((ADD, ()), (ADD, ()))
    assert await number(counter, COUNT) == 2


async def test_deadlock_is_resolved_by_trying_again(store: Store) -> None:
    await store.write("CREATE TABLE wfc.pair (id int PRIMARY KEY, n int NOT NULL)")
    await store.write("INSERT INTO wfc.pair VALUES (1, 0), (2, 0)")

    async def cross(first: int, second: int) -> None:
        await store.write_all(
            ("UPDATE wfc.pair SET n = n + 1 WHERE id = $1", (integer(first),)),
            ("SELECT pg_sleep(0.1)", ()),
            ("UPDATE wfc.pair SET n = n + 1 WHERE id = $1", (integer(second),)),
        )

    await asyncio.gather(cross(1, 2), cross(2, 1))
    assert await number(store, "SELECT sum(n) FROM wfc.pair") == 4


# A sequence is not rolled back, so it counts attempts.
ATTEMPT = "INSERT INTO wfc.names SELECT 'a' FROM nextval('wfc.attempts')"
ATTEMPTS = "SELECT last_value FROM wfc.attempts"


@pytest.fixture
async def names(store: Store) -> Store:
    """A store with a table of unique names, which has the name 'a'."""
    await store.write("CREATE SEQUENCE wfc.attempts")
    await store.write("CREATE TABLE wfc.names (name text CONSTRAINT only_once UNIQUE)")
    await store.write("INSERT INTO wfc.names VALUES ('a')")
    return store


async def test_final_unique_violation_is_raised_at_once_with_its_constraint(names: Store) -> None:
    with pytest.raises(UniqueViolation) as caught:
        await names.write(ATTEMPT, final_constraints=("only_once",))
    assert caught.value.constraint == "only_once"
    assert await number(names, ATTEMPTS) == 1


async def test_other_unique_violation_is_retried(names: Store) -> None:
    third_succeeds = """
        INSERT INTO wfc.names
        SELECT CASE WHEN nextval('wfc.attempts') < 3 THEN 'a' ELSE 'b' END
    """
    await names.write(third_succeeds, final_constraints=("other",))
    assert await number(names, ATTEMPTS) == 3


async def test_unique_violation_that_stays_is_raised_after_several_attempts(names: Store) -> None:
    async with raises("TRANSACTION_CONFLICT"):
        await names.write(ATTEMPT, final_constraints=("other",))
    assert await number(names, ATTEMPTS) == MAX_ATTEMPTS


async def test_full_pool_says_so(store: Store) -> None:
    holders = [asyncio.create_task(store.read("SELECT pg_sleep(3)")) for _ in range(4)]
    await asyncio.sleep(0.2)
    async with raises("POOL_EXHAUSTED"):
        await store.read(ONE)
    for holder in holders:
        holder.cancel()
    await asyncio.gather(*holders, return_exceptions=True)


async def test_database_that_is_away_is_unavailable() -> None:
    url = "postgresql://nobody@127.0.0.1:1/nothing"
    async with (
        database_from(Settings(db_url=url, pool_timeout=0.5)) as database,
        raises("DATABASE_UNAVAILABLE"),
    ):
        await Store(database, Schema(), "default").read(ONE)


async def test_missing_tables_are_an_outdated_schema(database: Database) -> None:
    async with raises("SCHEMA_OUTDATED"):
        await Store(database, Schema(), "default").read("SELECT FROM wfc.workflows")


async def test_what_only_a_bug_explains_is_no_domain_error(store: Store) -> None:
    with pytest.raises(UnexpectedDatabaseError):
        await store.read("SELEKT")


async def test_failed_statement_does_not_confuse_what_is_prepared(counter: Store) -> None:
    for _ in range(3):
        with pytest.raises(PersistenceError):
            await counter.read("SELECT 1 / $1::int", integer(0))
        with pytest.raises(UnexpectedDatabaseError):
            await counter.read("SELEKT")
        row = await counter.read("SELECT 1 / $1::int", integer(1))
        assert read_int4(row.get_value(0, 0)) == 1


async def test_forgotten_prepared_statement_is_prepared_again(database_url: str) -> None:
    async with database_from(Settings(db_url=database_url, pool_size=1)) as database:
        store = Store(database, Schema(), "default")
        await store.read("SELECT $1::text", text("a"))
        await store.read("DEALLOCATE ALL")
        row = await store.read("SELECT $1::text", text("b"))
        assert read_text(row.get_value(0, 0)) == "b"


@pytest.mark.parametrize("access", ["read", "stream", "write"])
async def test_statements_that_every_connection_has_prepared_outlive_a_migration(
    database_url: str, access: str
) -> None:
    """There are more connections than attempts, and each refuses what it has prepared: "cached
    plan must not change result type"."""
    sql = {"write": "UPDATE wfc.changed SET n = n RETURNING n"}.get(
        access, "SELECT n FROM wfc.changed"
    )
    size = 2 * MAX_ATTEMPTS
    async with (
        database_from(Settings(db_url=database_url, pool_size=size)) as database,
        await admin(database_url) as other,
    ):
        store = Store(database, Schema(), "default")
        await other.execute("CREATE SCHEMA wfc")
        await other.execute("CREATE TABLE wfc.changed AS SELECT 7 AS n")

        async with other.transaction():
            await other.execute("LOCK TABLE wfc.changed")
            run = store.write if access == "write" else store.read
            calls = [asyncio.create_task(run(sql)) for _ in range(size)]

            async def all_wait() -> bool:
                found = await other.execute("SELECT FROM pg_locks WHERE NOT granted")
                return found.rowcount == size

            await eventually(all_wait)
        await asyncio.gather(*calls)
        await other.execute("ALTER TABLE wfc.changed ALTER n TYPE bigint")

        for _ in range(2 * size):
            if access == "stream":
                async with aclosing(store.stream(sql)) as rows:
                    assert [read_int8(row.get_value(0, 0)) async for row in rows] == [7]
            else:
                row = await run(sql)
                assert read_int8(row.get_value(0, 0)) == 7


async def test_works_without_prepared_statements(database_url: str) -> None:
    async with database_from(Settings(db_url=database_url, pool_size=1, prepare=False)) as database:
        store = Store(database, Schema(), "default")
        for i in range(3):
            row = await store.read("SELECT $1::bigint", integer(i))
            assert read_int8(row.get_value(0, 0)) == i
        async with aclosing(store.stream("SELECT n FROM generate_series(1, 3) n")) as rows:
            assert [read_int4(row.get_value(0, 0)) async for row in rows] == [1, 2, 3]
        row = await store.read("SELECT count(*) FROM pg_prepared_statements")
        assert read_int8(row.get_value(0, 0)) == 0


async def test_stream_answers_every_row_in_order(store: Store) -> None:
    for count in (0, 1, 31, 32, 33, 1000):
        async with aclosing(
            store.stream("SELECT n FROM generate_series(1, $1::int) n", integer(count))
        ) as rows:
            numbers = [read_int4(row.get_value(0, 0)) async for row in rows]
        assert numbers == list(range(1, count + 1))


async def test_stream_left_early_gives_its_connection_back(database_url: str) -> None:
    async with database_from(
        Settings(db_url=database_url, pool_size=1, pool_timeout=5)
    ) as database:
        store = Store(database, Schema(), "default")
        for _ in range(3):
            async with aclosing(
                store.stream("SELECT n, repeat('x', 10000) FROM generate_series(1, 100000) n")
            ) as rows:
                async for row in rows:
                    assert read_int4(row.get_value(0, 0)) == 1
                    break
        await store.read(ONE)


async def test_rows_wait_in_the_database_until_they_are_taken(database_url: str) -> None:
    """Not in libpq's buffer, which takes what is read from the socket, and never shrinks."""
    process = psutil.Process()
    before = process.memory_info().rss
    async with database_from(
        Settings(db_url=database_url, pool_size=1, pool_timeout=60)
    ) as database:
        store = Store(database, Schema(), "default")
        async with aclosing(store.stream("SELECT n FROM generate_series(1, 30000000) n")) as rows:
            async for row in rows:
                if read_int4(row.get_value(0, 0)) == 100_000:
                    break
        await store.read(ONE)
        assert process.memory_info().rss < before + 50_000_000


async def test_results_that_nobody_waits_for_are_thrown_away(database_url: str) -> None:
    """Of an exchange that can't be cancelled in time."""
    connection = await Connection.connect(database_url, autocommit=True)
    try:
        exchange = Exchange(connection)
        large = "SELECT repeat('x', 1000) FROM generate_series(1, 50000)"
        exchange.send_row_by_row((Statement.unprepared(large), ()))
        await exchange.more()
        assert len(exchange.results) > 0
        exchange.discard_results()
        async with asyncio.timeout(30):
            await exchange.complete()
        assert len(exchange.results) == 0
    finally:
        await connection.close()


async def test_streams_get_half_of_the_connections(store: Store) -> None:
    async def holds() -> None:
        async with aclosing(store.stream("SELECT FROM generate_series(1, 9000000)")) as rows:
            await anext(rows)
            await asyncio.sleep(3)

    streams = [asyncio.create_task(holds()) for _ in range(6)]
    await asyncio.sleep(0.2)
    for _ in range(3):
        await asyncio.gather(store.read(ONE), store.read(ONE))
    async with raises("POOL_EXHAUSTED"), aclosing(store.stream(ONE)) as rows:
        await anext(rows)
    for stream in streams:
        stream.cancel()
    await asyncio.gather(*streams, return_exceptions=True)
    async with aclosing(store.stream(ONE)) as rows:
        assert read_int4((await anext(rows)).get_value(0, 0)) == 1


async def test_stream_tells_of_errors_in_the_middle(store: Store) -> None:
    got = []
    with pytest.raises(PersistenceError):  # noqa: PT012 — what came before the error counts too
        async with aclosing(
            store.stream("SELECT 100 / (50 - n) FROM generate_series(1, 100) n")
        ) as rows:
            async for row in rows:
                got.append(read_int4(row.get_value(0, 0)))
    assert len(got) == 49


async def test_large_parameters_and_answers_pass(store: Store) -> None:
    large = "é" * 5_000_000
    row = await store.read("SELECT $1::text", text(large))
    assert read_text(row.get_value(0, 0)) == large
