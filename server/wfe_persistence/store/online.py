"""Indexes that are built while everybody goes on: CREATE INDEX CONCURRENTLY, on large tables only.

Such a statement can't be part of a transaction, so it comes before that of its migration. It waits
for the transactions that are older than itself, however long they take, so an index of a small
table is built in the transaction instead. One that was interrupted leaves an INVALID index, which
is maintained and never used: it is dropped and built again.

Of several servers one builds. Its turn is an advisory lock of a transaction on a connection of its
own, which does nothing else: it has no snapshot, for which the statement would wait (nor a portal,
which keeps one: so no parameters), and it works through a PgBouncer in transaction mode. Nobody
waits for the lock in PostgreSQL, because a statement that waits has a snapshot; whoever does not
get it asks again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final

import psycopg

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.errors import PersistenceError
from wfe_persistence.store.administration import INDEPENDENT, connect
from wfe_persistence.store.migration_files import Index, Migration
from wfe_persistence.store.postgres.source import Connector
from wfe_persistence.store.schema import Schema

log = logging.getLogger(__name__)

LARGE_BYTES: Final = 16 * 1024 * 1024
"""The size of a table from which on its indexes are built CONCURRENTLY. In the transaction, that of
a smaller one takes about 0.1 s."""

_ASK_AGAIN_SECONDS: Final = 0.5
_MAX_ATTEMPTS: Final = 5

TABLE_BYTES = """
SELECT coalesce(pg_relation_size(to_regclass(%s)), 0)
"""

# What is there under these names, and whether it is the index with this definition.
FIND_INDEXES = """
SELECT i.relname, x.indisvalid AND x.indisready, t.relname, pg_get_indexdef(i.oid)
FROM pg_namespace n
JOIN pg_class i ON i.relnamespace = n.oid
LEFT JOIN pg_index x ON x.indexrelid = i.oid
LEFT JOIN pg_class t ON t.oid = x.indrelid
WHERE n.nspname = %s AND i.relname = ANY (%s)
"""

TAKE_TURN = """
SELECT pg_try_advisory_xact_lock(
    hashtextextended('wfe-persistence online ' || current_database() || %s, 0))
"""

# Its own session: behind a PgBouncer, the process that answers is not the one that was connected
# to.
SESSION = "SELECT pg_backend_pid()"
NO_TIMEOUT = "SET statement_timeout = 0"


async def large(
    connection: psycopg.AsyncConnection[Any], schema: Schema, indexes: Iterable[Index]
) -> list[Index]:
    """Those of these indexes that are to be built CONCURRENTLY."""
    found = []
    for index in indexes:
        table = schema.qualify(f"wfc.{index.table}")
        cursor = await connection.execute(TABLE_BYTES, [table])
        [[size]] = await cursor.fetchall()
        if size >= LARGE_BYTES:
            found.append(index)
    return found


async def state(
    connection: psycopg.AsyncConnection[Any], schema: Schema, indexes: Iterable[Index]
) -> dict[str, bool]:
    """Those of these indexes that are there, by name without prefix, and whether they are valid.

    Raises SCHEMA_OUTDATED if something else has the name of one.
    """
    wanted = {schema.table_prefix + index.name: index for index in indexes}
    cursor = await connection.execute(FIND_INDEXES, [schema.name, list(wanted)])
    found = {}
    for name, is_valid, table, definition in await cursor.fetchall():
        index = wanted[name]
        is_ours = (
            table == schema.table_prefix + index.table
            and definition.partition(" USING ")[2] == index.definition.removeprefix("USING ")
            and definition.startswith("CREATE UNIQUE") == index.unique
        )
        if not is_ours:
            raise PersistenceError(
                ErrorReason.ERROR_REASON_SCHEMA_OUTDATED,
                f"something else has the name {name} of an index of the migration: rename it",
            )
        found[index.name] = is_valid
    return found


async def build(
    connector: Connector,
    connection: psycopg.AsyncConnection[Any],
    schema: Schema,
    migration: Migration,
    is_pending: Callable[[], Awaitable[bool]],
) -> None:
    """Build the indexes of a migration that may be built before it, those of large tables, unless
    they are there. Does nothing if the migration is not pending any more when it is our turn."""
    indexes = await large(connection, schema, migration.indexes)
    if not indexes or await _are_built(connection, schema, indexes):
        return
    async with _turn(connector, schema):
        if not await is_pending():
            return
        await _without_timeout(connection)
        for index in indexes:
            await _build(connection, schema, index)


async def _are_built(
    connection: psycopg.AsyncConnection[Any], schema: Schema, indexes: list[Index]
) -> bool:
    found = await state(connection, schema, indexes)
    return all(found.get(index.name) for index in indexes)


async def _build(connection: psycopg.AsyncConnection[Any], schema: Schema, index: Index) -> None:
    attempt = 0
    while (found := (await state(connection, schema, [index])).get(index.name)) is not True:
        attempt += 1
        try:
            if found is False:
                log.info("schema %s: %s was interrupted: again", schema.name, index.name)
                await connection.execute(index.drop(schema, concurrently=True).encode())
            log.info(
                "schema %s: building the index %s of %s; nobody is held up",
                schema.name, index.name, index.table,
            )  # fmt: skip
            await connection.execute(index.create(schema, concurrently=True).encode())
        except (psycopg.errors.DeadlockDetected, psycopg.errors.LockNotAvailable):
            if attempt >= _MAX_ATTEMPTS:
                raise
            await asyncio.sleep(attempt)


async def _without_timeout(connection: psycopg.AsyncConnection[Any]) -> None:
    """A role may have a timeout that is too short for this. Behind a PgBouncer it stays: there a
    setting would be that of others too."""
    cursor = await connection.execute(SESSION)
    if await cursor.fetchone() == (connection.info.backend_pid,):
        await connection.execute(NO_TIMEOUT)


@asynccontextmanager
async def _turn(connector: Connector, schema: Schema) -> AsyncIterator[None]:
    """Wait until no other server builds indexes of this schema; inside the context none does."""
    take_turn = (TAKE_TURN % f"'{schema.name}'").encode()  # a name that needs no quotes
    has_waited = False
    async with connect(connector) as connection:
        while True:
            # Each attempt is a transaction of its own: whoever builds waits for the end of those
            # that had a snapshot at a certain moment, as one that asks has.
            async with connection.transaction():
                await connection.execute(INDEPENDENT)
                cursor = await connection.execute(take_turn)
                if await cursor.fetchone() == (True,):
                    yield
                    return
            if not has_waited:
                has_waited = True
                log.info("schema %s: another server is building indexes", schema.name)
            await asyncio.sleep(_ASK_AGAIN_SECONDS)
